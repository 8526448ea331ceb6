"""Files that are whole or absent, and rows appended as they come, whenever the process is killed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from r1jax.errors import ConfigError


def write_json(path: Path, value: Any) -> None:
    """A JSON file, whole or not at all."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def read_json(path: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def file_hash(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A jsonl file, whole or not at all."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    os.replace(unfinished, path)


class PartialRows:
    """The rows of a job by number, appended to a file as they come: a kill loses at most the one being written.

    `done` holds those of an earlier process with the same `settings`. With no `path` they are held in memory alone.
    Raises `ConfigError` where the file was begun with other settings, or another process is writing it.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]):
        self.path = path
        self.done: dict[int, dict[str, Any]] = {}
        self._file = None if path is None else path.open("a+b")
        try:
            self._take_up(json.loads(json.dumps(settings)))
        except BaseException:
            self.close()
            raise

    def _take_up(self, settings: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{self.path} is being written by another process: wait for it, or stop it") from None
        whole = 0
        self._file.seek(0)
        for number, line in enumerate(self._file):
            try:
                value = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                value = None
            if not isinstance(value, dict):  # what a kill cut short
                break
            if number == 0 and value.get("settings") != settings:
                raise ConfigError(
                    f"{self.path} was begun with other prompts or settings: use those again, or remove it"
                )
            if number:
                self.done[value.pop("row")] = value
            whole += len(line)
        self._file.truncate(whole)
        if not whole:
            self._append({"settings": settings})

    def add(self, i: int, row: Mapping[str, Any]) -> None:
        self.done[i] = dict(row)
        if self._file is not None:
            self._append({"row": i, **row})

    def _append(self, value: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> PartialRows:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the file."""
        if self._file is not None:
            self._file.close()

    def finish(self, out: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes `rows` to `out`, and removes the file that is then no longer needed."""
        write_rows(out, rows)
        self.path.unlink()
        self.close()
