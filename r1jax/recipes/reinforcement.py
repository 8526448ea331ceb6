"""Reinforcement learning with GRPO as a part of a recipe: from a policy to a better one, evaluated on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from rich.console import Console

from r1jax import sharding
from r1jax.checkpoints.run import RunCheckpoints
from r1jax.configs.training import GRPOConfig, OptimizerConfig, SamplingConfig
from r1jax.data.iterators import Indexable, PromptBatch, Row, encode_prompts, r1_zero_prompt
from r1jax.data.tokenizer import Tokenizer
from r1jax.errors import ConfigError, check_field
from r1jax.evaluation.evaluate import Scorer, evaluate
from r1jax.evaluation.reflection import reflection_metrics
from r1jax.progress import stage
from r1jax.recipes.config import EvalConfig, RewardConfig
from r1jax.rewards import RewardFunction, RewardPool, get_reward, with_parameters
from r1jax.training.loop import GRPOTrainer, Runtime, Sampling
from r1jax.training.metrics import render_samples
from r1jax.training.optimizer import make_optimizer, schedule
from r1jax.training.state import TrainState, abstract_state, init_state, shardings_of, with_reference

_EVAL_PROMPTS = 64  # problems sampled at a time


class RLSettings(Protocol):
    """What the settings of every kind of run with reinforcement learning hold."""

    steps: int
    seed: int
    max_prompt_length: int
    save_every: int
    grpo: GRPOConfig
    optimizer: OptimizerConfig
    reward: RewardConfig
    eval: EvalConfig


def eval_sampling(config: RLSettings) -> SamplingConfig:
    """How held-out problems are sampled."""
    return SamplingConfig(
        temperature=config.eval.temperature,
        top_p=config.eval.top_p,
        num_generations=config.eval.k,
        max_completion_length=config.grpo.max_completion_length,
    )


def reward_functions(
    config: RewardConfig, local: Mapping[str, RewardFunction] | None = None
) -> dict[str, RewardFunction]:
    """The settings' reward functions, with their parameters, by the names that metrics give them; in order.

    Those named in `local` are taken from there. Raises `ConfigError` for a name that means nothing, or two functions.
    """
    functions = {}
    for setting in config.functions:
        if local and setting in local:
            functions[setting] = local[setting]
            continue
        function = get_reward(setting)
        name = getattr(function, "__name__", type(function).__name__)
        check_field(name not in functions, "reward.functions", config.functions, f"two are called {name!r}; rename one")
        functions[name] = with_parameters(setting, config.parameters.get(setting, {}))
    return functions


def check_rl_layout(config: RLSettings, mesh: jax.sharding.Mesh) -> None:
    """Raises `ConfigError` where batches do not divide over the mesh, before anything is computed."""
    parts = config.grpo.num_minibatches * config.grpo.num_microbatches
    for field, value, axis in (
        ("grpo.num_prompts", config.grpo.num_prompts, "prompt"),
        ("grpo.num_generations", config.grpo.num_generations, "group"),
        (
            "grpo.num_prompts x grpo.num_generations / minibatches / microbatches",
            config.grpo.batch_size // parts,
            "batch",
        ),
        ("eval.k", config.eval.k, "group"),
        ("eval.problems", min(config.eval.problems, _EVAL_PROMPTS), "prompt"),
    ):
        check_divides(field, value, mesh, axis)


def check_divides(field: str, value: int, mesh: jax.sharding.Mesh, axis: str) -> None:
    """Raises `ConfigError` where `value` rows do not divide over the devices that the learner lays `axis` out on."""
    layout = sharding.Layout(mesh, "learn")
    if value % layout.size(axis):
        raise ConfigError(
            f"{field}={value}: must be a multiple of {layout.size(axis)}, the devices on mesh "
            f"{' x '.join(layout.axes(axis))}"
        )


def held_out_batches(
    problems: Sequence[Row],
    count: int,
    tokenizer: Tokenizer,
    max_prompt_length: int,
    render: Callable[[dict[str, Any]], str] = r1_zero_prompt,
) -> list[PromptBatch]:
    """The first `count` problems, in the batches that evaluation samples."""
    problems = [problems[i] for i in range(min(count, len(problems)))]
    return [
        encode_prompts(problems[i : i + _EVAL_PROMPTS], tokenizer, max_prompt_length, render)
        for i in range(0, len(problems), _EVAL_PROMPTS)
    ]


def reinforce(
    config: RLSettings,
    runtime: Runtime,
    checkpoints: RunCheckpoints,
    done: int | None,
    policy: TrainState | None,
    prompts: Indexable[PromptBatch],
    held_out: Sequence[PromptBatch],
    scorer: Scorer,
    local: Mapping[str, RewardFunction] | None = None,
) -> TrainState:
    """Reinforcement learning of `policy` (or from checkpoint `done`) to config.steps, with evaluations.

    `prompts[step]` is what each step asks; `held_out` is what evaluations ask, and `scorer` judges; `local` are reward
    functions that run in this process, beside those of the settings.
    """
    updates_per_step = config.grpo.num_minibatches * config.grpo.num_iterations
    optimizer = make_optimizer(config.optimizer, config.steps, updates_per_step)

    def fresh(state: TrainState) -> TrainState:
        return with_reference(state, optimizer, runtime.model.param_dtype)

    abstract = abstract_state(lambda key: fresh(init_state(runtime.model, optimizer, key)), runtime.learn)
    if done is None:
        begin = runtime.programs.compile(
            "reference", fresh, policy, layout=runtime.learn, out_shardings=shardings_of(abstract), run_once=True
        )
        state = begin(policy)
    else:
        _, state, _ = checkpoints.restore(abstract)
    if done is not None and done >= config.steps:
        return state

    sampler = None
    if held_out:
        sampling, prompt_length = eval_sampling(config), config.max_prompt_length
        sampler = Sampling(runtime, "evaluate", sampling, len(held_out[0].prompts), prompt_length, state.model_state)

    def evaluation(step: int) -> dict[str, float]:
        if sampler is None:
            return {}
        metrics, rows = evaluate_held_out(sampler, state, held_out, runtime, step, scorer)
        runtime.log.write("rl", step, metrics)
        runtime.log.samples("rl", step, rows[:8])
        return metrics

    local = local or {}
    functions = reward_functions(config.reward, local)
    weights = dict(zip(functions, config.reward.all_weights, strict=True))
    names = dict(zip(config.reward.functions, functions, strict=True))
    gate = names.get(config.reward.gate)
    domains = {names[function]: values for function, values in config.reward.domains.items()}
    with RewardPool(
        {name: function for name, function in functions.items() if name not in local},
        weights,
        config.reward.workers,
        config.reward.timeout,
        gate=gate,
        local={name: function for name, function in functions.items() if name in local},
        domains=domains,
    ) as pool:
        trainer = GRPOTrainer(
            runtime,
            config.grpo,
            optimizer,
            schedule(config.optimizer, config.steps),
            pool,
            prompts,
            config.max_prompt_length,
            state,
            reflection_metrics,
        )
        if done is None:
            _print_evaluation(runtime.console, "before", evaluation(0))
        with stage("reinforcement learning", config.steps, done or 0) as progress:
            for step in range(done or 0, config.steps):
                state, metrics, rows = trainer.step(state, step)
                runtime.log.write("rl", step + 1, metrics)
                last = step + 1 == config.steps
                scores = {}
                if (step + 1) % config.eval.every == 0 or last:
                    scores = evaluation(step + 1)
                    runtime.log.samples("rl", step + 1, rows[:4])
                if (step + 1) % config.save_every == 0 or last:
                    checkpoints.save(step + 1, state, {"phase": "rl", "seed": config.seed})
                shown = {"pass@1": scores["eval/pass@1"]} if scores else {}
                progress.advance(reward=metrics["reward"], length=metrics["completions/mean_length"], **shown)
    _print_evaluation(runtime.console, f"after {config.steps} steps", scores)
    runtime.console.print(render_samples(rows[:4]))
    return state


def evaluate_held_out(
    sampler: Sampling,
    state: TrainState,
    held_out: Sequence[PromptBatch],
    runtime: Runtime,
    step: int,
    scorer: Scorer,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Samples every held-out problem and scores the samples."""
    parts = []
    for part, batch in enumerate(held_out):
        full = _padded(batch, sampler.prompts)
        rollout = jax.device_get(sampler(state.model_state, full, step, part)[0])
        parts.append(jax.tree.map(lambda a: a[: len(batch.prompts)], rollout))  # noqa: B023 - used at once
    rollout = jax.tree.map(lambda *a: np.concatenate(a), *parts)
    columns = {name: [v for batch in held_out for v in batch.columns[name]] for name in held_out[0].columns}
    prompts = [prompt for batch in held_out for prompt in batch.prompts]
    return evaluate(rollout, runtime.tokenizer, prompts, columns, scorer)


def _padded(batch: PromptBatch, count: int) -> PromptBatch:
    """Repeats the last prompt of a short batch: a program takes one shape."""
    index = np.minimum(np.arange(count), len(batch.prompts) - 1)
    return PromptBatch(batch.tokens[index], batch.lengths[index], batch.prompts, batch.columns)


def _print_evaluation(console: Console, title: str, metrics: dict[str, float]) -> None:
    if not metrics:
        return
    shown = "  ".join(f"{name.removeprefix('eval/')} {value:.3g}" for name, value in metrics.items())
    console.print(f"{title}: {shown}", highlight=False, soft_wrap=True)
