"""The two training loops: on packed batches, and GRPO. Everything jitted is compiled once, before its loop."""

from __future__ import annotations

import dataclasses
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

from r1jax import sharding
from r1jax.checkpoints.run import RunCheckpoints
from r1jax.configs.model import ModelConfig
from r1jax.configs.training import GRPOConfig, SamplingConfig
from r1jax.data.iterators import Indexable, PromptBatch, prefetch
from r1jax.data.tokenizer import Tokenizer
from r1jax.errors import RewardError
from r1jax.losses.grpo import group_advantages
from r1jax.progress import stage
from r1jax.rewards import RewardBatch, RewardHandle, RewardPool
from r1jax.sampling.sampler import Rollout
from r1jax.sampling.text import decode_completions
from r1jax.training.grpo import (
    GRPOBatch,
    Metrics,
    counted_sequences,
    make_grpo_update,
    make_logps,
    make_rollout,
    sync_reference,
)
from r1jax.training.metrics import MetricsLog
from r1jax.training.programs import Programs
from r1jax.training.state import TrainState, state_shardings
from r1jax.training.supervised import PackedBatch


@dataclasses.dataclass(frozen=True)
class Runtime:
    """What every stage of a run shares."""

    mesh: jax.sharding.Mesh
    model: ModelConfig
    graph: nnx.GraphDef
    tokenizer: Tokenizer
    programs: Programs
    log: MetricsLog
    console: Console
    seed: int

    @property
    def learn(self) -> sharding.Layout:
        return sharding.Layout(self.mesh, "learn")

    @property
    def sample(self) -> sharding.Layout:
        return sharding.Layout(self.mesh, "sample")

    def key(self, purpose: str, step: int) -> jax.Array:
        """The random key of one step of one purpose: a function of the seed, so that resuming needs the step alone."""
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(purpose.encode())), step)
        return jax.device_put(key, self.learn.replicated)

    def put(self, array: np.ndarray, *names: str | None) -> jax.Array:
        """A host array on the mesh, laid out by logical names."""
        return jax.device_put(np.asarray(array), self.learn.sharding(names))


# --------------------------------------------------------------------------------------------------- sampling


class Sampling:
    """A compiled sampler for `prompts` prompts at a time, and the key stream of its noise."""

    def __init__(
        self,
        runtime: Runtime,
        name: str,
        config: SamplingConfig,
        prompts: int,
        length: int,
        state: nnx.State,
        record_experts: bool = False,
    ):
        self.runtime, self.name, self.config, self.prompts = runtime, name, config, prompts
        tokenizer, layout = runtime.tokenizer, runtime.sample
        sample = make_rollout(
            runtime.model, runtime.graph, config, tokenizer.eos_ids, tokenizer.pad_id, layout, record_experts
        )
        self.allowed = runtime.put(tokenizer.valid_ids(runtime.model.vocab_size), None)
        self.limits = runtime.put(np.full(prompts, config.max_completion_length, np.int32), "prompt")
        tokens = runtime.put(np.zeros((prompts, length), np.int32), "prompt", None)
        lengths = runtime.put(np.ones(prompts, np.int32), "prompt")
        args = (state, tokens, lengths, self.limits, self.allowed, runtime.key(name, 0))
        self._program = runtime.programs.compile(name, sample, *args, layout=layout)

    def __call__(self, state: nnx.State, batch: PromptBatch, step: int, part: int = 0) -> tuple[Rollout, GRPOBatch]:
        """Completions for a batch of prompts: (rollout, the learner's record of it), on the device."""
        tokens = self.runtime.put(batch.tokens, "prompt", None)
        lengths = self.runtime.put(batch.lengths, "prompt")
        # A second part of one step (evaluation in several batches) must not repeat the first one's noise.
        key = self.runtime.key(f"{self.name} {part}", step)
        return self._program(state, tokens, lengths, self.limits, self.allowed, key)


# --------------------------------------------------------------------------- pretraining, supervised fine-tuning


def device_batch(runtime: Runtime, batch: dict[str, np.ndarray]) -> PackedBatch:
    """A packed batch on the mesh."""
    return PackedBatch(**{name: runtime.put(a, "batch", "length") for name, a in batch.items()})


def train_supervised(
    runtime: Runtime,
    state: TrainState,
    update: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
    batches: Indexable[dict[str, np.ndarray]],
    checkpoints: RunCheckpoints,
    steps: int,
    save_every: int,
    phase: str,
    title: str,
    evaluate: Callable[[TrainState, int], dict[str, float]] | None = None,
    put: Callable[[Runtime, dict[str, np.ndarray]], Any] = device_batch,
) -> TrainState:
    """Runs `update` on batch after batch from state.step to `steps`; the last step is always saved.

    Args:
      phase: under which metrics are logged.
      title: of the progress bar.
      evaluate: asked before the first step and whenever a checkpoint is due, for metrics that are logged with it.
      put: lays a batch out on the mesh, as `update` takes it.
    """
    first = int(state.step)
    if first == steps:
        return state
    out = (state_shardings(state, runtime.learn), None)
    example = put(runtime, batches[first])
    program = runtime.programs.compile(
        phase, update, state, example, layout=runtime.learn, donate=(0,), out_shardings=out
    )
    if evaluate is not None and first == 0:
        runtime.log.write(phase, 0, evaluate(state, 0))
    with stage(title, steps, first) as progress:
        for step, batch in enumerate(prefetch(batches, first, steps), first + 1):
            start = time.monotonic()
            state, metrics = program(state, put(runtime, batch))
            metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
            metrics["time/update"] = time.monotonic() - start
            due = step % save_every == 0 or step == steps
            if evaluate is not None and due:
                metrics |= evaluate(state, step)
            runtime.log.write(phase, step, metrics)
            progress.advance(
                **{name: metrics[name] for name in ("loss", "eval_loss", "eval_accuracy") if name in metrics}
            )
            if due:
                checkpoints.save(step, state, {"phase": phase, "seed": runtime.seed})
    return state


# ------------------------------------------------------------------------------------------------------- GRPO


class GRPOTrainer:
    """GRPO's compiled programs. `step` is the whole of it: prompts, sample, reward, advantages, update."""

    def __init__(
        self,
        runtime: Runtime,
        config: GRPOConfig,
        optimizer: Any,
        schedule: Callable[[int], Any],
        rewards: RewardPool,
        prompts: Indexable[PromptBatch],
        prompt_length: int,
        state: TrainState,
        text_metrics: Callable[[list[str]], dict[str, float]] = lambda completions: {},
    ):
        self.runtime, self.config, self.rewards, self.prompts, self.schedule, self.text_metrics = (
            runtime,
            config,
            rewards,
            prompts,
            schedule,
            text_metrics,
        )
        model, graph, learn = runtime.model, runtime.graph, runtime.learn
        self.sample = Sampling(
            runtime,
            "sample",
            config.sampling,
            config.num_prompts,
            prompt_length,
            state.model_state,
            record_experts=config.replay_experts,
        )
        batch = self._rollout = self._abstract_batch(prompt_length)
        self.reference = None
        if config.beta:
            logps = make_logps(model, graph, config)
            self.reference = runtime.programs.compile(
                "reference log-probabilities",
                logps,
                state.ref_state,
                batch,
                layout=learn,
                out_shardings=learn.sharding(("batch", "length")),
            )
            batch = batch.replace(ref_logps=self._abstract(batch.tokens.shape, jnp.float32, "batch", "length"))
        rows = config.batch_size
        batch = batch.replace(
            advantages=self._abstract((rows,), jnp.float32, "batch"), counted=self._abstract((rows,), bool, "batch")
        )
        out = (state_shardings(state, learn), None)
        self.update = runtime.programs.compile(
            "GRPO update",
            make_grpo_update(model, graph, config, optimizer, runtime.seed),
            state,
            batch,
            layout=learn,
            donate=(0,),
            out_shardings=out,
        )
        groups = (config.num_prompts, config.num_generations)
        self.advantages = runtime.programs.compile(
            "advantages",
            lambda rewards: group_advantages(rewards, config.scale_rewards),
            self._abstract(groups, jnp.float32),
            layout=learn,
        )
        self.sync = None
        if config.beta and config.ref_model_sync_steps:
            self.sync = runtime.programs.compile(
                "reference sync", sync_reference, state, layout=learn, donate=(0,), out_shardings=out[0]
            )

    def _abstract(self, shape, dtype, *names) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self.runtime.learn.sharding(names))

    def _abstract_batch(self, prompt_length: int) -> GRPOBatch:
        """Shapes of a rollout as the learner sees it."""
        b, t = self.config.batch_size, prompt_length + self.config.max_completion_length
        tokens = lambda dtype: self._abstract((b, t), dtype, "batch", "length")  # noqa: E731
        experts = None
        if self.config.replay_experts and self.runtime.model.num_moe_layers:
            shape = (self.runtime.model.num_moe_layers, b, t, self.runtime.model.num_experts_per_tok)
            experts = self._abstract(shape, jnp.int32, None, "batch", "length", None)
        allowed = self._abstract((self.runtime.model.vocab_size,), bool, None)
        return GRPOBatch(
            tokens(jnp.int32), tokens(bool), tokens(jnp.float32), self._abstract((b,), bool, "batch"), allowed, experts
        )

    def _lay_out(self, batch: GRPOBatch) -> GRPOBatch:
        """The sampler's record in the learner's layout."""
        return jax.tree.map(lambda array, like: jax.device_put(array, like.sharding), batch, self._rollout)

    def step(self, state: TrainState, step: int) -> tuple[TrainState, Metrics, list[dict[str, Any]]]:
        """One step: 1. prompts, 2. sample, 3. reward, 4. advantages, 5. update."""
        clock = _Clock()
        prompts = self.prompts[step]
        rollout, batch = clock("sample", self.sample(state.model_state, prompts, step))
        host = jax.device_get(rollout)
        completions = decode_completions(self.runtime.tokenizer, host)
        scores = self._submit(prompts, completions, host)  # graded in worker processes ...
        batch = self._lay_out(batch)
        if self.reference is not None:  # ... while the device computes what needs no reward
            batch = batch.replace(ref_logps=clock("logps", self.reference(state.ref_state, batch)))
        rewards = scores.result()
        clock("reward", None)
        if np.isnan(rewards.total).all():  # before the update: nothing would be learned from, and Adam would still move
            raise RewardError(
                "no completion of this step could be scored: check the reward functions' answers column and timeouts"
            )
        advantages = jax.device_get(self.advantages(self.runtime.put(rewards.total.reshape(host.lengths.shape))))
        counted = counted_sequences(self.config, host.truncated.reshape(-1), advantages.scored, advantages.zero_std)
        batch = batch.replace(
            advantages=self.runtime.put(advantages.advantages.reshape(-1), "batch"),
            counted=self.runtime.put(counted, "batch"),
        )
        state, metrics = clock("update", self.update(state, batch))
        if self.sync is not None and (step + 1) % self.config.ref_model_sync_steps == 0:
            state = self.sync(state)
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        metrics |= reward_metrics(rewards, host, advantages.zero_std)
        metrics |= self.text_metrics([text for group in completions for text in group])
        metrics |= {"learning_rate": float(self.schedule(step))} | clock.seconds
        return state, metrics, _samples(prompts, completions, rewards)

    def _submit(self, prompts: PromptBatch, completions: list[list[str]], rollout: Rollout) -> RewardHandle:
        g = self.config.num_generations
        columns = {name: [value for value in values for _ in range(g)] for name, values in prompts.columns.items()}
        flat = [text for group in completions for text in group]
        rows = rollout.completions.reshape(len(flat), -1)
        ids = [row[:length] for row, length in zip(rows, rollout.lengths.reshape(-1), strict=True)]
        return self.rewards.submit([prompt for prompt in prompts.prompts for _ in range(g)], flat, columns, ids)


class _Clock:
    """Seconds by part of a step. Waits for each part's arrays, so that a part is charged with its own work."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def __call__(self, part: str, result: Any) -> Any:
        result = jax.block_until_ready(result)
        now = time.monotonic()
        self.seconds[f"time/{part}"] = now - self._last
        self._last = now
        return result


def reward_metrics(rewards: RewardBatch, rollout: Rollout, zero_std: np.ndarray) -> dict[str, float]:
    """TRL's metrics of a rollout (host arrays). Rewards that are None are left out of means and counted."""
    groups = rewards.total.reshape(rollout.lengths.shape)
    lengths, ended = rollout.lengths, ~rollout.truncated
    stds = [np.nanstd(group) for group in groups if not np.isnan(group).all()]
    metrics = {
        "reward": float(np.nanmean(groups)),
        "reward_std": float(np.mean(stds)),
        "frac_reward_zero_std": float(zero_std.mean()),
        "rewards/unscored": float(np.isnan(groups).mean()),
        "rewards/timeouts": float(rewards.timeouts),
        "rewards/crashes": float(rewards.crashes),
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(rollout.truncated.mean()),
        "completions/mean_terminated_length": float(lengths[ended].mean()) if ended.any() else 0.0,
        "num_tokens": float(lengths.sum()),
    }
    for i, name in enumerate(rewards.names):
        column = rewards.rewards[:, i]
        column = column[~np.isnan(column)]
        if column.size:
            metrics |= {f"rewards/{name}/mean": float(column.mean()), f"rewards/{name}/std": float(column.std())}
    return metrics


def _samples(prompts: PromptBatch, completions: Sequence[Sequence[str]], rewards: RewardBatch) -> list[dict[str, Any]]:
    """The first completion of each group, for people to read."""
    totals = rewards.total.reshape(len(completions), -1)
    fields = prompts.columns
    return [
        {
            "prompt": fields.get("question", prompts.prompts)[i],
            "completion": group[0],
            "reward": None if np.isnan(totals[i, 0]) else float(totals[i, 0]),
            "answer": fields["answer"][i] if "answer" in fields else None,
        }
        for i, group in enumerate(completions)
    ]
