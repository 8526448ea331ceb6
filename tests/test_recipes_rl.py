"""`r1jax rl`: any model, one's own prompts, rewards by domain and by reward models; stopped, it ends the same."""

import dataclasses
import json
import shutil
from typing import Any, ClassVar

import jax
import pytest
from flax import nnx
from test_commands import refused
from test_recipes_r1_zero import TINY, QuickPrograms

from r1jax.checkpoints.model import fingerprint, open_model, save_model
from r1jax.cli import main
from r1jax.configs.model import ModelConfig
from r1jax.data.iterators import MixedPrompts, PromptBatches
from r1jax.data.templates import R1_CHAT_TEMPLATE
from r1jax.data.world import WorldConfig, general_requests, reasoning_problems, world_tokenizer
from r1jax.errors import ConfigError
from r1jax.files import write_rows
from r1jax.models.decoder import Decoder
from r1jax.recipes import rl
from r1jax.recipes.rl import RLConfig, scorer
from r1jax.rewards import think_format_reward
from r1jax.sharding import make_mesh
from r1jax.training import programs

CONFIG = ModelConfig(**TINY | {"vocab_size": 384})
OPTIONS = (
    "--seed 3 --steps 3 --save-every 1 --max-prompt-length 40 --eval.every 2 --eval.problems 8 --eval.k 2 "
    "--grpo.num-prompts 8 --grpo.num-generations 4 --grpo.max-completion-length 8 --grpo.ref-model-sync-steps 2 "
    "--optimizer.learning-rate 0.01 --mesh.data 1 --mesh.fsdp -1 --general-from 1 --general-prompts 4 "
    "--reward.functions rl_rewards:letters rl_rewards:watched --reward.weights 1 0 "
    "--reward.domains rl_rewards:letters=reasoning"
).split()
REWARD = """
def letters(prompts, completions, answer, **columns):
    assert all(domain == "reasoning" for domain in columns["domain"])
    return [float(sum(map(ord, text)) % 7) for text in completions]

def watched(prompts, completions, **columns):
    return [float(len(text) % 3) for text in completions]
"""  # a tiny model that was never trained gets different rewards within a group


class QuickRLPrograms(QuickPrograms):
    """Of this file's runs alone: programs are kept by name."""

    compiled: ClassVar[dict[str, Any]] = {}


def scored_here(prompts, completions, domain, **columns):
    """Stands for a reward model: called in this process, for requests alone."""
    scored_here.calls.append((len(prompts), set(domain)))
    assert all("<｜User｜>" in prompt for prompt in prompts)  # the prompt as the policy saw it
    return [float(sum(map(ord, text)) % 5) for text in completions]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rl")
    assets = folder / "assets"
    world_tokenizer(WorldConfig(), assets / "tokenizer.model", 384)
    (assets / "chat_template.jinja").write_text(R1_CHAT_TEMPLATE)
    save_model(folder / "model", Decoder(CONFIG, nnx.Rngs(params=0)), CONFIG, assets)
    write_rows(folder / "problems.jsonl", reasoning_problems(0, 40, "train"))
    write_rows(folder / "test.jsonl", reasoning_problems(0, 12, "test"))
    write_rows(folder / "requests.jsonl", general_requests(0, 5, "train"))
    (folder / "rl_rewards.py").write_text(REWARD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "Programs", QuickRLPrograms)
        two = jax.devices()[:2]
        patch.setattr("r1jax.sharding.make_mesh", lambda shape, devices=two: make_mesh(shape, devices))
        patch.setenv("JAX_COMPILATION_CACHE_DIR", "set")  # conftest's
        patch.syspath_prepend(str(folder))
        yield folder


def arguments(folder, run_dir, *more):
    files = ["--data", folder / "problems.jsonl", "--general-data", folder / "requests.jsonl",
             "--eval-data", folder / "test.jsonl"]  # fmt: skip
    return [str(a) for a in ("rl", "--checkpoint", folder / "model", "--run-dir", run_dir, *OPTIONS, *files, *more)]


def metrics(run_dir):
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


@pytest.fixture(scope="module")
def finished(checkpoint):
    run_dir = checkpoint / "finished"
    main(arguments(checkpoint, run_dir))
    return run_dir


def test_it_learns_logs_and_leaves_a_model(finished, checkpoint):
    rows = metrics(finished)
    steps = [row for row in rows if "reward" in row]
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert [row["step"] for row in rows if "eval/pass@1" in row] == [0, 2, 3]
    # The second function is only watched, on all prompts; the first is for reasoning, all prompts until step 1.
    assert all({"rewards/letters/mean", "rewards/watched/mean"} <= row.keys() for row in steps)
    before, after = (open_model(folder).model for folder in (checkpoint / "model", finished))
    assert fingerprint(before) != fingerprint(after)
    assert (finished / "model" / "chat_template.jinja").read_text() == R1_CHAT_TEMPLATE
    assert (finished / "report.html").exists()
    card = json.loads((finished / "data.json").read_text())
    assert {name: value["prompts"] for name, value in card.items()} == {"data": 40, "general_data": 25, "eval_data": 12}


def test_trap_7_stopped_and_taken_up_it_ends_the_same(finished, checkpoint):
    copy = checkpoint / "copy"
    shutil.copytree(finished, copy)
    shutil.rmtree(copy / "model")
    shutil.rmtree(copy / "checkpoints" / "rl" / "00000003")
    main(arguments(checkpoint, copy))
    assert metrics(copy) == metrics(finished)
    assert fingerprint(open_model(copy).model) == fingerprint(open_model(finished).model)
    written = (copy / "metrics.jsonl").read_bytes()
    main(arguments(checkpoint, copy))  # nothing is left to do
    assert (copy / "metrics.jsonl").read_bytes() == written


def test_reward_models_score_their_domain_in_this_process(checkpoint, monkeypatch):
    scored_here.calls = []
    monkeypatch.setattr("r1jax.recipes.rl._reward_models", lambda config, mesh: {"helpful": scored_here})
    run_dir = checkpoint / "local"
    more = [
        "--reward.functions", "rl_rewards:letters", "helpful", "--reward.weights", "1", "1",
        "--reward.domains", "rl_rewards:letters=reasoning", "helpful=general,safety",
        "--reward-models", "helpful", str(checkpoint / "model"),
    ]  # fmt: skip
    main(arguments(checkpoint, run_dir, *more))
    # From step 1 on 4 of the 8 prompts are requests, with 4 completions each.
    assert [count for count, _ in scored_here.calls] == [16, 16]
    assert set.union(*(domains for _, domains in scored_here.calls)) <= {"general", "safety"}
    steps = [row for row in metrics(run_dir) if "reward" in row]
    assert ["rewards/helpful/mean" in row for row in steps] == [False, True, True]
    assert all(row["rewards/unscored"] == 0 for row in steps)


def test_mixed_prompts_are_addressed_by_step(checkpoint):
    tokenizer = world_tokenizer(WorldConfig(), checkpoint / "assets" / "tokenizer.model", 384)

    def stream(rows):
        return lambda count: PromptBatches(rows, tokenizer, count, 40, 0)

    problems, requests = stream(reasoning_problems(0, 40, "train")), stream(general_requests(0, 5, "train"))
    mixed = MixedPrompts(problems, requests, 8, 3, start=2)
    assert mixed[1].prompts == problems(8)[1].prompts
    assert mixed[3].prompts[5:] == requests(3)[1].prompts
    # The first stream goes on where it was: 16 were asked, which four batches of five hold.
    assert mixed[2].prompts[:5] == problems(5)[4].prompts and mixed[3].prompts[:5] == problems(5)[5].prompts
    assert not set(mixed[2].prompts[:5]) & {prompt for step in range(2) for prompt in mixed[step].prompts}
    assert mixed[3].tokens.shape == (8, 40) and mixed[3].columns["tests"][5:] == [None] * 3
    assert mixed[3].columns["domain"][:5] == ["reasoning"] * 5


def test_evaluation_is_judged_by_the_first_function():
    reward = RLConfig(checkpoint="x", data="y").reward
    assert scorer(reward).well_formed is think_format_reward
    judged = scorer(type(reward)(functions=("world_accuracy",)))
    assert judged.well_formed is None and judged.answer("<answer>07</answer>") == "7"
    texts = ["<answer>7</answer>", "```python\ndef f(): return 2\n```", "<think>x</think>7"]
    columns = {
        "answer": ["7", None, "7"],
        "tests": [None, ["assert f() == 2"], None],
        "domain": ["math", "code", "other"],
    }
    assert scorer(type(reward)(functions=("world_accuracy",))).correct([""] * 3, texts, **columns)[::2] == [1.0, 1.0]
    by_domain = type(reward)(
        functions=("world_accuracy", "code_accuracy", "helpful"),
        domains={"world_accuracy": ("math",), "code_accuracy": ("code",), "helpful": ("other",)},
    )
    assert scorer(by_domain, ["helpful"]).correct([""] * 3, texts, **columns) == [1.0, 1.0, 1.0]
    # Neither a reward model nor a layout judges, wherever it stands.
    last = type(reward)(functions=("helpful", "think_format", "world_accuracy"))
    judged = scorer(last, ["helpful"])
    assert judged.well_formed is think_format_reward
    assert judged.correct([""] * 3, texts, **columns) == scorer(
        type(reward)(functions=("world_accuracy",))
    ).correct([""] * 3, texts, **columns)  # fmt: skip
    with pytest.raises(ConfigError, match="none of them says what is right"):
        scorer(type(reward)(functions=("think_format", "helpful")), ["helpful"])


def test_mistakes_are_named_before_anything_is_written(checkpoint, capsys, tmp_path):
    write_rows(tmp_path / "bad.jsonl", [{"question": "2+2?", "answer": "4"}, {"text": "2+2"}])
    write_rows(tmp_path / "long.jsonl", [{"question": "2+2+" * 40, "answer": "4"}])
    run_dir = tmp_path / "run"

    def told(*more):
        return refused(capsys, *arguments(checkpoint, run_dir, *more))

    assert "bad.jsonl:2: its fields are text='2+2': give a \"question\"" in told("--data", str(tmp_path / "bad.jsonl"))
    assert "bad.jsonl:2: its fields are text" in told("--data", str(tmp_path / "bad.jsonl"), "--template", "r1_zero")
    write_rows(tmp_path / "chat.jsonl", [{"prompt": [{"role": "user", "content": "2+2?"}], "answer": "4"}])
    chat = ("--data", str(tmp_path / "chat.jsonl"), "--template", "r1_zero")
    assert "chat.jsonl:1: it has messages, which template='r1_zero' cannot render" in told(*chat)
    write_rows(tmp_path / "bare.jsonl", [{"question": "2+2?", "domain": "reasoning"}])
    bare = ("--data", str(tmp_path / "bare.jsonl"), "--general-data", str(tmp_path / "bare.jsonl"))
    assert "no row has a field 'answer', which reward function 'letters' needs" in told(*bare)
    assert "tokens: raise max_prompt_length=40" in told("--data", str(tmp_path / "long.jsonl"))
    assert 'needs a field "domain" in every row' in told("--data", str(tmp_path / "bad.jsonl"), "--skip-malformed")
    some = [{"question": "2+2?", "answer": "4", "domain": "reasoning"}, {"question": "3+3?", "answer": "6"}]
    write_rows(tmp_path / "some.jsonl", some)
    assert 'needs a field "domain" in every row' in told("--data", str(tmp_path / "some.jsonl"))
    assert "general_prompts=8: must lie in 1..7 (grpo.num_prompts - 1)" in told("--general-prompts", "8")
    assert "reward_models='nobody': is not among" in told("--reward-models", "nobody", "somewhere")
    same = ("--reward.functions", "format", "rl_rewards:watched", "--reward.domains", "--reward-models", "format", ".")
    assert "reward_models='format': a reward function of r1jax is called so" in told(*same)
    more = ("--reward.functions", "rl_rewards:watched", "liked", "--reward.domains", "--reward-models", "liked", ".")
    assert "reward model" in told(*more)
    assert "max_prompt_length + grpo.max_completion_length=520" in told("--max-prompt-length", "512")
    assert not run_dir.exists()


def test_weights_not_given_are_one_each():
    config = RLConfig(checkpoint="x", data="y")
    for functions in (("math_accuracy",), ("math_accuracy", "format", "code_accuracy")):
        assert dataclasses.replace(config.reward, functions=functions).all_weights == (1.0,) * len(functions)


def test_messages_are_asked_without_their_answers(checkpoint):
    """A data set of conversations holds what is to be sampled: the prompt must end before it."""
    turns = [("user", "2+2?"), ("assistant", "4"), ("user", "3+3?"), ("assistant", "6")]
    rows = [
        {"messages": [{"role": role, "content": text} for role, text in turns], "answer": "6"},
        {"messages": [{"role": role, "content": text} for role, text in turns], "question": "4+4?", "answer": "8"},
        {"prompt": [{"role": "user", "content": "5+5?"}], "answer": "10"},  # as TRL's data sets have it
    ]
    write_rows(checkpoint / "chats.jsonl", rows)
    config = RLConfig(checkpoint=checkpoint / "model", data="chats.jsonl", max_prompt_length=40)
    render = rl._renderer(config, checkpoint / "model")
    tokenizer = world_tokenizer(WorldConfig(), checkpoint / "assets" / "tokenizer.model", 384)
    found, _ = rl._problems(config, str(checkpoint / "chats.jsonl"), None, tokenizer, render)
    assert [row["question"] for row in found] == ["3+3?", "4+4?", "5+5?"]
    assert all(row.keys() == found[0].keys() for row in found)
    user, assistant = "<｜User｜>", "<｜Assistant｜>"
    assert [render(row) for row in found] == [
        f"{user}2+2?{assistant}4{user}3+3?{assistant}", f"{user}4+4?{assistant}", f"{user}5+5?{assistant}"
    ]  # fmt: skip


def test_another_run_is_refused(finished, checkpoint, capsys):
    write_rows(checkpoint / "pairs.jsonl", [{"prompt": "2+2", "completion": "4"}])
    options = ["--data", checkpoint / "pairs.jsonl", "--run-dir", finished, "--mesh.data", 2, "--length", 32]
    assert "holds a run of another kind" in refused(capsys, "sft", "--checkpoint", checkpoint / "model", *options)
    assert "seed=4: the run in" in refused(capsys, *arguments(checkpoint, finished, "--seed", "4"))


def test_a_reward_that_fails_ends_the_run_with_its_name(checkpoint, capsys, monkeypatch):
    def broken(*args, **columns):
        raise ValueError("not today")

    monkeypatch.setattr("r1jax.recipes.rl._reward_models", lambda config, mesh: {"helpful": broken})
    more = ["--reward.functions", "rl_rewards:letters", "helpful", "--reward.weights", "1", "1",
            "--reward.domains", "rl_rewards:letters=reasoning", "--reward-models", "helpful", "x"]  # fmt: skip
    assert "not today" in refused(capsys, *arguments(checkpoint, checkpoint / "broken", *more))
