"""What long commands leave on disk: rows appended as they come, files that are whole or absent, folders of one job."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console

from r1jax.errors import ConfigError, DataError
from r1jax.files import PartialRows, write_json
from r1jax.progress import stage

if TYPE_CHECKING:
    from r1jax.sampling.generator import Completion, Generator

SETTINGS = "settings.json"


def read_rows(path: Path, option: str) -> Iterator[tuple[str, Any]]:
    """Yields ("FILE line N", value) of a jsonl file. Raises `DataError` naming that, or `option` and the file."""
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:  # some editors begin a file with a mark
            for line_number, line in enumerate(file, 1):
                if line.strip():
                    number = line_number
                    yield f"{path} line {number}", _value(line, f"{path} line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{option} {path} cannot be read ({error}): give a jsonl file") from None
    if not number:
        raise DataError(f"{option} {path} has no rows: give at least one")


def _value(line: str, where: str) -> Any:
    try:
        value = json.loads(line)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair could not be written out again
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no JSON ({error}): mend or remove it") from None
    return value


def check_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raises `ConfigError` where `folder` holds anything but a job whose settings do not contradict `settings`."""
    if not (folder / SETTINGS).exists():
        check_free(folder)
        return
    try:
        kept = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{folder / SETTINGS} is damaged ({error}): use another --out") from None
    for name, value in json.loads(json.dumps(settings)).items():
        if name in kept and kept[name] != value:
            raise ConfigError(
                f"--out {folder} was begun with {name}={kept[name]!r}, now it is {value!r}: go back to that, or use "
                f"another --out"
            )


def claim_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Makes `folder` that of the job with these settings, or takes it up again. Raises `ConfigError`."""
    check_folder(folder, settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SETTINGS, settings)
    except OSError as error:
        raise ConfigError(f"--out {folder} cannot be written ({error.strerror}): use another") from None


def check_free(folder: Path, allowed: Iterable[str] = ()) -> None:
    """Raises `ConfigError` unless `folder` is empty or not there; names in `allowed` may be in it."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder} is a file: give a folder")
    allowed = {f"{SETTINGS}.unfinished", *allowed}  # a kill in `claim_folder` may have left that
    others = sorted(p.name for p in folder.iterdir() if p.name not in allowed) if folder.exists() else []
    if others:
        raise ConfigError(
            f"--out {folder} holds something else ({others[0]}): give a folder that is empty or not there"
        )


class Drawn(NamedTuple):
    """What `draw` did in this process."""

    completions: int
    ended: int  # by a stop token
    seconds: float


def draw(
    generator: Generator,
    prompts: Sequence[Sequence[int]],
    rows: PartialRows,
    console: Console,
    title: str = "generating",
    logps: bool = False,
) -> Drawn:
    """Draws the completions of every prompt that `rows` lacks, with a progress bar."""
    start, before, ended, completions = time.monotonic(), len(rows.done), 0, 0
    with stage(title, len(prompts), before, console=console) as progress:
        for batch in generator(prompts, frozenset(rows.done)):
            for i, drawn in batch:
                rows.add(i, _row(drawn, generator, logps))
                completions += len(drawn)
                ended += sum(c.finish_reason == "stop" for c in drawn)
            rate = generator.statistics.tokens / (time.monotonic() - start)
            progress.advance(len(batch), **{"tokens/s": rate})
    return Drawn(completions, ended, time.monotonic() - start)


def _row(drawn: Sequence[Completion], generator: Generator, logps: bool) -> dict[str, Any]:
    row = {
        "completions": [generator.tokenizer.decode(c.tokens) for c in drawn],
        "tokens": [c.tokens for c in drawn],
        "finish_reasons": [c.finish_reason for c in drawn],
    }
    return row | {"logps": [c.logps for c in drawn]} if logps else row
