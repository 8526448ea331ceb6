"""Killed at any instant and restarted, a run ends with the same bits.

By hand, with a real preset and more kills:

    python tests/test_recipes_kill.py --kills 20 --run-dir /tmp/kills -- --steps 30 --base.steps 60
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

ROOT = Path(__file__).parents[1]
KINDS = ("write", "step", "start")  # where a kill lands: in a checkpoint's write, anywhere in a step, while restarting


def lines(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def checkpoint_folders(run_dir: Path) -> set[Path]:
    return set((run_dir / "checkpoints").glob("*/*"))


def launch(command: Sequence[str], run_dir: Path, env: Mapping[str, str]) -> subprocess.Popen:
    with (run_dir.parent / f"{run_dir.name}.log").open("a") as log:
        return subprocess.Popen([*command, "--run-dir", str(run_dir)], env=env, stdout=log, stderr=log, cwd=ROOT)


def wait_for(process: subprocess.Popen, condition) -> bool:
    """Whether `condition` came true while the process ran."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.002)
    return False


def finish(command: Sequence[str], run_dir: Path, env: Mapping[str, str]) -> None:
    code = launch(command, run_dir, env).wait()
    if code:
        log = (run_dir.parent / f"{run_dir.name}.log").read_text()
        raise AssertionError(f"{run_dir}: exit status {code}\n{log[-4000:]}")


def run_with_kills(
    command: Sequence[str], run_dir: Path, env: Mapping[str, str], total_lines: int, kills: int, seed: int
) -> list[str]:
    """Kills the run `kills` times on its way, then lets it finish. Returns where the kills landed."""
    rng = random.Random(seed)
    # A moment of the run is told by how many lines it has logged: so every kill lands, on a machine of any speed.
    moments = sorted(rng.sample(range(1, total_lines - 1), kills))
    landed = []
    for number, moment in enumerate(moments):
        process = launch(command, run_dir, env)
        kind = KINDS[number % len(KINDS)]
        if kind == "start" and number:
            time.sleep(rng.uniform(0.5, 6.0))
        else:
            wait_for(process, lambda: lines(run_dir) >= moment)  # noqa: B023 - used at once
            seen = checkpoint_folders(run_dir)
            if kind == "write":
                wait_for(process, lambda: checkpoint_folders(run_dir) - seen)  # noqa: B023
            time.sleep(rng.uniform(0.0, 0.15))
        running = process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        whole = all((folder / "complete.json").exists() for folder in checkpoint_folders(run_dir))
        landed.append(f"{kind} at line {lines(run_dir)}{'' if whole else ', a checkpoint half written'}")
        if not running:
            landed[-1] = f"{kind}: too late, the run had ended with status {process.returncode}"
    finish(command, run_dir, env)
    return landed


def logged(run_dir: Path, name: str) -> list[dict]:
    rows = [json.loads(line) for line in (run_dir / name).read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def final_arrays(run_dir: Path) -> dict[str, np.ndarray]:
    """Every leaf of every checkpoint that the run has kept."""
    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True))
    arrays = {}
    for folder in sorted(checkpoint_folders(run_dir)):
        tree = reader.restore(folder.resolve() / "state")
        arrays |= {f"{folder.relative_to(run_dir)}/{name}": np.asarray(leaf) for name, leaf in tree.items()}
    return arrays


def differences(run_dir: Path, other: Path) -> list[str]:
    """What is not the same, bit by bit, in two finished runs."""
    found = [name for name in ("metrics.jsonl", "samples.jsonl") if logged(run_dir, name) != logged(other, name)]
    a, b = final_arrays(run_dir), final_arrays(other)
    found += sorted(a.keys() ^ b.keys())
    return found + [name for name in sorted(a.keys() & b.keys()) if a[name].tobytes() != b[name].tobytes()]


def compare(command: Sequence[str], folder: Path, env: Mapping[str, str], kills: int, seed: int) -> list[str]:
    """Runs in peace and with kills; raises `AssertionError` for any difference. Returns where kills landed."""
    peaceful, killed = folder / "peaceful", folder / "killed"
    folder.mkdir(parents=True, exist_ok=True)
    finish(command, peaceful, env)
    landed = run_with_kills(command, killed, env, lines(peaceful), kills, seed)
    found = differences(peaceful, killed)
    assert not found, f"killed ({'; '.join(landed)}), these differ: {found}"
    assert len(final_arrays(killed)) > 50 and logged(killed, "metrics.jsonl")
    return landed


@pytest.mark.slow
def test_trap_7_killed_and_restarted_a_run_ends_with_the_same_bits(tmp_path):
    from test_recipes_r1_zero import ARGS, REWARD, REWARD_ARGS, command, environment

    (tmp_path / "scripted_reward.py").write_text(REWARD)
    (tmp_path / "mode").write_text("score")
    env = environment(REWARD_MODE=str(tmp_path / "mode"), PYTHONPATH=str(tmp_path))
    args = [*ARGS, *REWARD_ARGS, "--steps", "6", "--base.steps", "12"]  # pretraining saves every 5 steps
    landed = compare(command(*args), tmp_path, env, kills=4, seed=0)
    assert sum("too late" not in where for where in landed) >= 3, landed
    # What the comparison is worth: one bit of one array, or one number of the log, is found.
    assert differences(tmp_path / "peaceful", tmp_path / "killed") == []
    path = tmp_path / "killed" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"loss": ', '"loss": 1', 1))
    assert differences(tmp_path / "peaceful", tmp_path / "killed") == ["metrics.jsonl"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run-dir", type=Path, required=True, help="a new folder, for both runs")
    parser.add_argument("args", nargs="*", help="after --: arguments of experiments/r1_zero.py")
    options = parser.parse_args()
    if options.run_dir.exists():
        parser.error(f"--run-dir {options.run_dir} is there already")
    command = [sys.executable, str(ROOT / "experiments" / "r1_zero.py"), "--save-every", "1", *options.args]
    landed = compare(command, options.run_dir.resolve(), os.environ, options.kills, options.seed)
    print("\n".join(landed), f"{options.kills} kills: the same bits, the same log", sep="\n")


if __name__ == "__main__":
    main()
