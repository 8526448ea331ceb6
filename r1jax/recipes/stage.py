"""What a stage of a pipeline is: from inputs, a configuration and a seed to outputs, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from r1jax.errors import ConfigError, R1JaxError, check_field

# The pipeline's own files in its folder and in those of the stages.
CHAIN, BEGUN, DONE, METRICS = "pipeline.json", "begun.json", "stage.json", "metrics.jsonl"
FAILURE = "failure.txt"
_NO_STAGE = (CHAIN, "lock", "results.json", "report.html")
_NO_OUTPUT = (BEGUN, DONE, FAILURE)


class StageError(R1JaxError):
    """A stage that failed. What its folder holds stays, and the same command goes on from there."""


@dataclasses.dataclass(frozen=True)
class StageRun:
    """What a stage is given."""

    folder: Path
    """Its own, where it leaves its outputs; what a killed process left there is still in it."""
    inputs: Mapping[str, Path]
    config: Any
    seed: int
    console: Console


@dataclasses.dataclass(frozen=True)
class Stage:
    """One link of the chain: from inputs, a configuration and a seed to outputs, and nothing else."""

    name: str
    """Also that of its folder."""
    title: str
    inputs: Mapping[str, str]
    """Where each input comes from: {"policy": "base/model"} is the output "model" of stage "base"."""
    outputs: tuple[str, ...]
    """Files or folders that it leaves in its folder. They must be the same whenever inputs, configuration and seed are:
    by their hashes the stages that read them know whether to run again. metrics.jsonl holds times and cannot be: it may
    be named here, and must then be there, but it is not hashed and is nobody's input."""
    config: Any
    """A frozen dataclass of plain values and paths, or any JSON."""
    run: Callable[[StageRun], Mapping[str, Any]]
    """Does the work, or what is left of it after a kill at any moment (also after its last line), and returns the
    results worth a look, numbers and short texts."""


def check_chain(stages: Sequence[Stage]) -> None:
    """Raises `ConfigError` unless names are file names, none is there twice, and inputs come from earlier stages."""
    made: dict[str, tuple[str, ...]] = {}
    for stage in stages:
        check_field(stage.name not in made, "stage", stage.name, "two stages have this name; rename one")
        _check_name("stage", stage.name, _NO_STAGE)
        for name in stage.outputs:
            _check_name(f"{stage.name}.outputs", name, _NO_OUTPUT)
        check_field(
            len(set(stage.outputs)) == len(stage.outputs), f"{stage.name}.outputs", stage.outputs, "names one twice"
        )
        for name, source in stage.inputs.items():
            producer, _, output = source.partition("/")
            known = [f"{earlier}/{o}" for earlier, outputs in made.items() for o in outputs if o != METRICS]
            fix = f"must be an output of an earlier stage other than {METRICS}: {', '.join(known) or 'there is none'}"
            check_field(
                output in made.get(producer, ()) and output != METRICS, f"{stage.name}.inputs.{name}", source, fix
            )
        made[stage.name] = stage.outputs


def _check_name(field: str, name: str, taken: Sequence[str]) -> None:
    check_field(
        bool(name) and not name.startswith(".") and not set(name) & set("/\\\0") and name not in taken,
        field,
        name,
        f'must be a plain file name: not empty, no "/", no leading dot, none of {", ".join(taken)}',
    )


def plain_config(stage: Stage) -> Any:
    """The configuration as JSON, by which it is compared with an earlier one. Raises `ConfigError` if it is none."""
    config = stage.config
    if dataclasses.is_dataclass(config):
        config = dataclasses.asdict(config)

    def path(value: Any) -> str:
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        raise TypeError(f"{type(value).__name__} is no JSON")

    try:
        return json.loads(json.dumps(config, default=path))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{stage.name}.config: must be plain values and paths ({error})") from None
