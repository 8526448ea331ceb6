"""The whole R1 recipe (arXiv 2501.12948, figure 2), each stage from the outputs of those before it.

world -> base -> zero -> candidates -> cold_start -> dev1 -> dev2 -> rejection -> dev3 -> r1
base -> zero_language
dev3 -> helpfulness, harmlessness -> r1
rejection -> student_distilled; student_base -> student_rl
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from r1jax.errors import ConfigError
from r1jax.evaluation.pipeline_report import MODELS
from r1jax.files import file_hash, read_json, write_json
from r1jax.recipes.artefacts import sha256_of
from r1jax.recipes.pipeline import Pipeline, Stage, StageRun
from r1jax.recipes.r1 import stages as work
from r1jax.recipes.r1.config import R1Config
from r1jax.recipes.r1.scenarios import EXAMPLES, Scenario, scenario
from r1jax.recipes.stage import DONE
from r1jax.training.metrics import MetricsLog

# Those that meet R1-Zero's prompt; the others have a chat template.
ZERO_LAYOUT = ("base", "zero", "zero_language", "student_rl")
_OURS = ("run_dir", "seed", "mesh", "resume")  # of a training's settings, what is the recipe's
_JUDGED = ("curation", "edits", "workers")  # of the cold start's, what comes after candidates are drawn
_LARGE = 64 << 20  # bytes


def run(config: R1Config, only: str | None = None, start: str | None = None) -> Path:
    """Runs the recipe, or what of it is missing or no longer what it would be, and returns the path of its report.

    Raises:
      R1JaxError: in one sentence, whatever a person can mend. What is finished stays.
    """
    from r1jax import sharding
    from r1jax.evaluation.report import write_report
    from r1jax.rewards.sandbox import shared_sandbox
    from r1jax.runtime import compile_cache

    console = Console()
    config = dataclasses.replace(config, run_dir=config.run_dir.absolute())
    sharding.make_mesh(vars(config.mesh))  # one that cannot be made must not wait for a stage
    about = scenario(config.world)
    pipeline = Pipeline(stages(config, about), config.run_dir, config.seed, console)
    if {"world_accuracy", "code_accuracy"} & set(about.rules.values()):
        shared_sandbox(False)  # nor a machine that cannot run programs
    compile_cache(config.run_dir / "compile_cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.run_dir / "compile_cache"))  # for all stages
    pipeline.run(only, start)
    if only in (None, "results"):
        _write_results(config.run_dir)
    report = write_report(config.run_dir)
    console.print(f"report: {report}", soft_wrap=True, highlight=False)
    return report


def _write_results(run_dir: Path) -> None:
    """results.json: what stage results found, and what each model's own training took."""
    results = read_json(run_dir / "results" / "scores.json")
    for name, scores in results["models"].items():
        record = run_dir / name / DONE
        took = read_json(record)["results"].get("TFLOP") if record.exists() else None
        if took is not None:
            scores["TFLOP"] = {"value": took, "interval": None}
    write_json(run_dir / "results.json", results)


def stages(config: R1Config, about: Scenario | None = None) -> list[Stage]:
    """The chain."""
    mesh, about = config.mesh, about or scenario(config.world)
    rules = {"rules": dict(about.rules)}
    problems = {"problems": "world/problems_train.jsonl"}
    shown = {"examples": f"world/{EXAMPLES}.jsonl"} if f"{EXAMPLES}.jsonl" in about.outputs else {}
    cold, rejected = config.cold_start, config.rejection
    drawn = {name: value for name, value in dataclasses.asdict(cold).items() if name not in _JUDGED}
    judged = {"curation": dataclasses.asdict(cold.curation), "edits": _outside(config, "cold_start.edits", cold.edits)}
    rejection = dataclasses.asdict(rejected) | rules | {"judge": _outside(config, "rejection.judge", rejected.judge)}

    def base(name: str, title: str) -> Stage:
        settings = getattr(config, name)
        identity, inputs = dataclasses.asdict(settings), {"assets": "world/zero"}
        if settings.checkpoint is not None:
            given = _outside(config, f"{name}.checkpoint", settings.checkpoint)
            identity, inputs = {"checkpoint": given, "dtype": settings.dtype}, {}
        run = functools.partial(work.pretrain_base, mesh, settings)
        return Stage(name, title, inputs, ("model",), identity, run)

    def training(name: str, title: str) -> Stage:
        """A run of `r1jax sft`, `r1jax rl` or `r1jax reward-model`; its paths say what it needs."""
        settings = getattr(config, name)
        identity = {field: value for field, value in dataclasses.asdict(settings).items() if field not in _OURS}
        inputs = {field: str(value) for field, value in _paths(settings).items()}
        return Stage(name, title, inputs, ("model",), identity, functools.partial(work.train, mesh, settings))

    def stage(
        name: str,
        title: str,
        inputs: dict[str, str],
        outputs: tuple[str, ...],
        identity: Any,
        run: Callable,
        *more: Any,
    ) -> Stage:
        logged = functools.partial(_logged, functools.partial(run, about, *more))
        return Stage(name, title, inputs, outputs, identity, logged)

    return [
        stage("world", "Problems, requests, tokenizer", {}, about.outputs, about.identity(), work.world),
        base("base", "Base model"),
        training("zero", "R1-Zero: RL from rules alone"),
        training("zero_language", "The same with the language reward: what it mends, and what that costs"),
        stage(
            "candidates", "Long chains of thought, collected in four ways",
            {"base": "base/model", "zero": "zero/model"} | problems | shown, ("candidates.jsonl",), drawn,
            work.draw_candidates, mesh, cold,
        ),
        stage(
            "cold_start", "Cold-start data: the correct and readable ones, with a person's edits",
            {"candidates": "candidates/candidates.jsonl"}, ("cold_start.jsonl",), judged | rules,
            work.choose_cold_start, cold,
        ),
        training("dev1", "Dev1: cold-start SFT of the base"),
        training("dev2", "Dev2: reasoning RL with the language reward"),
        stage(
            "rejection", "Rejection sampling, and other data",
            {"policy": "dev2/model", "requests": "world/requests_train.jsonl"} | problems, ("sft.jsonl",), rejection,
            work.reject, mesh, rejected,
        ),
        training("dev3", "Dev3: SFT of the base on both"),
        training("helpfulness", "Reward model: helpfulness, from pairs"),
        training("harmlessness", "Reward model: harmlessness, from labels"),
        training("r1", "R1: RL for all scenarios"),
        base("student_base", "The student's base model"),
        training("student_distilled", "Distillation: SFT of the student"),
        training("student_rl", "The same student by RL"),
        stage(
            "results", "Every model on the test problems and requests",
            {name: f"{name}/model" for name in MODELS}
            | {"problems": "world/problems_test.jsonl", "requests": "world/requests_test.jsonl"},
            ("scores.json",), dataclasses.asdict(config.results) | rules,
            work.measure, mesh, config.results, ZERO_LAYOUT,
        ),
    ]  # fmt: skip


def _logged(run: Callable[[StageRun], Mapping[str, Any]], given: StageRun) -> Mapping[str, Any]:
    """Runs a stage that trains nothing; its numbers are the one line of its metrics.jsonl."""
    results = run(given)
    with MetricsLog(given.folder, {}) as log:
        log.write(given.folder.name, 0, results)
    return results


def _paths(config: Any) -> dict[str, Any]:
    """The settings that are other stages' outputs, by name; those within a mapping as "mapping.name"."""
    fields = ("checkpoint", "data", "eval_data", "general_data", "chat_template")
    found = {name: getattr(config, name, None) for name in fields}
    found |= {f"reward_models.{name}": path for name, path in getattr(config, "reward_models", {}).items()}
    return {name: value for name, value in found.items() if value is not None}


def _outside(config: R1Config, name: str, path: Path | None) -> str | None:
    """The hash of what a person gives, by which a stage knows whether it is still the same.

    Raises `ConfigError` where nothing is there, and for what lies in a stage's folder, which goes when it runs again.
    """
    if path is None:
        return None
    if not path.exists():
        raise ConfigError(f"{name}={str(path)!r}: no such file or folder; give one that is there, or leave it out")
    if path.absolute().is_relative_to(config.run_dir.absolute()):
        raise ConfigError(f"{name}={str(path)!r}: lies in run_dir, where stages remove files; move it elsewhere")
    return sha256_of(path) if path.is_file() or (path / "model.json").exists() else _checkpoint_hash(path)


def _checkpoint_hash(path: Path) -> str:
    """Of a published checkpoint: its small files' bytes and its large ones' sizes, which need not be read."""
    sizes = {file: file.stat().st_size for file in sorted(path.iterdir()) if file.is_file()}
    told = [[file.name, size if size > _LARGE else file_hash(file)] for file, size in sizes.items()]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
