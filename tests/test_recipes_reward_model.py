"""`r1jax reward-model`, and what it leaves: a model that ends the same however often it is stopped, and scores."""

import json

import numpy as np
import pytest
from flax import nnx
from helpers import random_model, tiny_llama3
from hf_folders import deepseek_folder, write_files
from test_commands import TEMPLATE, refused

from r1jax.checkpoints import hf
from r1jax.checkpoints.model import fingerprint, open_model
from r1jax.checkpoints.run import RunCheckpoints
from r1jax.checkpoints.scalar import ScalarHead, open_scalar_model
from r1jax.cli import main
from r1jax.errors import CheckpointError, ConfigError
from r1jax.rewards import RewardPool
from r1jax.rewards.reward_model import RewardModelReward
from r1jax.sharding import make_mesh
from r1jax.training import loop

CONFIG = tiny_llama3(num_hidden_layers=1, first_k_dense_replace=1, vocab_size=336, max_position_embeddings=64)
GOOD, BAD = "<think>\nhm\n</think>\n\nyes", "<think>\nsure\n</think>\n\nno"


def pairs(start):
    return [
        {"prompt": f"{a} + 1", "chosen": f"{GOOD} {a % 7}", "rejected": f"{BAD} {a % 7}"}
        for a in range(start, start + 20)
    ]


def labels(start):
    return [
        {"prompt": row["prompt"], "completion": row["chosen" if a % 2 else "rejected"], "label": a % 2}
        for a, row in enumerate(pairs(start))
    ]


OPTIONS = "--epochs 3 --rows 8 --save-every 2 --optimizer.learning-rate 1e-2".split()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    hf.save(folder, random_model(CONFIG), CONFIG, assets=deepseek_folder(folder))
    write_files(folder, {"chat_template.jinja": TEMPLATE})
    files = {"pairs": pairs(0), "held_out": pairs(30), "labels": labels(0)}
    write_files(folder.parent, {f"{k}.jsonl": "".join(json.dumps(r) + "\n" for r in rows) for k, rows in files.items()})
    return folder


def arguments(checkpoint, run_dir, *more, data="pairs"):
    data = checkpoint.parent / f"{data}.jsonl"
    args = ("reward-model", "--checkpoint", checkpoint, "--data", data, "--run-dir", run_dir, *OPTIONS, *more)
    return [str(a) for a in args]


def held_out(checkpoint):
    return ("--summary-only", "--eval-data", checkpoint.parent / "held_out.jsonl")


def metrics(run_dir):
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


@pytest.fixture(scope="module", autouse=True)
def _one_compile_cache():
    """The tests' own, in the place of one in each run's folder: the runs here compile the same programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("r1jax.runtime.compile_cache", lambda folder: None)
        yield


@pytest.fixture(scope="module")
def trained(checkpoint):
    run_dir = checkpoint.parent / "run"
    main(arguments(checkpoint, run_dir, *held_out(checkpoint)))
    return run_dir


@pytest.fixture(scope="module")
def reward(trained):
    return RewardModelReward(trained, batch_size=4)


def test_held_out_pairs_are_told_apart(trained):
    evaluated = [row for row in metrics(trained) if "eval_accuracy" in row]
    assert [row["step"] for row in evaluated] == [0, 2, 4, 6, 8]
    last = evaluated[-1]
    assert last["eval_accuracy"] > 0.9 and last["eval_loss"] < 0.3 < evaluated[0]["eval_loss"]
    assert last["eval_margin/low"] < last["eval_margin"] < last["eval_margin/high"]
    assert last["eval_accuracy/low"] <= last["eval_accuracy"] <= last["eval_accuracy/high"] <= 1
    learned = [row for row in metrics(trained) if "loss" in row]
    assert {"accuracy", "margin", "chosen_reward", "rejected_reward", "grad_norm"} <= learned[-1].keys()
    cards = json.loads((trained / "data.json").read_text())
    assert cards["data"]["examples"] == 20 and cards["data"]["sha256"] != cards["eval_data"]["sha256"]
    assert sum(row["num_tokens"] for row in learned) == 3 * cards["data"]["tokens"]
    page = (trained / "report.html").read_text()
    assert "Reward model" in page and "share of examples on the right side" in page


def test_nobody_takes_it_for_a_generator(trained, checkpoint, capsys, tmp_path):
    assert open_scalar_model(trained).head == ScalarHead("pairs", summary_only=True)
    for path in (trained, trained / "model"):
        with pytest.raises(CheckpointError, match="holds a reward model, which scores text and writes none"):
            open_model(path)
    told = refused(capsys, "generate", "--checkpoint", str(trained), "--prompt", "1 + 1")
    assert "holds a reward model" in told
    assert "holds a reward model" in refused(capsys, *arguments(trained, tmp_path / "run"))
    with pytest.raises(CheckpointError, match="holds no reward model"):
        open_scalar_model(checkpoint)


def test_stopped_anywhere_it_ends_the_same(trained, checkpoint, monkeypatch, capsys):
    """Stopped after a checkpoint and in between, and half way through writing the model."""
    run_dir = checkpoint.parent / "again"
    args = arguments(checkpoint, run_dir, *held_out(checkpoint))
    steps = iter((3, 5))

    class Stop(BaseException):
        pass

    def stopping(batches, first, last):
        stop = next(steps, None)
        for step in range(first, last):
            if step == stop:
                raise Stop
            yield batches[step]

    with monkeypatch.context() as patch:
        patch.setattr(loop, "prefetch", stopping)
        for _ in range(2):
            with pytest.raises(Stop):
                main(args)
        assert RunCheckpoints(run_dir / "checkpoints" / "reward_model").latest_step() == 4
        patch.setattr("r1jax.checkpoints.hf.copy_assets", lambda *_: (_ for _ in ()).throw(Stop()))
        with pytest.raises(Stop):
            main(args)
    assert (run_dir / "model" / "head.json").exists() and not (run_dir / "model" / "model.json").exists()
    main(args)
    assert "resuming after step" in capsys.readouterr().out
    assert fingerprint(open_scalar_model(run_dir).model) == fingerprint(open_scalar_model(trained).model)
    assert metrics(run_dir) == metrics(trained)
    main(args)  # nothing is left to do
    assert "complete" in capsys.readouterr().out
    told = refused(capsys, *args, "--kind", "pointwise")
    assert "its fields are prompt, chosen, rejected" in told


def test_malformed_rows_and_settings_leave_nothing(checkpoint, capsys, tmp_path):
    def told(*more):
        out = refused(capsys, *arguments(checkpoint, tmp_path / "run", *more))
        assert not (tmp_path / "run").exists()
        return out

    bad = write_files(tmp_path, {"bad.jsonl": json.dumps(pairs(0)[0]) + '\n\n{"chosen": "a"}\n'}) / "bad.jsonl"
    assert "bad.jsonl:3: its fields are chosen" in told("--data", bad)
    assert "length=65: must not exceed" in told("--length", 65)
    assert "rows / num_microbatches=4: must be a multiple of 8" in told("--num-microbatches", 2)
    assert "none of its 20 rows can be learned" in told("--length", 4)


# ------------------------------------------------------------------------------------------------- as a reward


def test_it_scores_the_summary_alone_and_gives_none_where_there_is_none(reward):
    prompts = ["9 + 1"] * 6
    completions = [f"{GOOD} 3", f"{BAD} 3", "<think>\nsure\n</think>\n\nyes 3", "yes 3", "<think>\nyes", "yes" * 80]
    scores = reward(prompts, completions, answer=["10"] * 6)
    assert scores[0] > scores[1]
    assert scores[2] == pytest.approx(scores[0], abs=1e-5) and scores[3] == pytest.approx(scores[0], abs=1e-5)
    assert scores[4:] == [None, None]  # cut off while it thought; longer than the model's positions
    assert reward(["9 + 1<think>\n"], ["hm</think>\n\nyes 3"])[0] == pytest.approx(scores[0], abs=1e-5)
    assert reward([], []) == []


def test_scores_are_the_model_s_whatever_shares_the_batch(trained, reward):
    model = open_scalar_model(trained).model
    completions = [f"{GOOD} {'0' * n}" for n in (1, 17, 3, 30, 2)]
    scores = reward(["p"] * 5, completions)
    alone = [reward(["p"], [text])[0] for text in completions]
    np.testing.assert_allclose(scores, alone, rtol=1e-5, atol=1e-5)
    ids = reward._encoder.encode("p", completions[1])
    score = nnx.jit(lambda model, *inputs: model(*inputs))
    assert float(score(model, np.array([ids]), np.array([len(ids)]))[0]) == pytest.approx(scores[1], abs=1e-4)
    assert reward._score._cache_size() <= 3  # lengths of 16, 32 and 64: few shapes, few programs


def test_it_scores_on_a_mesh_in_bfloat16_and_as_a_probability(trained, reward):
    prompts, completions = ["9 + 1"] * 3, [f"{GOOD} 3", f"{BAD} 3", "<think>"]
    scores = reward(prompts, completions)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    there = RewardModelReward(trained, mesh=mesh, probability=True, empty=-1.0)(prompts, completions)
    np.testing.assert_allclose(there[:2], 1 / (1 + np.exp(-np.array(scores[:2]))), rtol=1e-4)
    assert there[2] == -1.0
    rough = RewardModelReward(trained, dtype="bfloat16")
    assert rough(prompts[:1], completions[:1])[0] == pytest.approx(scores[0], abs=0.5)
    assert rough._state["score"].get_value().dtype == np.float32
    with pytest.raises(ConfigError, match="batch_size=3: must be a multiple of 4"):
        RewardModelReward(trained, mesh=mesh, batch_size=3)


def test_in_a_pool_it_scores_general_prompts_beside_rules(reward):
    with RewardPool(["format"], local=[reward], domains={"reward_model": ("general",)}) as pool:
        assert pool.names == ("format", "reward_model")
        columns = {"domain": ["general", "reasoning"]}
        batch = pool.submit(["9 + 1"] * 2, [f"{GOOD} 3"] * 2, columns).result()
    expected = reward(["9 + 1"], [f"{GOOD} 3"])[0]
    np.testing.assert_allclose(batch.rewards, [[0, expected], [0, np.nan]], rtol=1e-5)
    np.testing.assert_allclose(batch.total, [expected, 0], rtol=1e-5)


def test_labelled_responses_are_seen_whole(checkpoint):
    run_dir = checkpoint.parent / "safety"
    main(arguments(checkpoint, run_dir, "--kind", "pointwise", "--epochs", 1, data="labels"))
    assert json.loads((run_dir / "data.json").read_text())["data"]["positive"] == 10
    safety = RewardModelReward(run_dir)
    assert safety.head == ScalarHead("pointwise", summary_only=False)
    whole, other = safety(["9 + 1"] * 2, [f"{GOOD} 3", "<think>\nsure\n</think>\n\nyes 3"])
    assert whole != pytest.approx(other, abs=1e-4)  # the thinking counts
