"""A run's folder: whose it is, and that one process at a time works there."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Protocol

from r1jax.errors import CheckpointError, ConfigError


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
        partial = path.with_name("config.json.partial")
        partial.write_text(json.dumps(config.as_json(), indent=2))
        os.replace(partial, path)
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

    def compare(now: Any, then: Any, name: str) -> None:
        if isinstance(now, dict) and isinstance(then, dict):
            for key in [*now, *(k for k in then if k not in now)]:
                if name or key not in but:
                    compare(now.get(key), then.get(key), f"{name}.{key}" if name else key)
        elif now != then:
            raise ConfigError(
                f"{name}={now!r}: the run in {config.run_dir} began with {name}={then!r}; "
                f"use that value, or another --run-dir"
            )

    compare(config.as_json(), earlier, "")
