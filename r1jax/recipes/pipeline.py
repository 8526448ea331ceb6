"""A chain of stages with provenance: what is unchanged is not run again, what was killed goes on.

    <run_dir>/pipeline.json        the stages in their order
    <run_dir>/<stage>/begun.json   what a stage is made from, while it is being made
    <run_dir>/<stage>/stage.json   the same, and the hashes of what it made. Written last: by it the stage is done

What is to be made again is moved away whole before it is removed, so that no half of it is ever gone on with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

import r1jax
from r1jax.errors import CheckpointError, ConfigError, R1JaxError, check_field
from r1jax.files import write_json
from r1jax.recipes.artefacts import sha256_of
from r1jax.recipes.run_folder import alone, differences
from r1jax.recipes.stage import (
    BEGUN,
    CHAIN,
    DONE,
    FAILURE,
    METRICS,
    Stage,
    StageError,
    StageRun,
    check_chain,
    plain_config,
)
from r1jax.training.metrics import jsonable

_UNCHANGED, _RESUMED, _RUN = range(3)
_STATES = ("unchanged", "resumed", "run")


@dataclasses.dataclass(frozen=True)
class _Outcome:
    stage: Stage
    state: str
    record: Mapping[str, Any]


class Pipeline:
    """Stages in the order in which they run; each is run only where its record is not what it would be now.

    Args:
        run_dir: holds a folder for each stage. One process at a time works there.
        seed: of every stage.

    Raises:
        ConfigError: two stages of one name, an input that no earlier stage puts out, a name that is no file's, a
            configuration that is not plain.
    """

    def __init__(self, stages: Sequence[Stage], run_dir: Path, seed: int, console: Console | None = None):
        check_field(seed >= 0, "seed", seed, "must not be negative")
        check_chain(stages)
        self.stages = tuple(stages)
        self.run_dir, self.seed, self.console = Path(run_dir), seed, console or Console()
        self._configs = {stage.name: plain_config(stage) for stage in stages}
        self._hashes: dict[str, str] = {}  # of outputs as "stage/output", once they are known to be whole

    def run(self, only: str | None = None, start: str | None = None) -> list[Path]:
        """Runs what is not there yet or no longer what it would be, and returns the folders of the stages.

        A stage is unchanged when its record names the same seed, configuration, version of r1jax and hashes of inputs,
        and its outputs have the hashes recorded. One that was begun from the same goes on where it was killed. What
        was made or begun from anything else is removed, and made anew.

        Args:
            only: run this stage alone, again if it is complete. Its inputs must be there as their stages left them.
            start: make this stage again even if it is unchanged, and then whatever is changed by that. It is removed
                at once: a run that is interrupted and started without `start` ends the same.

        Raises:
            R1JaxError: in one sentence, whatever a person can mend. What was finished stays, what was begun goes on.
        """
        names = [stage.name for stage in self.stages]
        for option, name in (("only", only), ("from", start)):
            check_field(name is None or name in names, option, name, f"must be one of {', '.join(names)}")
        check_field(only is None or start is None, "from", start, f"cannot go together with only={only!r}; give one")
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"run_dir={str(self.run_dir)!r}: cannot be written ({error.strerror}); choose a folder that can"
            ) from None
        self._hashes.clear()
        with alone(self.run_dir), _one_sentence(self.run_dir):
            self._agreed(lambda: self._open(start))
            outcomes = [
                self._stage(number, stage, stage.name == only)
                for number, stage in enumerate(self.stages, 1)
                if only in (None, stage.name)
            ]
        self.console.print(_table(outcomes))
        return [self.run_dir / outcome.stage.name for outcome in outcomes]

    def _open(self, start: str | None) -> int:
        chain = [
            {"name": s.name, "title": s.title, "inputs": dict(s.inputs), "outputs": list(s.outputs)}
            for s in self.stages
        ]
        for stage in self.stages:  # before anything runs
            self._check_ours(self.run_dir / stage.name)
        write_json(self.run_dir / CHAIN, chain)
        for stage in self.stages:
            shutil.rmtree(self._removed(stage), ignore_errors=True)  # what a kill left half removed
            if stage.name == start and (self.run_dir / start / DONE).exists():
                self._say(f"{start}: asked for: run again")
                self._remove(stage)
        return 0

    def _check_ours(self, folder: Path) -> None:
        """Raises `ConfigError` for what was not left by a stage: that may be anything, and is never removed."""
        if _read(folder / DONE) is not None or _read(folder / BEGUN) is not None:
            return
        # A kill may have come before begun.json was whole.
        if folder.is_file() or (folder.exists() and any(not p.name.startswith(BEGUN) for p in folder.iterdir())):
            raise ConfigError(
                f"{folder} holds something that no stage has left there: move it, or use another --run-dir"
            )

    def _stage(self, number: int, stage: Stage, again: bool) -> _Outcome:
        folder = self.run_dir / stage.name
        state = self._agreed(lambda: self._prepare(stage, again))
        how = {_UNCHANGED: " (unchanged)", _RESUMED: " (resumed)", _RUN: ""}[state]
        self._say(f"[{number}/{len(self.stages)}] {stage.name}: {stage.title}{how}")
        if state != _UNCHANGED:
            inputs = {name: self.run_dir / source for name, source in stage.inputs.items()}
            given = StageRun(folder, inputs, stage.config, self.seed, self.console)
            with _failures_named(stage, folder), _clock(folder / BEGUN) as seconds:
                results = jsonable(dict(stage.run(given)))
            with _failures_named(stage, folder):
                self._agreed(lambda: self._finish(stage, results, seconds()))
        return _Outcome(stage, _STATES[state], _read(folder / DONE))

    def _prepare(self, stage: Stage, again: bool) -> int:
        """Which of _UNCHANGED, _RESUMED and _RUN it is; in all but the first case the folder is ready for the stage."""
        folder, identity = self.run_dir / stage.name, self._identity(stage, warn=again)
        done, begun = _read(folder / DONE), _read(folder / BEGUN)
        if done is not None:
            why = _changes(identity, done) or self._damage(stage, done["outputs"])
            if not why and not again:
                if {**done, **identity} != done:  # a title, or where an input comes from: nothing that changes a bit
                    write_json(folder / DONE, {**done, **identity})
                self._clean(folder)
                self._hashes |= {f"{stage.name}/{n}": o["sha256"] for n, o in done["outputs"].items()}
                return _UNCHANGED
            self._say(f"{stage.name}: {why or 'asked for'}: run again")
        elif begun is not None:
            why = _changes(identity, begun)
            if not why:
                return _RESUMED
            self._say(f"{stage.name}: {why}: begun anew")
        self._remove(stage)
        folder.mkdir()
        write_json(folder / BEGUN, {**identity, "seconds": 0.0})
        return _RUN

    def _identity(self, stage: Stage, warn: bool) -> dict[str, Any]:
        inputs = {n: {"from": source, "sha256": self._input(source)} for n, source in stage.inputs.items()}
        if warn:  # a full run has just brought them up to date
            self._say_stale_inputs(stage)
        return {
            "name": stage.name,
            "title": stage.title,
            "inputs": inputs,
            "config": self._configs[stage.name],
            "seed": self.seed,
            "version": r1jax.__version__,
        }

    def _input(self, source: str) -> str:
        """The hash of another stage's output, which must be there as that stage left it."""
        if source not in self._hashes:
            producer, output = source.split("/")
            done = _read(self.run_dir / producer / DONE)
            why = "not complete" if done is None else self._damage(self._by_name(producer), done["outputs"], output)
            if why:
                raise ConfigError(f"{source}: stage {producer}: {why}; run that stage first, or leave out --only")
            self._hashes[source] = done["outputs"][output]["sha256"]
        return self._hashes[source]

    def _say_stale_inputs(self, stage: Stage) -> None:
        for name in dict.fromkeys(source.split("/")[0] for source in stage.inputs.values()):
            done = _read(self.run_dir / name / DONE)
            now = {"config": self._configs[name], "seed": self.seed, "version": r1jax.__version__}
            if why := _changes(now, {key: done[key] for key in now}):
                self._say(f"{name}: {why}: used as it is")

    def _by_name(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def _damage(self, stage: Stage, recorded: Mapping[str, Any], only: str | None = None) -> str:
        """What is wrong with the outputs (or one of them) of a stage that is done; "" if nothing is."""
        wanted = stage.outputs if only is None else (only,)
        for name in wanted:
            path = self.run_dir / stage.name / name
            if not path.exists() or (name != METRICS and name not in recorded):
                return f"output {name} is missing"
            try:
                if name != METRICS and sha256_of(path) != recorded[name]["sha256"]:
                    return f"output {name} was changed"
            except CheckpointError as error:
                return f"output {name} is damaged ({error})"
        return ""

    def _finish(self, stage: Stage, results: Mapping[str, Any], seconds: float) -> int:
        folder = self.run_dir / stage.name
        if missing := [name for name in stage.outputs if not (folder / name).exists()]:
            raise StageError(f"stage {stage.name} has not written {', '.join(missing)} in {folder}: mend its function")
        outputs = {name: {"sha256": sha256_of(folder / name)} for name in stage.outputs if name != METRICS}
        identity = _read(folder / BEGUN)
        identity.pop("seconds")
        write_json(folder / DONE, {**identity, "outputs": outputs, "results": results, "seconds": round(seconds, 3)})
        self._clean(folder)
        self._hashes |= {f"{stage.name}/{name}": output["sha256"] for name, output in outputs.items()}
        return 0

    def _clean(self, folder: Path) -> None:
        for name in (BEGUN, FAILURE):
            (folder / name).unlink(missing_ok=True)

    def _remove(self, stage: Stage) -> None:
        """Removes a stage's folder, whole in one instant: its name is free before its files go."""
        if (self.run_dir / stage.name).exists():
            shutil.rmtree(self._removed(stage), ignore_errors=True)
            os.replace(self.run_dir / stage.name, self._removed(stage))
        shutil.rmtree(self._removed(stage), ignore_errors=True)

    def _removed(self, stage: Stage) -> Path:
        return self.run_dir / f".{stage.name}.removed"

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _agreed(self, act: Callable[[], int]) -> int:
        """What process 0 does and finds, told to all: the others touch no file, and go on when it is done."""
        import jax  # here, so that a chain can be described without it

        if jax.process_count() == 1:
            return act()
        from jax.experimental import multihost_utils

        found, failure = -1, None
        if jax.process_index() == 0:
            try:
                found = act()
            except BaseException as error:
                failure = error
        found = int(multihost_utils.broadcast_one_to_all(found))
        if failure is not None:
            raise failure
        if found < 0:
            raise StageError("process 0 failed: it says why")
        return found


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}): remove its folder") from None


def _changes(now: Mapping[str, Any], then: Mapping[str, Any]) -> str:
    """What of a stage's identity is no longer as recorded, in words; "" if nothing is."""
    told = []
    for key in ("name", "seed", "version", "config"):
        for name, value, before in differences(now.get(key), then.get(key), key):
            told.append(f"{name} was {json.dumps(before)}, is {json.dumps(value)}")
    inputs = ({n: i["sha256"] for n, i in values.get("inputs", {}).items()} for values in (now, then))
    for name, value, before in differences(*inputs):
        told.append(f"input {name} was {(before or 'none')[:8]}, is {(value or 'none')[:8]}")
    return ", ".join(told[:3]) + (f" and {len(told) - 3} more" if len(told) > 3 else "")


@contextlib.contextmanager
def _clock(path: Path, interval: float = 10.0) -> Iterator[Callable[[], float]]:
    """Yields a function that says the seconds that a stage has taken, in all processes that worked on it.

    `path` is its begun.json, in which they are kept up to date: a kill loses `interval` seconds at most.
    """
    begun = _read(path)
    start, ended = time.monotonic(), threading.Event()

    def seconds() -> float:
        return begun["seconds"] + time.monotonic() - start

    def keep() -> None:
        while not ended.wait(interval):
            save()

    def save() -> None:
        with contextlib.suppress(OSError):  # a full disk is for the stage to tell
            write_json(path, {**begun, "seconds": seconds()})

    import jax

    if jax.process_index():
        yield seconds
        return
    keeper = threading.Thread(target=keep, daemon=True)
    keeper.start()
    try:
        yield seconds
    finally:
        ended.set()
        keeper.join()
        save()


@contextlib.contextmanager
def _failures_named(stage: Stage, folder: Path) -> Iterator[None]:
    """Turns whatever a stage raises into one sentence, with the traceback in a file beside what it has done."""
    try:
        yield
    except R1JaxError:
        raise
    except Exception as error:
        if _disk_full(error):
            raise
        with contextlib.suppress(OSError):
            (folder / FAILURE).write_text(traceback.format_exc(), encoding="utf-8")
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise StageError(
            f"stage {stage.name} failed ({reason}): mend that and run again, it goes on from what is done; "
            f"{folder / FAILURE} has the traceback"
        ) from error


@contextlib.contextmanager
def _one_sentence(run_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not _disk_full(error):
            raise
        raise StageError(
            f"{error.filename or run_dir}: no space is left on its disk; free some and run again, it goes on from what "
            f"is done"
        ) from error


def _disk_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def brief(results: Mapping[str, Any], count: int) -> list[str]:
    """The first `count` results as short texts, ["pass@1 0.613", ...]."""
    told = [(name, show_result(value)) for name, value in list(results.items())[:count]]
    return [f"{name} {text if len(text) <= 40 else text[:39] + '…'}" for name, text in told]


def show_result(value: Any) -> str:
    """One of a stage's results for people: floats to 4 digits, whole numbers in full."""
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


def _table(outcomes: Sequence[_Outcome]) -> Table:
    table = Table()
    for name, justify in (("stage", "left"), ("state", "left"), ("seconds", "right"), ("results", "left")):
        table.add_column(name, justify=justify, overflow="fold")
    for outcome in outcomes:
        results = Text("  ".join(brief(outcome.record["results"], 4)))
        table.add_row(outcome.stage.name, outcome.state, f"{outcome.record['seconds']:,.1f}", results)
    return table
