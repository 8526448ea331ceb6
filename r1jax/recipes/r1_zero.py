"""R1-Zero (arXiv 2501.12948, section 2): from a base model to reasoning by reinforcement learning alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from r1jax import sharding
from r1jax.checkpoints.run import RunCheckpoints
from r1jax.data.corpus import corpus_tokenizer
from r1jax.data.iterators import PretrainBatches, PromptBatch, PromptBatches, encode_prompts
from r1jax.data.problem_source import load_problems
from r1jax.data.templates import R1_ZERO_CHAT_TEMPLATE
from r1jax.errors import ConfigError, DataError, check_field
from r1jax.evaluation.evaluate import Scorer, evaluate
from r1jax.evaluation.reflection import reflection_metrics
from r1jax.evaluation.report import write_report
from r1jax.progress import stage
from r1jax.recipes.config import R1ZeroConfig, RewardConfig
from r1jax.recipes.run_folder import alone, open_run
from r1jax.rewards import (
    RewardFunction,
    RewardPool,
    exact_answer_reward,
    format_reward,
    get_reward,
    with_parameters,
)
from r1jax.rewards.arithmetic import answer_text
from r1jax.runtime import compile_cache, keep_host_memory
from r1jax.training.loop import GRPOTrainer, Runtime, Sampling, train_supervised
from r1jax.training.metrics import MetricsLog, render_samples
from r1jax.training.optimizer import make_optimizer, schedule
from r1jax.training.programs import Programs
from r1jax.training.state import (
    TrainState,
    abstract_state,
    init_state,
    model_graph,
    shardings_of,
    with_reference,
)
from r1jax.training.supervised import make_supervised_update

SCORER = Scorer(exact_answer_reward, answer_text, format_reward)
_EVAL_PROMPTS = 64  # problems sampled at a time


def run(config: R1ZeroConfig) -> Path:
    """Runs R1-Zero, or what is left of it, and returns the path of its report.

    Raises:
      R1JaxError: in one sentence, whatever a person can mend. What was saved before stays valid.
    """
    keep_host_memory()
    console = Console()
    mesh = sharding.make_mesh(vars(config.mesh))
    check_layout(config, mesh)
    reward_functions(config.reward)  # a misspelt name must not wait for the base model to be trained
    fresh = not (config.run_dir / "config.json").exists()
    run_dir = open_run(config)
    with alone(run_dir):
        return _run(config, mesh, run_dir, console, fresh)


def _run(config: R1ZeroConfig, mesh: jax.sharding.Mesh, run_dir: Path, console: Console, fresh: bool) -> Path:
    compile_cache(run_dir / "compile_cache")
    base_checkpoints = RunCheckpoints(run_dir / "checkpoints" / "base", config.keep_checkpoints)
    rl_checkpoints = RunCheckpoints(run_dir / "checkpoints" / "rl", config.keep_checkpoints)
    base_step, rl_step = base_checkpoints.latest_step(), rl_checkpoints.latest_step()

    for name, step in (("reinforcement learning", rl_step), ("pretraining", base_step)):
        if step is not None:
            console.print(f"resuming {name} after step {step}", highlight=False)
            break
    tokenizer = corpus_tokenizer(config.base.corpus, run_dir / "world" / "tokenizer.model", config.model.vocab_size)
    train, test = (load_problems(run_dir / "world", split) for split in ("train", "test"))
    (run_dir / "world" / "chat_template.jinja").write_text(R1_ZERO_CHAT_TEMPLATE)  # goes along when it is exported
    try:
        for problems in (train, test):  # prompts that do not fit must not wait for the base model either
            encode_prompts([problems[i] for i in range(min(1000, len(problems)))], tokenizer, config.max_prompt_length)
    except DataError:
        if fresh:  # nothing has run: the folder is free for the settings that will
            (run_dir / "config.json").unlink()
        raise
    done = {"pretrain": base_step} if base_step is not None else {}
    done |= {"rl": rl_step} if rl_step is not None else {}
    with MetricsLog(run_dir, done) as log:
        runtime = Runtime(
            mesh,
            config.model,
            model_graph(config.model),
            tokenizer,
            Programs(run_dir, console),
            log,
            console,
            config.seed,
        )
        if rl_step is None:
            state = base_model(config, runtime, base_checkpoints, base_step)
        else:
            state = None  # the RL checkpoint holds all that is needed
        reinforce(config, runtime, rl_checkpoints, rl_step, state, train, test)
    report = write_report(run_dir)
    console.print(f"report: {report}", soft_wrap=True, highlight=False)
    return report


def reward_functions(config: RewardConfig) -> dict[str, RewardFunction]:
    """The settings' reward functions, with their parameters, by the names that metrics give them; in order."""
    functions = {}
    for setting in config.functions:
        function = get_reward(setting)
        name = getattr(function, "__name__", type(function).__name__)
        check_field(name not in functions, "reward.functions", config.functions, f"two are called {name!r}; rename one")
        functions[name] = with_parameters(setting, config.parameters.get(setting, {}))
    return functions


def check_layout(config: R1ZeroConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises `ConfigError` where batches do not divide over the mesh, before anything is computed."""
    layout = sharding.Layout(mesh, "learn")
    parts = config.grpo.num_minibatches * config.grpo.num_microbatches
    for field, value, axis in (
        ("grpo.num_prompts", config.grpo.num_prompts, "prompt"),
        ("grpo.num_generations", config.grpo.num_generations, "group"),
        (
            "grpo.num_prompts x grpo.num_generations / minibatches / microbatches",
            config.grpo.batch_size // parts,
            "batch",
        ),
        ("base.rows", config.base.rows, "batch"),
        ("eval.k", config.eval.k, "group"),
        ("eval.problems", min(config.eval.problems, _EVAL_PROMPTS), "prompt"),
    ):
        if value % layout.size(axis):
            raise ConfigError(
                f"{field}={value}: must be a multiple of {layout.size(axis)}, the devices on mesh "
                f"{' x '.join(layout.axes(axis))}"
            )


def base_model(config: R1ZeroConfig, runtime: Runtime, checkpoints: RunCheckpoints, done: int | None) -> TrainState:
    """The pretrained base: from nothing, from a checkpoint on the way, or the finished one."""
    optimizer = make_optimizer(config.base.optimizer, config.base.steps)
    abstract = abstract_state(lambda key: init_state(config.model, optimizer, key), runtime.learn)
    if done is None:
        key = runtime.key("init", 0)
        init = runtime.programs.compile(
            "initialisation",
            lambda key: init_state(config.model, optimizer, key),
            key,
            layout=runtime.learn,
            out_shardings=shardings_of(abstract),
            run_once=True,
        )
        state = init(key)
    else:
        _, state, _ = checkpoints.restore(abstract)
    parameters = sum(p.size for p in jax.tree.leaves(state.params))
    runtime.console.print(f"{config.preset}: {parameters:,} parameters on {runtime.mesh.size} device(s)")
    update = make_supervised_update(config.model, runtime.graph, config.base.loss, optimizer)
    batches = PretrainBatches(config.base.corpus, runtime.tokenizer, config.base.rows, config.base.length, config.seed)
    steps, save_every = config.base.steps, 5 * config.save_every
    return train_supervised(
        runtime, state, update, batches, checkpoints, steps, save_every, "pretrain", "pretraining the base model"
    )


def reinforce(
    config: R1ZeroConfig,
    runtime: Runtime,
    checkpoints: RunCheckpoints,
    done: int | None,
    base: TrainState | None,
    train: Any,
    test: Any,
) -> TrainState:
    """Reinforcement learning from the base (or from checkpoint `done`) to config.steps, with evaluations."""
    updates_per_step = config.grpo.num_minibatches * config.grpo.num_iterations
    optimizer = make_optimizer(config.optimizer, config.steps, updates_per_step)

    def fresh(state: TrainState) -> TrainState:
        return with_reference(state, optimizer, config.model.param_dtype)

    abstract = abstract_state(lambda key: fresh(init_state(config.model, optimizer, key)), runtime.learn)
    if done is None:
        begin = runtime.programs.compile(
            "reference", fresh, base, layout=runtime.learn, out_shardings=shardings_of(abstract), run_once=True
        )
        state = begin(base)
    else:
        _, state, _ = checkpoints.restore(abstract)
    if done is not None and done >= config.steps:
        return state

    problems = [test[i] for i in range(min(config.eval.problems, len(test)))]
    held_out = [
        encode_prompts(problems[i : i + _EVAL_PROMPTS], runtime.tokenizer, config.max_prompt_length)
        for i in range(0, len(problems), _EVAL_PROMPTS)
    ]
    sampler = Sampling(
        runtime, "evaluate", config.eval_sampling, len(held_out[0].prompts), config.max_prompt_length, state.model_state
    )

    def evaluation(step: int) -> dict[str, float]:
        metrics, rows = evaluate_held_out(sampler, state, held_out, runtime, step)
        runtime.log.write("rl", step, metrics)
        runtime.log.samples("rl", step, rows[:8])
        return metrics

    functions = reward_functions(config.reward)
    weights = dict(zip(functions, config.reward.all_weights, strict=True))
    gate = dict(zip(config.reward.functions, functions, strict=True)).get(config.reward.gate)
    with RewardPool(functions, weights, config.reward.workers, config.reward.timeout, gate=gate) as pool:
        prompts = PromptBatches(
            train, runtime.tokenizer, config.grpo.num_prompts, config.max_prompt_length, config.seed
        )
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
            _print_evaluation(runtime.console, "base model", evaluation(0))
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
    sampler: Sampling, state: TrainState, held_out: list[PromptBatch], runtime: Runtime, step: int
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
    return evaluate(rollout, runtime.tokenizer, prompts, columns, SCORER)


def _padded(batch: PromptBatch, count: int) -> PromptBatch:
    """Repeats the last prompt of a short batch: a program takes one shape."""
    index = np.minimum(np.arange(count), len(batch.prompts) - 1)
    return PromptBatch(batch.tokens[index], batch.lengths[index], batch.prompts, batch.columns)


def _print_evaluation(console: Console, title: str, metrics: dict[str, float]) -> None:
    shown = "  ".join(f"{name.removeprefix('eval/')} {value:.3g}" for name, value in metrics.items())
    console.print(f"{title}: {shown}", highlight=False, soft_wrap=True)
