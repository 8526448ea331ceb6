"""What a run writes down: metrics.jsonl, the same for TensorBoard, samples.jsonl. Resuming cuts all three back."""

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text
from tensorboardX import RecordWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary


class MetricsLog:
    """The log of one run. Each phase ("pretrain", "rl") counts its own steps.

    Args:
        run_dir: the run's folder; `metrics.jsonl`, `samples.jsonl` and `tensorboard/<phase>/` are written in it.
        resume: for each phase that goes on, the last step to keep: what a killed run logged after its last checkpoint
            is dropped and will be logged again. Phases not named are dropped whole, so `{}` starts from nothing.
    """

    def __init__(self, run_dir: Path, resume: Mapping[str, int]):
        self._run_dir, self._resume = Path(run_dir), dict(resume)
        self._run_dir.mkdir(parents=True, exist_ok=True)
        self._files = {}
        for name in ("metrics.jsonl", "samples.jsonl"):
            _cut_back(self._run_dir / name, self._resume)
            self._files[name] = (self._run_dir / name).open("a", buffering=1, encoding="utf-8")  # flushed by the line
        for folder in (self._run_dir / "tensorboard").glob("*"):
            if folder.name not in self._resume:
                shutil.rmtree(folder)
        self._boards: dict[str, RecordWriter] = {}

    def write(self, phase: str, step: int, values: Mapping[str, Any]) -> None:
        """Logs scalars (Python, NumPy or jax). NaN and infinities become null in metrics.jsonl."""
        scalars = {name: jsonable(value) for name, value in values.items()}
        self._line("metrics.jsonl", phase, step, scalars)
        # Not through SummaryWriter, which renames "pass@1" to "pass_1" and writes late, from a thread.
        board = self._boards.get(phase) or self._open_board(phase)
        curves = [Summary.Value(tag=name, simple_value=float(v)) for name, v in values.items() if v is not None]
        board.write(Event(wall_time=time.time(), step=int(step), summary=Summary(value=curves)).SerializeToString())
        board.flush()

    def samples(self, phase: str, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Logs one line a row; rows usually hold prompt, completion, reward and answer."""
        for row in rows:
            self._line("samples.jsonl", phase, step, {name: jsonable(value) for name, value in row.items()})

    def close(self) -> None:
        """Flushes and closes everything."""
        for closable in (*self._files.values(), *self._boards.values()):
            closable.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _line(self, name: str, phase: str, step: int, fields: dict) -> None:
        line = json.dumps({"phase": phase, "step": int(step), **fields}, ensure_ascii=False, allow_nan=False)
        self._files[name].write(line + "\n")

    def _open_board(self, phase: str) -> RecordWriter:
        folder = self._run_dir / "tensorboard" / phase
        folder.mkdir(parents=True, exist_ok=True)
        part = len(list(folder.iterdir()))  # a run restarted within a second must not write over its own file
        board = RecordWriter(str(folder / f"events.out.tfevents.{time.time():.0f}.{part:03d}"))
        head = [Event(wall_time=time.time(), file_version="brain.Event:2")]
        if part:  # TensorBoard forgets what earlier files say of this step and later ones
            start = SessionLog(status=SessionLog.START)
            head.append(Event(wall_time=time.time(), step=self._resume[phase] + 1, session_log=start))
        for event in head:
            board.write(event.SerializeToString())
        self._boards[phase] = board
        return board


def read_jsonl(path: Path) -> Iterator[dict]:
    """The objects in a JSON-lines file, in order; nothing if there is no such file, and no torn last line."""
    with contextlib.suppress(FileNotFoundError), Path(path).open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                return  # the process was killed while writing it
            yield json.loads(line)


def render_samples(rows: Iterable[Mapping[str, Any]]) -> Table:
    """A table for the terminal: prompt, completion, reward, answer. Text is shown as it is, newlines included."""
    table = Table(show_lines=True, expand=True)
    table.add_column("prompt", ratio=2, overflow="fold")
    table.add_column("completion", ratio=4, overflow="fold")
    table.add_column("reward", justify="right", no_wrap=True)
    table.add_column("answer", ratio=1, overflow="fold")
    for row in rows:
        reward = row.get("reward")
        table.add_row(
            Text(str(row.get("prompt", ""))),  # Text: a completion such as "[/b]" is no markup
            Text(str(row.get("completion", ""))),
            "–" if reward is None else f"{float(reward):.2f}",
            Text("–" if row.get("answer") is None else str(row["answer"])),
        )
    return table


def _cut_back(path: Path, resume: Mapping[str, int]) -> None:
    """Rewrites `path`, atomically, with only the lines that a resumed run keeps."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as kept:
        for row in read_jsonl(path):
            if row["step"] <= resume.get(row.get("phase"), -math.inf):
                kept.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.replace(partial, path)


def jsonable(value: Any) -> Any:
    """`value` with arrays as numbers and lists, and without numbers that JSON lacks."""
    if isinstance(value, Mapping):
        return {str(name): jsonable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if value is None or isinstance(value, str | bool):
        return value
    number = np.asarray(value).tolist()
    if isinstance(number, list):
        return jsonable(number)
    return None if isinstance(number, float) and not math.isfinite(number) else number
