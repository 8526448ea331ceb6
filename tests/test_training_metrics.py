"""The log of a run: readable after any kill, cut back to the checkpoint on resume, never invalid JSON."""

import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto import event_pb2

from r1jax.training.metrics import MetricsLog, read_jsonl, render_samples


def lines(run_dir, name="metrics.jsonl"):
    return [json.loads(line) for line in (run_dir / name).read_text().splitlines()]


def events(run_dir, phase):
    """What TensorBoard would show: {tag: {step: value}}, purges applied in file order."""
    shown = {}
    for path in sorted((run_dir / "tensorboard" / phase).glob("events*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            at += 12 + size + 4
            if event.HasField("session_log") and event.session_log.status == event_pb2.SessionLog.START:
                shown = {tag: {s: v for s, v in curve.items() if s < event.step} for tag, curve in shown.items()}
            for value in event.summary.value:
                shown.setdefault(value.tag, {})[event.step] = value.simple_value
    return shown


def test_lines_and_events_hold_the_same_numbers(tmp_path):
    with MetricsLog(tmp_path / "run", resume={}) as log:
        log.write("pretrain", 3, {"loss": np.float32(1.5)})
        log.write("rl", 0, {"reward": jnp.float32(0.25), "eval/pass@1": 1})
        log.samples("rl", 0, [{"prompt": "1+1", "completion": "ü\n2", "reward": 1.0, "answer": "2"}])
    assert lines(tmp_path / "run") == [
        {"phase": "pretrain", "step": 3, "loss": 1.5},
        {"phase": "rl", "step": 0, "reward": 0.25, "eval/pass@1": 1},
    ]
    sample = {"phase": "rl", "step": 0, "prompt": "1+1", "completion": "ü\n2", "reward": 1.0, "answer": "2"}
    assert lines(tmp_path / "run", "samples.jsonl") == [sample]
    assert events(tmp_path / "run", "pretrain") == {"loss": {3: 1.5}}
    assert events(tmp_path / "run", "rl") == {"reward": {0: 0.25}, "eval/pass@1": {0: 1.0}}


def test_every_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    log = MetricsLog(tmp_path, resume={})
    log.write("rl", 1, {"reward": 0.5})
    log.samples("rl", 1, [{"prompt": "p"}])
    assert len(lines(tmp_path)) == 1 and len(lines(tmp_path, "samples.jsonl")) == 1
    assert events(tmp_path, "rl") == {"reward": {1: 0.5}}
    log.close()


def test_numbers_that_json_lacks_become_null(tmp_path):
    with MetricsLog(tmp_path, resume={}) as log:
        log.write("rl", 1, {"kl": jnp.nan, "loss": -np.inf, "grad_norm": np.float32("inf"), "reward": None})
        log.samples("rl", 1, [{"reward": float("nan"), "parts": [1.0, float("inf")], "row": np.arange(2)}])
    assert lines(tmp_path) == [{"phase": "rl", "step": 1, "kl": None, "loss": None, "grad_norm": None, "reward": None}]
    expected = {"phase": "rl", "step": 1, "reward": None, "parts": [1.0, None], "row": [0, 1]}
    assert lines(tmp_path, "samples.jsonl") == [expected]


def test_resume_keeps_each_phase_up_to_its_step(tmp_path):
    with MetricsLog(tmp_path, resume={}) as log:
        for phase in ("pretrain", "rl"):
            for step in range(4):
                log.write(phase, step, {"loss": step})
                log.samples(phase, step, [{"prompt": phase}])
    with MetricsLog(tmp_path, resume={"pretrain": 3, "rl": 1}) as log:
        log.write("rl", 2, {"loss": 20})
    for name in ("metrics.jsonl", "samples.jsonl"):
        kept = [(row["phase"], row["step"]) for row in lines(tmp_path, name)]
        resumed = [("rl", 2)] if name == "metrics.jsonl" else []
        assert kept == [("pretrain", step) for step in range(4)] + [("rl", 0), ("rl", 1), *resumed]
    assert events(tmp_path, "pretrain") == {"loss": {0: 0, 1: 1, 2: 2, 3: 3}}
    assert events(tmp_path, "rl") == {"loss": {0: 0, 1: 1, 2: 20}}


def test_phases_not_named_are_dropped(tmp_path):
    with MetricsLog(tmp_path, resume={}) as log:
        log.write("pretrain", 1, {"loss": 1})
        log.write("rl", 1, {"loss": 1})
    with MetricsLog(tmp_path, resume={"pretrain": 1}) as log:
        log.write("rl", 1, {"loss": 2})
    assert [(row["phase"], row["loss"]) for row in lines(tmp_path)] == [("pretrain", 1), ("rl", 2)]
    assert events(tmp_path, "rl") == {"loss": {1: 2}}


@pytest.mark.parametrize("torn", ['{"phase": "rl", "step": 1, "re', '{"phase": "rl", "step": 1}'])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    whole = '{"phase": "rl", "step": 0, "reward": 0.5}\n'
    (tmp_path / "metrics.jsonl").write_text(whole + torn)
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [0]
    with MetricsLog(tmp_path, resume={"rl": 1}) as log:
        log.write("rl", 1, {"reward": 0.75})
    assert (tmp_path / "metrics.jsonl").read_text() == whole + '{"phase": "rl", "step": 1, "reward": 0.75}\n'


def test_a_missing_file_has_no_lines(tmp_path):
    assert list(read_jsonl(tmp_path / "metrics.jsonl")) == []


def test_samples_print_as_they_are():
    rows = [
        {"prompt": "3 + 4", "completion": "<think>[bold]7[/bold]</think>", "reward": 1, "answer": "7"},
        {"prompt": "9", "completion": "[/unopened]", "reward": None, "answer": None},
    ]
    console = Console(file=io.StringIO(), width=100)
    console.print(render_samples(rows))
    text = console.file.getvalue()
    assert "<think>[bold]7[/bold]</think>" in text and "[/unopened]" in text and "1.00" in text and "–" in text
