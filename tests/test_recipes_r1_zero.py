"""A whole run of a tiny model, over two devices and over one: what it logs, how it goes on, how it fails."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
import pytest

from r1jax.configs import presets
from r1jax.configs.model import ModelConfig
from r1jax.errors import CheckpointError, ConfigError, DataError, RewardError
from r1jax.recipes import r1_zero
from r1jax.recipes.config import parse_r1_zero
from r1jax.sharding import make_mesh
from r1jax.training import loop
from r1jax.training.grpo import make_grpo_update
from r1jax.training.metrics import read_jsonl
from r1jax.training.programs import Programs

ROOT = Path(__file__).parents[1]
TINY = dict(
    vocab_size=256, hidden_size=16, num_hidden_layers=1, first_k_dense_replace=0, intermediate_size=32,
    num_attention_heads=2, q_lora_rank=8, kv_lora_rank=8, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=4,
    n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, n_group=2, topk_group=1, moe_intermediate_size=8,
    num_nextn_predict_layers=1, max_position_embeddings=512,
)  # fmt: skip
ARGS = (
    "--seed 5 --base.steps 6 --base.rows 8 --steps 3 --save-every 1 --eval.every 2 --eval.problems 8 --eval.k 2 "
    "--grpo.num-prompts 8 --grpo.num-generations 4 --grpo.max-completion-length 8 --grpo.num-microbatches 1 "
    "--grpo.ref-model-sync-steps 2 --optimizer.learning-rate 0.01 --optimizer.warmup-steps 0 --reward.timeout 2 "
    "--mesh.data 1 --mesh.fsdp -1"  # prompts, batches and weights are split
).split()
# Its behaviour is read from a file, so that one run can meet all of them: a run's settings may not change.
REWARD = """
import os, time

def scripted(prompts, completions, completion_ids, **columns):
    assert all(1 <= len(ids) <= 8 for ids in completion_ids)
    with open(os.environ["REWARD_MODE"]) as file:
        mode = file.read()
    if mode == "raise":
        raise ValueError("not today")
    if mode == "hang":
        time.sleep(60)
    return [float(sum(map(ord, text)) % 7) for text in completions][: 1 if mode == "short" else None]
"""
REWARD_ARGS = "--reward.functions scripted_reward:scripted --reward.weights 1.0".split()


def command(*args) -> list[str]:
    """`python experiments/r1_zero.py`, with the tiny model for "nano"."""
    code = (
        f"import runpy, sys\nfrom r1jax.configs import presets\nfrom r1jax.configs.model import ModelConfig\n"
        f"presets.MODEL_PRESETS['nano'] = ModelConfig(**{TINY!r})\n"
        f"runpy.run_path({str(ROOT / 'experiments' / 'r1_zero.py')!r}, run_name='__main__')"
    )
    return [sys.executable, "-c", code, *map(str, args)]


def environment(**more) -> dict[str, str]:
    """One device; compiled programs are shared by all runs of the tests."""
    cache = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"), "XLA_FLAGS": "",
             "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}  # fmt: skip
    return os.environ | cache | more


class QuickPrograms(Programs):
    """Compiled without optimisation, and once for all runs here, whose settings differ in nothing that is compiled."""

    compiled: ClassVar[dict[str, Any]] = {}
    called: ClassVar[list[str]] = []

    def compile(self, name, *args, **options):
        if name not in self.compiled:
            self.compiled[name] = super().compile(name, *args, **options | {"run_once": True})
        return lambda *args: self.called.append(name) or self.compiled[name](*args)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The tiny model, the reward function, and the file that tells it what to do."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "scripted_reward.py").write_text(REWARD)
    (folder / "mode").write_text("score")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets.MODEL_PRESETS, "nano", ModelConfig(**TINY))
        patch.setattr(r1_zero, "Programs", QuickPrograms)
        patch.setattr(r1_zero.sharding, "make_mesh", lambda shape: make_mesh(shape, jax.devices()[:2]))
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
        patch.setenv("REWARD_MODE", str(folder / "mode"))
        patch.syspath_prepend(str(folder))
        yield folder


def run(run_dir, *args):
    return r1_zero.run(parse_r1_zero([*ARGS, *REWARD_ARGS, "--run-dir", str(run_dir), *args]))


@pytest.fixture(scope="module")
def finished(world):
    """The folder of a whole run on two devices."""
    run_dir = world / "finished"
    assert run(run_dir) == run_dir / "report.html"
    return run_dir


@pytest.fixture
def copy(finished, tmp_path):
    """The finished run in a folder of its own, to go further or be damaged."""
    return shutil.copytree(finished, tmp_path / "run")


def rows(run_dir, phase="rl"):
    return [row for row in read_jsonl(run_dir / "metrics.jsonl") if row["phase"] == phase]


def without_times(rows):
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def steps(run_dir):
    return [int(folder.name) for folder in sorted((run_dir / "checkpoints" / "rl").iterdir())]


def test_what_a_run_leaves(finished):
    assert [row["step"] for row in rows(finished, "pretrain")] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows(finished) if "loss" in row] == [1, 2, 3]
    assert [row["step"] for row in rows(finished) if "eval/cons@2" in row] == [0, 2, 3]  # before, every 2, last
    assert all(row["reflection/all"] == 0 for row in rows(finished) if "loss" in row)  # sums say neither wait nor but
    assert steps(finished) == [2, 3]
    assert "<html" in (finished / "report.html").read_text()
    assert json.loads((finished / "config.json").read_text())["grpo"]["num_prompts"] == 8
    assert (finished / "samples.jsonl").stat().st_size and list((finished / "tensorboard" / "rl").iterdir())
    assert json.loads((finished / "compile_times.json").read_text())


def test_the_loops_sampler_and_learner_agree_at_every_step(finished):
    """Traps 1, 5 and 6 in the loop itself: a fresh rollout after every update, and a first ratio of 1."""
    updates = [row for row in rows(finished) if "loss" in row]
    for row in updates:
        assert row["sampling/sampling_logp_difference/max"] <= 1e-5
        assert row["ratio_mean"] == pytest.approx(1, abs=1e-5)
        assert row["clip_ratio/region_mean"] == 0
        assert row["grad_norm"] > 0 and row["reward_std"] > 0
        assert row["learning_rate"] == pytest.approx(0.01)
        assert row["num_tokens"] == pytest.approx(32 * row["completions/mean_length"])


def test_the_reference_is_replaced_on_schedule(finished):
    """Every second step: the KL of step 1 is that of a policy to itself, of step 2 not, of step 3 again."""
    first, second, third = (row["kl"] for row in rows(finished) if "loss" in row)
    assert first == pytest.approx(0, abs=1e-9) and third == pytest.approx(0, abs=1e-9)
    assert second > 1e-6


def test_trap_7_going_further_neither_repeats_nor_skips(finished, copy):
    before = rows(copy)
    run(copy)  # nothing is left to do
    assert rows(copy) == before
    prompts, seeds = [], []
    original = r1_zero.PromptBatches.__getitem__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(r1_zero.PromptBatches, "__getitem__", lambda self, i: prompts.append(i) or original(self, i))
        patch.setattr(loop, "make_grpo_update", lambda *args: seeds.append(args[4:]) or make_grpo_update(*args))
        run(copy, "--steps", "4")
    assert prompts == [3] and seeds == [(5,)]
    assert rows(copy)[: len(before)] == before
    assert [row["step"] for row in rows(copy)[len(before) :]] == [4, 4]  # the update, and the evaluation
    assert steps(copy) == [3, 4]


def test_trap_7_pretraining_goes_on_where_it_was_saved(finished, copy, monkeypatch):
    shutil.rmtree(copy / "checkpoints" / "rl")
    shutil.rmtree(copy / "checkpoints" / "base" / "00000006")
    monkeypatch.setattr(r1_zero, "reinforce", lambda *args: None)
    QuickPrograms.called.clear()
    run(copy)
    assert QuickPrograms.called == ["pretrain"]  # step 6, after the saved 5
    assert without_times(rows(copy, "pretrain")) == without_times(rows(finished, "pretrain"))
    assert not rows(copy)


@pytest.mark.parametrize(
    "mode, message",
    [
        ("short", "'scripted' returned 1 scores for 16 completions"),
        ("hang", "no completion of this step could be scored"),
    ],
)
def test_a_reward_function_that_fails_ends_the_run_in_one_sentence(world, copy, mode, message):
    (world / "mode").write_text(mode)
    QuickPrograms.called.clear()
    try:
        with pytest.raises(RewardError, match=message) as error:
            run(copy, "--steps", "4")
        assert "\n" not in str(error.value)
        assert QuickPrograms.called == ["sample", "reference log-probabilities"]  # and no update of the state
        assert steps(copy) == [2, 3]  # what was saved stays
    finally:
        (world / "mode").write_text("score")


@pytest.mark.parametrize("split", ["train", "test"])
def test_prompts_that_are_too_long_do_not_wait_for_the_base_model(finished, tmp_path, monkeypatch, split):
    problems = {name: [{"question": "What is 1+1?"}] * 9 for name in ("train", "test")}
    problems[split].append({"question": "What is 1+1" + "+1" * 40 + "?"})
    monkeypatch.setattr(r1_zero, "load_problems", lambda folder, split: problems[split])
    shutil.copytree(finished / "world", tmp_path / "world")
    monkeypatch.setattr(QuickPrograms, "compile", lambda self, name, *args, **options: pytest.fail(name))
    with pytest.raises(DataError, match=r"What is 1\+1.* makes a prompt of \d+ tokens"):
        run(tmp_path)
    # Nothing has run: a better setting finds the folder free.
    assert not (tmp_path / "checkpoints").exists() and not (tmp_path / "config.json").exists()


def test_a_second_process_is_kept_out_of_a_run(copy):
    before = (copy / "metrics.jsonl").read_bytes()
    with (copy / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process is running there; wait for it"):
            run(copy, "--steps", "4")
    assert (copy / "metrics.jsonl").read_bytes() == before and steps(copy) == [2, 3]


def test_the_command_goes_on_with_another_number_of_devices_and_fails_with_status_2(world, copy):
    """A run of two devices goes on with one; then its reward function raises."""
    mode = world / "raising"
    mode.write_text("raise")
    done = subprocess.run(
        command(*ARGS, *REWARD_ARGS, "--run-dir", copy, "--steps", "5"),
        env=environment(REWARD_MODE=str(mode), PYTHONPATH=str(world), XLA_FLAGS="--xla_backend_optimization_level=0"),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith("error: reward function 'scripted' raised ValueError: not today")
    )
    assert "Traceback" not in done.stderr


def damage(run_dir):
    """One bit, in the middle of the largest file of the newest checkpoint."""
    folder = run_dir / "checkpoints" / "rl" / "00000003"
    largest = max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    return folder


def test_a_corrupt_checkpoint_is_named_with_the_way_out(copy):
    folder = damage(copy)
    with pytest.raises(CheckpointError, match=f"{folder} is damaged .*delete that folder to continue from step 2") as e:
        run(copy, "--steps", "4")
    assert "\n" not in str(e.value)
    shutil.rmtree(folder)
    run(copy)  # step 3 again, from step 2
    assert steps(copy)[-1] == 3


def test_trap_18_evaluation_batches_draw_their_own_noise(finished):
    """Part 1 of a step is no copy of part 0, part 10 none of part 1, nor one step of another, nor RL's of eval's."""
    runtime = object.__new__(r1_zero.Runtime)
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    object.__setattr__(runtime, "mesh", mesh)
    object.__setattr__(runtime, "seed", 0)
    names = [f"{name} {part}" for name in ("sample", "evaluate") for part in range(12)] + ["init", "evaluate", "sample"]
    keys = {tuple(np.asarray(jax.random.key_data(runtime.key(name, step)))) for name in names for step in range(3)}
    assert len(keys) == 3 * len(names)
