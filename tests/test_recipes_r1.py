"""The whole recipe's chain: what each stage is given and leaves, what runs again, what it ends with.

Training itself is tested with each recipe; here it is replaced by models that are not trained. `R1JAX_TEST_WHOLE=1`
runs all of it, with tiny models, twice: in one go, and killed in every stage (some five minutes).
"""

import json
import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import pytest
from flax import nnx
from helpers import tiny_llama3
from test_commands import refused

from r1jax.checkpoints.model import open_model, save_model
from r1jax.cli import main
from r1jax.data.cards import read_card
from r1jax.data.chat import ChatTemplate
from r1jax.data.sources import read_rows
from r1jax.data.templates import R1_CHAT_TEMPLATE
from r1jax.data.world import WorldConfig, reasoning_problems, world_tokenizer
from r1jax.files import write_rows
from r1jax.models.decoder import Decoder
from r1jax.recipes import reward_model, rl, sft
from r1jax.recipes.r1 import chain
from r1jax.recipes.r1 import stages as work
from r1jax.recipes.r1.config import PRESETS, parse_r1
from r1jax.recipes.stage import BEGUN, DONE
from r1jax.rewards import think_format_reward
from r1jax.rewards.world import world_accuracy
from r1jax.sampling.completions import TextCompletion
from r1jax.sharding import make_mesh

ROOT = Path(__file__).parents[1]
TINY = tiny_llama3(num_hidden_layers=1, first_k_dense_replace=1, vocab_size=384, max_position_embeddings=256)
SMALL = (
    "--world.train-problems 60 --world.test-problems 8 --world.train-requests 4 --world.test-requests 2 "
    "--world.train-preferences 16 --world.test-preferences 8 --cold-start.problems 5 --cold-start.n 3 "
    "--rejection.problems 10 --rejection.n 3 --results.sampling.num-generations 4 --results.batch-size 8"
).split()
CHAIN = ["world", "base", "zero", "zero_language", "candidates", "cold_start", "dev1", "dev2", "rejection", "dev3",
         "helpfulness", "harmlessness", "r1", "student_base", "student_distilled", "student_rl", "results"]  # fmt: skip
MODELS = ["base", "zero", "dev1", "dev2", "dev3", "r1", "student_distilled", "student_rl",
          "zero_language"]  # fmt: skip


def test_the_chain_is_the_papers():
    stages = {stage.name: stage for stage in chain.stages(PRESETS["nano"])}
    assert list(stages) == CHAIN
    begins_with = {name: stage.inputs.get("checkpoint", "").partition("/")[0] for name, stage in stages.items()}
    assert begins_with == dict.fromkeys(CHAIN, "") | {
        "zero": "base", "zero_language": "base", "dev1": "base", "dev2": "dev1", "dev3": "base", "r1": "dev3",
        "helpfulness": "dev3", "harmlessness": "dev3", "student_distilled": "student_base",
        "student_rl": "student_base",
    }  # fmt: skip
    assert stages["dev3"].inputs["data"] == stages["student_distilled"].inputs["data"] == "rejection/sft.jsonl"
    assert {name for name in stages["results"].inputs if name not in ("problems", "requests")} == set(MODELS)


def test_the_settings_are_the_papers_where_it_gives_them():
    nano = PRESETS["nano"]
    assert (nano.dev2.grpo.epsilon, nano.r1.grpo.epsilon, nano.r1.grpo.temperature) == (10, 10, 0.7)
    assert nano.dev3.epochs == nano.student_distilled.epochs == 2
    assert nano.dev3.optimizer.lr_scheduler_type == "cosine"
    assert "language_consistency" in nano.dev2.reward.functions and nano.helpfulness.summary_only
    assert not nano.harmlessness.summary_only and nano.harmlessness.kind == "pointwise"
    weights = dict(zip(nano.zero.reward.functions, nano.zero.reward.all_weights, strict=True))
    assert weights["language_consistency"] == 0  # R1-Zero has rules alone
    assert 0 < nano.r1.general_from < nano.r1.steps


def test_command_line():
    config, only, start = parse_r1("--preset nano --run-dir x --seed 3 --only dev1 --dev1.epochs 7".split())
    assert (config.run_dir, config.seed, config.dev1.epochs, only, start) == (Path("x"), 3, 7, "dev1", None)
    assert config.r1.reward.domains["helpfulness"] == ("general",)
    assert parse_r1(["--from", "dev2"])[1:] == (None, "dev2")
    rules = parse_r1(["--preset", "deepseek-v3-671b", "--world.rules", "math_accuracy=math"])[0].world.rules
    assert rules == {"math_accuracy": ("math",)}


def test_the_experiment_is_the_command(monkeypatch):
    ran = []
    monkeypatch.setattr(chain, "run", lambda *args: ran.append(args))
    monkeypatch.setattr(sys, "argv", ["r1.py", "--seed", "2", "--only", "zero"])
    runpy.run_path(str(ROOT / "experiments" / "r1.py"), run_name="__main__")
    ((config, only, start),) = ran
    assert (config.seed, only, start) == (2, "zero", None)


def test_mistakes_on_the_command_line(capsys, tmp_path):
    assert "preset='huge': must be one of nano, deepseek-v3-671b" in refused(capsys, "recipe", "r1", "--preset", "huge")
    assert "which recipe?: write r1jax recipe r1" in refused(capsys, "recipe", "--seed", "3")
    assert "no recipe 'r2'" in refused(capsys, "recipe", "r2")
    command = ["recipe", "r1", "--run-dir", tmp_path / "run"]
    assert "from='dev9': must be one of world" in refused(capsys, *command, "--from", "dev9")
    assert "only='dev1'" in refused(capsys, *command, "--only", "dev1", "--from", "dev2")


# ------------------------------------------------------------------------------------- the chain, without the training


class Knowing:
    """A sampler that has seen all problems: two good responses, in either language, and a wrong one."""

    def __init__(self, zero_layout):
        self.zero_layout = zero_layout
        self.answers = {}
        for seed in (0,):
            for row in reasoning_problems(seed, 60, "train"):
                self.answers[row["question"]] = row

    def __call__(self, prompts, n, done=frozenset()):
        for i, prompt in enumerate(prompts):
            if i in done:
                continue
            row = max((r for q, r in self.answers.items() if q in prompt), key=lambda r: prompt.rfind(r["question"]))
            yield i, [TextCompletion(self.text(row, j), "stop", 9) for j in range(n)]

    def text(self, row, j):
        thought = ("3 add 2 makes 5", "3加2得5", "3 add 2 makes 5加1得6")[j % 3]
        answer = row["answer"] if j % 3 != 1 or row["language"] == "zh" else "wrong"
        if self.zero_layout:
            return f"<think>{thought}</think><answer>{answer}</answer>"
        boxed = f"```python\n{answer}\n```" if row["kind"] == "program" else f"\\boxed{{{answer}}}"
        return f"<think>{thought}</think>{boxed}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The recipes, replaced by what writes a model that is not trained; what each was called with, by stage."""
    called = {}

    def train(config):
        for name in ("checkpoint", "data", "eval_data", "general_data", "chat_template"):
            value = getattr(config, name, None)
            assert value is None or Path(value).exists(), f"{config.run_dir.name}.{name}"
        assert all(path.exists() for path in getattr(config, "reward_models", {}).values())
        called[config.run_dir.name] = config
        assets = Path(config.checkpoint)
        write(config.run_dir / "model", assets, config.seed)
        if getattr(config, "chat_template", None):
            shutil.copy(config.chat_template, config.run_dir / "model" / "chat_template.jinja")
        (config.run_dir / "metrics.jsonl").write_text('{"phase": "rl", "step": 1, "eval/pass@1": 0.5}\n')

    def write(folder, assets, seed):
        shutil.rmtree(folder, ignore_errors=True)
        save_model(folder, Decoder(TINY, nnx.Rngs(params=seed)), TINY, assets)

    def pretrain(mesh, config, run):
        called[run.folder.name] = config
        write(run.folder / "model", run.inputs["assets"], run.seed)
        return {"loss": 1.0}

    pretrain.original = work.pretrain_base
    with pytest.MonkeyPatch.context() as patch:
        for recipe in (sft, rl, reward_model):
            patch.setattr(recipe, "run", train)
        patch.setattr(work, "pretrain_base", pretrain)
        patch.setattr(work, "_sampler", lambda run, path, *args: Knowing(path.parent.name != "dev2"))
        one = jax.devices()[:1]
        patch.setattr("r1jax.sharding.make_mesh", lambda shape, devices=one: make_mesh(shape, devices))
        patch.setenv("JAX_COMPILATION_CACHE_DIR", "set")  # conftest's
        yield called


def run(run_dir, *more):
    main(["recipe", "r1", "--run-dir", str(run_dir), *SMALL, *more])


@pytest.fixture(scope="module")
def finished(trained, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("r1") / "run"
    run(run_dir)
    return run_dir


def record(run_dir, stage):
    return json.loads((run_dir / stage / "stage.json").read_text())


def test_results_hold_every_model_with_intervals(finished):
    results = json.loads((finished / "results.json").read_text())
    assert list(results["models"]) == MODELS and results["seed"] == 0
    for scores in results["models"].values():
        for name in ("pass@1", "cons@4", "single_language", "format", "general", "harmless", "mean_length"):
            low, high = scores[name]["interval"]
            assert low <= scores[name]["value"] <= high
    assert {"pass@1", "general", "harmless", "single_language"} <= set(results["meanings"])
    page = (finished / "report.html").read_text()
    assert all(name in page for name in CHAIN)


def test_every_stage_says_what_it_was_made_from(finished):
    made = {}
    for name in CHAIN:
        told = record(finished, name)
        for given in told["inputs"].values():
            assert given["sha256"] == made[given["from"]]
        assert (finished / name / "metrics.jsonl").exists() or "base" in name  # which writes none here
        made |= {f"{name}/{output}": value["sha256"] for output, value in told["outputs"].items()}
    for path in finished.glob("world/*_t*.jsonl"):
        assert read_card(path).rows == sum(1 for _ in path.open())


def test_cold_start_has_four_ways_and_only_readable_rows(finished):
    rows = read_rows(finished / "cold_start" / "cold_start.jsonl")
    assert {row["source"].removeprefix("cold start, ") for row in rows} >= {"reflection", "zero", "refined"}
    problems = {row["question"]: row for row in read_rows(finished / "world" / "problems_train.jsonl")}
    for row in rows:
        question, response = (message["content"] for message in row["messages"])
        assert think_format_reward([""], [response]) == [1.0]
        problem = problems[question]
        assert world_accuracy([""], [response], [problem["answer"]], [problem["tests"]]) == [1.0]
        thought = response.partition("</think>")[0]
        assert ("加" in thought) == (row["language"] == "zh")  # mixed ones were mended, or are not there
    ways = {row["source"] for row in rows}
    assert len(ways) >= 3


def test_rejection_keeps_right_answers_in_one_language_and_adds_requests(finished):
    rows = read_rows(finished / "rejection" / "sft.jsonl")
    card = read_card(finished / "rejection" / "sft.jsonl")
    general = [row for row in rows if row["domain"] != "reasoning"]
    assert general and len(general) == round((len(rows) - len(general)) / 3)
    assert card.counts["correct responses"] < card.counts["responses"] == 30
    assert card.removed["mixed languages"] > 0 and card.removed["wrong"] > 0
    english = [row for row in rows if row["domain"] == "reasoning" and row["language"] == "en"]
    assert english and not any("加" in row["messages"][1]["content"] for row in english)


def test_the_layouts_follow_the_stage(finished, trained):
    """R1-Zero's prompt until the cold start, the chat template from then on; the recipe's seed and mesh everywhere."""
    assert "User:" in ChatTemplate.from_folder(finished / "zero" / "model").render([{"role": "user", "content": "x"}])
    for name in ("dev1", "dev2", "dev3", "r1", "student_distilled"):
        assert (finished / name / "model" / "chat_template.jinja").read_text() == R1_CHAT_TEMPLATE
    assert trained["zero"].template == trained["student_rl"].template == "r1_zero" and trained["r1"].template == "chat"
    seeds = {name: config.seed for name, config in trained.items() if "base" not in name}
    assert len(set(seeds.values())) == len(seeds) and all(seed < 1 << 16 for seed in seeds.values())
    assert trained["r1"].reward_models["harmlessness"] == finished / "harmlessness" / "model"


def test_nothing_runs_again_unless_something_changed(finished, trained, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    trained.clear()
    run(copy)
    assert not trained
    run(copy, "--dev2.optimizer.learning-rate", "1e-3")  # here training changes nothing, so what follows is unchanged
    assert list(trained) == ["dev2"]
    trained.clear()
    run(copy, "--seed", "1")
    assert set(trained) == set(CHAIN) - {"world", "candidates", "cold_start", "rejection", "results"}
    assert json.loads((copy / "results.json").read_text())["seed"] == 1
    edits = tmp_path / "edits.jsonl"
    candidates = read_rows(copy / "candidates" / "candidates.jsonl")
    drawn = (copy / "candidates" / "stage.json").read_bytes()
    edits.write_text(json.dumps({"id": candidates[0]["id"], "drop": True}) + "\n")
    trained.clear()
    run(copy, "--seed", "1", "--cold-start.edits", str(edits))
    before = record(copy, "cold_start")["outputs"]
    edits.write_text("".join(json.dumps({"id": row["id"], "drop": True}) + "\n" for row in candidates[:40]))
    run(copy, "--seed", "1", "--cold-start.edits", str(edits))  # the same path, other edits
    assert record(copy, "cold_start")["outputs"] != before and "dev1" in trained
    assert (copy / "candidates" / "stage.json").read_bytes() == drawn  # nothing is drawn again for a person's edits
    inside = copy / "cold_start" / "edits.jsonl"
    shutil.copy(edits, inside)
    assert "lies in run_dir" in refused(capsys, "recipe", "r1", "--run-dir", copy, *SMALL, "--cold-start.edits", inside)
    assert inside.exists()


# ------------------------------------------------------------------------------------------------ data of one's own


def given_data(folder):
    """Data sets as a person would have them: problems of two domains, requests with responses, pairs, labels."""
    folder.mkdir()
    sums = [{"question": f"What is {n}+1?", "answer": str(n + 1), "domain": "math", "language": "en"} for n in range(9)]
    code = [
        {"question": f"Add {n}.", "tests": [f"assert f(1) == {n + 1}"], "domain": "code", "language": "en"}
        for n in range(3)
    ]
    requests = [
        {"question": "Hello!", "response": "<think>Greet.</think>Hello.", "answer": "Hello.", "domain": "general"},
        {"question": "Harm!", "response": "<think>No.</think>No.", "answer": "No.", "domain": "safety"},
    ]
    requests = [row | {"language": "en"} for row in requests]
    pairs = [{"prompt": "Hello!", "chosen": "Hello.", "rejected": "No."}]
    labels = [{"prompt": "Harm!", "completion": "No.", "label": True}]
    rows = {"problems": sums + code, "requests": requests * 3, "pairs": pairs, "safety": labels}
    for name, listed in rows.items():
        for split in ("train", "test"):
            write_rows(folder / f"{name}_{split}.jsonl", listed)
    write_rows(folder / "examples.jsonl", [{"question": f"{n}?", "response": f"<think>{n}</think>{n}"} for n in "ab"])
    return folder


class Solving:
    """A sampler that answers what `given_data` asks, once rightly and once wrongly."""

    def __call__(self, prompts, n, done=frozenset()):
        for i, prompt in enumerate(prompts):
            number = int(re.findall(r"(?:What is|Add) (\d+)", prompt)[-1])
            right = (
                f"\\boxed{{{number + 1}}}" if "What is" in prompt else f"```python\ndef f(x): return x + {number}\n```"
            )
            texts = [f"<think>Some thought {j}.</think>{right if j == 0 else 'No idea.'}" for j in range(n)]
            if i not in done:
                yield i, [TextCompletion(text, "stop", 9) for text in texts]


def test_data_and_models_of_ones_own(trained, tmp_path, capsys, monkeypatch):
    """The same chain from a released base model and a person's data, with the paper's settings."""
    data = given_data(tmp_path / "data")
    assets = tmp_path / "assets"
    world_tokenizer(WorldConfig(), assets / "tokenizer.model", 384)
    save_model(tmp_path / "released", Decoder(TINY, nnx.Rngs(params=1)), TINY, assets)
    monkeypatch.setattr(work, "pretrain_base", work.pretrain_base.original)
    monkeypatch.setattr(work, "_sampler", lambda run, path, *args: Solving())
    command = [
        "recipe", "r1", "--preset", "deepseek-v3-671b", "--run-dir", tmp_path / "run", "--world.data", data,
        "--base.checkpoint", tmp_path / "released", "--student-base.checkpoint", tmp_path / "released",
        "--base.dtype", "float32", "--cold-start.problems", 4, "--cold-start.n", 2, "--cold-start.workers", 1,
        "--rejection.n", 2, "--rejection.workers", 1, "--results.sampling.max-completion-length", 8,
        "--results.sampling.num-generations", 2, "--results.batch-size", 4,
    ]  # fmt: skip
    command = [str(part) for part in command]
    trained.clear()
    main(command)
    assert set(trained) == set(MODELS) - {"base"} | {"helpfulness", "harmlessness"}
    assert trained["zero"].grpo.num_minibatches == 16 and trained["zero"].grpo.max_completion_length == 32_768
    folder = tmp_path / "run"
    assert open_model(folder / "base").config == open_model(tmp_path / "released").config
    learned = read_rows(folder / "rejection" / "sft.jsonl")
    assert Counter(row["domain"] for row in learned if row["source"] != "requests") == {"math": 9, "code": 3}
    assert read_card(folder / "cold_start" / "cold_start.jsonl").counts["by way"].keys() == {
        "few_shot", "reflection", "refined", "zero"
    }  # fmt: skip
    scores = json.loads((folder / "results.json").read_text())["models"]["r1"]
    assert {"pass@1", "pass@1/math", "pass@1/code", "cons@2", "general", "harmless"} <= scores.keys()
    trained.clear()
    write_rows(data / "pairs_train.jsonl", [{"prompt": "Hello!", "chosen": "Hi.", "rejected": "No."}])
    main(command)  # other data, under the same name
    assert "helpfulness" in trained and "zero" not in trained
    (data / "safety_test.jsonl").unlink()
    assert "needs one file safety_test.jsonl" in refused(capsys, *command)
    write_rows(data / "safety_test.jsonl", [{"prompt": "Harm!", "completion": "No.", "label": True}])
    write_rows(data / "problems_test.jsonl", [{"question": "1+1?", "answer": "2", "domain": "maths", "language": "en"}])
    assert "problems_test.jsonl:1: domain='maths'; give one of math, code" in refused(capsys, *command)
    assert "world.data needs a released base model" in refused(capsys, "recipe", "r1", "--world.data", data)
    rules = ["--world.rules", "math_accuracy=math,physics", "code_accuracy=code"]
    assert "world.rules has math_accuracy for physics: name it in zero.reward" in refused(capsys, *command, *rules)
    assert "zero.seed=3: all stages have the recipe's --seed" in refused(capsys, *command, "--zero.seed", "3")


# --------------------------------------------------------------------------------------------- the whole, with training


WHOLE = [*SMALL, *(
    "--world.train-problems 300 --base.steps 4 --base.rows 8 --student-base.steps 4 --student-base.rows 8 "
    "--base.save-every 2 --student-base.save-every 2 --helpfulness.rows 8 --harmlessness.rows 8 "
    "--helpfulness.save-every 1"
).split()]  # fmt: skip
for _name in ("zero", "zero_language", "dev2", "r1", "student_rl"):
    _flag = _name.replace("_", "-")
    WHOLE += (
        f"--{_flag}.steps 2 --{_flag}.save-every 1 --{_flag}.grpo.num-prompts 4 --{_flag}.grpo.num-generations 4 "
        f"--{_flag}.grpo.num-microbatches 1 --{_flag}.eval.problems 4 --{_flag}.eval.k 2 --{_flag}.eval.every 1"
    ).split()
WHOLE += "--r1.general-from 1 --r1.general-prompts 2 --dev1.save-every 1 --dev3.save-every 1".split()


def whole(run_dir):
    """The recipe in a process of its own, with tiny models and samplers that know the answers."""
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT / 'tests')!r}]\n"
        "import test_recipes_r1 as t, test_recipes_r1_zero as z\n"
        "from r1jax.configs.model import ModelConfig\n"
        "from r1jax.configs.presets import MODEL_PRESETS\n"
        "MODEL_PRESETS |= {'nano': ModelConfig(**z.TINY), 'nano-qwen2': t.TINY}\n"
        "t.work._sampler = lambda run, path, *args: t.Knowing(path.parent.name != 'dev2')\n"
        f"t.main(['recipe', 'r1', '--run-dir', {str(run_dir)!r}, *t.WHOLE])"
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache")}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL)


@pytest.mark.skipif("R1JAX_TEST_WHOLE" not in os.environ, reason="some five minutes; set R1JAX_TEST_WHOLE=1")
def test_killed_in_every_stage_it_ends_the_same(tmp_path):
    assert whole(tmp_path / "once").wait() == 0
    folder, dice, within = tmp_path / "killed", random.Random(0), []
    for name in CHAIN:
        process = whole(folder)
        while not (folder / name / BEGUN).exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(dice.uniform(0, 0.8) * record(tmp_path / "once", name)["seconds"])
        if not (folder / name / DONE).exists():
            within.append(name)
        process.send_signal(signal.SIGKILL)
        process.wait()
    print("killed within", *within)  # the others were through before the signal came
    assert len(within) >= 10
    assert whole(folder).wait() == 0
    hashes = [{name: record(tmp_path / d, name)["outputs"] for name in CHAIN} for d in ("once", "killed")]
    assert hashes[0] == hashes[1]
    assert (tmp_path / "once" / "results.json").read_bytes() == (tmp_path / "killed" / "results.json").read_bytes()
