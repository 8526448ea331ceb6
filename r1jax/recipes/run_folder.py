"""A run's folder: whose it is, and that one process at a time works there."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Protocol

from r1jax.errors import CheckpointError, ConfigError
from r1jax.files import write_json


class RunConfig(Protocol):
    """What the settings of every kind of run can tell."""

    run_dir: Path
    resume: bool

    def as_json(self) -> dict[str, Any]:
        """Everything that decides the run's numbers, as plain JSON."""

    def check_same_run(self, earlier: dict[str, Any]) -> None:
        """Raises `ConfigError` where a run that began as `earlier` cannot go on with these settings."""


def open_run(config: RunConfig) -> Path:
    """Makes or reopens the run's folder; its config.json must be the same run's."""
    run_dir, path = config.run_dir, config.run_dir / "config.json"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if not config.resume:
                raise ConfigError(
                    f"run_dir={str(run_dir)!r}: already holds a run; choose another --run-dir, or resume it (--resume)"
                )
            config.check_same_run(json.loads(path.read_text()))
        write_json(path, config.as_json())
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is damaged ({error}): use another --run-dir") from None
    except OSError as error:
        raise ConfigError(
            f"run_dir={str(run_dir)!r}: cannot be written ({error.strerror}); choose a folder that can, with space left"
        ) from None
    return run_dir


@contextlib.contextmanager
def alone(run_dir: Path) -> Iterator[None]:
    """Keeps a second process out of a run's folder; the system lets go of it with the process."""
    import jax  # here, so that the settings that a help text shows come without it

    if jax.process_index():
        yield
        return
    with (run_dir / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"run_dir={str(run_dir)!r}: another process is running there; wait for it, or use another --run-dir"
            ) from None
        yield


def check_unchanged(config: RunConfig, earlier: dict[str, Any], but: Collection[str]) -> None:
    """Raises `ConfigError` naming the first setting, `but` those at the top, that is not what the run began with."""
    now, then = ({k: v for k, v in values.items() if k not in but} for values in (config.as_json(), earlier))
    for name, value, before in differences(now, then):
        raise ConfigError(
            f"{name}={value!r}: the run in {config.run_dir} began with {name}={before!r}; "
            f"use that value, or another --run-dir (or remove that folder, if nothing in it is wanted)"
        )


def differences(now: Any, then: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, value now, value then) of each setting in which two configurations, as plain JSON, differ."""
    if isinstance(now, dict) and isinstance(then, dict):
        for key in [*now, *(k for k in then if k not in now)]:
            yield from differences(now.get(key), then.get(key), f"{name}.{key}" if name else key)
    elif now != then:
        yield name, now, then


def check_same_data(path: Path, cards: dict[str, dict[str, Any]]) -> None:
    """Writes the data sets' cards, or compares their "sha256" with those that the run began with.

    Raises `ConfigError` naming a data set that is no longer the same.
    """
    if not path.exists():
        write_json(path, cards)
        return
    earlier = json.loads(path.read_text())
    for name, card in cards.items():
        if earlier[name]["sha256"] != card["sha256"]:
            raise ConfigError(
                f"{name}={card['source']!r}: its examples are no longer those that the run in {path.parent} began "
                f"with; use another --run-dir"
            )
