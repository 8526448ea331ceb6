"""The R1 recipe's stages: each from the outputs of those before it to its own, whatever the scenario."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from r1jax.configs.training import MeshConfig, SamplingConfig
from r1jax.data.chat import ChatTemplate
from r1jax.data.sources import read_rows
from r1jax.data.templates import render_r1_zero
from r1jax.errors import ConfigError
from r1jax.files import read_json, write_json, write_rows
from r1jax.recipes import cold_start, rejection
from r1jax.recipes.collect import Rules
from r1jax.recipes.pipeline import StageRun
from r1jax.recipes.r1.config import BaseStage, ColdStartStage, RejectionStage, ResultsStage
from r1jax.recipes.r1.scenarios import Scenario
from r1jax.recipes.rl import RLConfig
from r1jax.rewards import format_reward, think_format_reward
from r1jax.sampling.completions import GeneratorSample, Sample


def world(scenario: Scenario, run: StageRun) -> Mapping[str, Any]:
    """The data sets, with their cards."""
    return scenario.make(run.folder)


def pretrain_base(mesh: MeshConfig, config: BaseStage, run: StageRun) -> Mapping[str, Any]:
    """A base model: pretrained on the world's documents, or a released one in r1jax's own folder."""
    from flax import nnx

    from r1jax import sharding
    from r1jax.checkpoints.model import open_model
    from r1jax.checkpoints.run import RunCheckpoints
    from r1jax.configs.presets import model_preset
    from r1jax.data.hf_tokenizer import load_tokenizer
    from r1jax.data.iterators import PretrainBatches
    from r1jax.data.world import world_documents
    from r1jax.evaluation.report import write_report
    from r1jax.recipes.pretraining import pretrain
    from r1jax.recipes.weights import keep_model
    from r1jax.training.loop import Runtime
    from r1jax.training.metrics import MetricsLog
    from r1jax.training.programs import Programs
    from r1jax.training.state import model_graph

    if config.checkpoint is not None:
        devices = sharding.make_mesh(vars(mesh))
        model, shape, assets = open_model(config.checkpoint, config.dtype, devices, show_progress=True)
        keep_model(run.folder / "model", model, shape, assets)
        return {"from": config.checkpoint.name}
    tokenizer = load_tokenizer(run.inputs["assets"])
    model = model_preset(config.preset).replace(vocab_size=tokenizer.vocab_size)
    _same_mesh(run.folder / "mesh.json", mesh)
    checkpoints = RunCheckpoints(run.folder / "checkpoints", keep=1)
    done = checkpoints.latest_step()
    corpus = functools.partial(world_documents, config.corpus, run.seed)
    with MetricsLog(run.folder, {} if done is None else {"pretrain": done}) as log:
        programs = Programs(run.folder, run.console)
        runtime = Runtime(
            sharding.make_mesh(vars(mesh)), model, model_graph(model), tokenizer, programs, log, run.console, run.seed
        )
        batches = PretrainBatches(corpus, tokenizer, config.rows, config.length)
        state = pretrain(config, runtime, checkpoints, done, batches, config.save_every, run.folder.name)
        loss = _last(run.folder, "loss")
        module = nnx.merge(runtime.graph, state.params, state.buffers)
    keep_model(run.folder / "model", module, model, run.inputs["assets"])
    write_report(run.folder)
    return {"loss": loss}


def _same_mesh(path: Path, mesh: MeshConfig) -> None:
    """Raises `ConfigError` where training that was begun on another mesh would go on with other rounding."""
    if path.exists() and read_json(path) != vars(mesh):
        raise ConfigError(f"mesh={vars(mesh)}: this stage began with {read_json(path)}; use that until it is done")
    write_json(path, vars(mesh))


def train(mesh: MeshConfig, settings: Any, run: StageRun) -> Mapping[str, Any]:
    """Runs a recipe of its own in the stage's folder, with the inputs in the place of their names."""
    from r1jax.recipes import reward_model, rl, sft

    recipes = {sft.SFTConfig: sft.run, rl.RLConfig: rl.run, reward_model.RewardModelConfig: reward_model.run}
    given = {name: path if name == "checkpoint" else str(path) for name, path in run.inputs.items() if "." not in name}
    if "chat_template" in given:
        given["chat_template"] = Path(given["chat_template"])
    if getattr(settings, "reward_models", None):
        given["reward_models"] = {name: run.inputs[f"reward_models.{name}"] for name in settings.reward_models}
    # A seed for each stage, or all would meet the problems in the same order.
    seed = (run.seed << 16) + zlib.crc32(run.folder.name.encode()) % (1 << 16)
    config = dataclasses.replace(settings, run_dir=run.folder, seed=seed, mesh=mesh, **given)
    recipes[type(config)](config)
    rl_names, others = ("eval/pass@1", "eval/mean_length", "reward"), ("eval_accuracy", "loss")
    names = rl_names if isinstance(config, RLConfig) else others
    results = {name: value for name in names if (value := _last(run.folder, name)) is not None}
    return results | {"TFLOP": _tflop(config, _last(run.folder, "step") or 0)}


def _tflop(config: Any, steps: int) -> float:
    """What training took, evaluations left out, with padding as if it were text."""
    from r1jax.checkpoints.model import describe
    from r1jax.models.flops import forward_flops, grpo_step_flops

    model = describe(config.checkpoint).config
    if isinstance(config, RLConfig):
        step = sum(grpo_step_flops(model, config.grpo, config.max_prompt_length).values())
    else:
        rows = config.rows * (2 if getattr(config, "kind", "") == "pairs" else 1)
        step = 3 * forward_flops(model, rows, config.length or min(2048, model.max_position_embeddings))
    return round(steps * step / 1e12, 3)


def _sampler(run: StageRun, path: Path, sampling: SamplingConfig, batch_size: int, mesh: MeshConfig) -> Sample:
    from r1jax import sharding
    from r1jax.checkpoints.model import open_model
    from r1jax.data.hf_tokenizer import load_tokenizer
    from r1jax.sampling.generator import Generator

    devices = sharding.make_mesh(vars(mesh))
    model, shape, assets = open_model(path, mesh=devices)
    tokenizer = load_tokenizer(assets)
    generator = Generator(model, shape, tokenizer, sampling, mesh=devices, batch_size=batch_size, seed=run.seed)
    return GeneratorSample(generator)


def draw_candidates(scenario: Scenario, mesh: MeshConfig, config: ColdStartStage, run: StageRun) -> Mapping[str, Any]:
    """Long chains of thought from the base and from R1-Zero, post-processed into thinking and a summary."""
    sampling = SamplingConfig(
        temperature=config.temperature,
        top_p=config.top_p,
        num_generations=config.n,
        max_completion_length=config.max_tokens,
    )
    base, zero = (_sampler(run, run.inputs[name], sampling, config.batch_size, mesh) for name in ("base", "zero"))
    world = run.inputs["problems"].parent
    rows = scenario.cold_start(config, world, base, zero, run.folder, run.seed, run.console)
    write_rows(run.folder / "candidates.jsonl", rows)
    return {"rows": len(rows)} | Counter(row["way"] for row in rows)


def choose_cold_start(scenario: Scenario, config: ColdStartStage, run: StageRun) -> Mapping[str, Any]:
    """The candidates that are correct and readable, with a person's edits."""
    card = cold_start.cold_start_data(
        read_rows(run.inputs["candidates"]),
        _rules(scenario),
        run.folder / "cold_start.jsonl",
        config.curation,
        edits=config.edits,
        sources={name: _hash(run, name) for name in run.inputs},
        workers=config.workers,
        console=run.console,
    )
    by_way = card.counts.get("by way", {})
    return {"rows": card.rows} | {f"kept, {way}": counts["kept responses"] for way, counts in by_way.items()}


def reject(scenario: Scenario, mesh: MeshConfig, config: RejectionStage, run: StageRun) -> Mapping[str, Any]:
    """Correct and readable responses of the reasoning model, with good responses to other requests."""
    from r1jax.checkpoints.model import describe
    from r1jax.evaluation.judge import GenerativeJudge, asking
    from r1jax.models.flops import active_weights

    sampling = SamplingConfig(
        temperature=config.temperature, num_generations=config.n, max_completion_length=config.max_tokens
    )
    verify = None
    if config.judge is not None:
        greedy = dataclasses.replace(sampling, temperature=0.0, num_generations=1)
        judge, chat = _sampler(run, config.judge, greedy, config.batch_size, mesh), _chat(config.judge)
        verify = GenerativeJudge(asking(judge, lambda text: chat({"question": text}))).verify
    policy = run.inputs["policy"]
    card = rejection.rejection_sampling(
        read_rows(run.inputs["problems"])[: config.problems],
        _sampler(run, policy, sampling, config.batch_size, mesh),
        _chat(policy),
        _rules(scenario),
        run.folder / "sft.jsonl",
        dataclasses.replace(config, seed=run.seed),
        verify=verify,
        general=[scenario.other_example(row) for row in read_rows(run.inputs["requests"])],
        sources={name: _hash(run, name) for name in run.inputs},
        console=run.console,
    )
    shape, counts = describe(policy).config, card.counts
    drawn = counts["responses"] * config.max_tokens * 2.0 * sum(active_weights(shape))  # prompts are little beside it
    results = {"rows": card.rows, "correct": counts["correct responses"], "of": counts["responses"]}
    return results | {"TFLOP": round(drawn / 1e12, 3)}


def measure(
    scenario: Scenario, mesh: MeshConfig, config: ResultsStage, zero_layout: Collection[str], run: StageRun
) -> Mapping[str, Any]:
    """scores.json, which becomes the recipe's results.json: every model's scores, each kept as soon as it is there.

    Models in `zero_layout` are asked with R1-Zero's prompt, the others with their chat template.
    """
    from r1jax import sharding
    from r1jax.recipes.r1.results import MEANINGS, measure_model

    problems, requests = read_rows(run.inputs["problems"]), read_rows(run.inputs["requests"])
    devices = sharding.make_mesh(vars(mesh))
    models = {}
    for name, path in run.inputs.items():
        if name in ("problems", "requests"):
            continue
        kept = run.folder / f"{name}.scores.json"
        if not kept.exists():
            zero = name in zero_layout
            scores = measure_model(
                path,
                problems,
                requests,
                scenario.rules,
                (lambda row: render_r1_zero(row["question"])) if zero else _chat(path),
                format_reward if zero else think_format_reward,
                config,
                run.seed,
                devices,
                run.console,
                name,
            )
            write_json(kept, scores)
        models[name] = read_json(kept)
    write_json(run.folder / "scores.json", {"seed": run.seed, "models": models, "meanings": MEANINGS})
    return {f"pass@1 of {name}": scores["pass@1"]["value"] for name, scores in models.items()}


def _rules(scenario: Scenario) -> Rules:
    """As judges take them: the one rule, or by kind where there are several."""
    rules = list(scenario.rules.values())
    return rules[0] if len(rules) == 1 else dict(scenario.rules)


def _chat(model: Path) -> Callable[[Mapping[str, Any]], str]:
    """The prompt of a row by the model's chat template."""
    template = ChatTemplate.from_folder(model)
    return lambda row: template.render([{"role": "user", "content": row["question"]}])


def _hash(run: StageRun, name: str) -> str:
    from r1jax.recipes.artefacts import sha256_of

    return sha256_of(run.inputs[name])


def _last(folder: Path, metric: str) -> float | None:
    """The latest value of a metric in the stage's log."""
    from r1jax.training.metrics import read_jsonl

    values = [row[metric] for row in read_jsonl(folder / "metrics.jsonl") if row.get(metric) is not None]
    return values[-1] if values else None
