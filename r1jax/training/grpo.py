"""The GRPO update and the programs around it: pure functions of state and batch, to be jitted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from r1jax import sharding
from r1jax.configs.model import ModelConfig
from r1jax.configs.training import GRPOConfig, SamplingConfig
from r1jax.losses.grpo import grpo_loss, loss_denominator
from r1jax.losses.logprobs import next_token_logprobs
from r1jax.models.decoder import Decoder
from r1jax.sampling.sampler import Rollout, make_sampler
from r1jax.training.accumulate import accumulate, split_rows
from r1jax.training.state import TrainState

Metrics = dict[str, Float[Array, ""]]


@struct.dataclass
class GRPOBatch:
    """The one record from sampler to learner: B = P x G sequences of T = S + C tokens, right-padded.

    Entry t of every [B, T] array belongs to token t.
    """

    tokens: Int[Array, "B T"]
    completion_mask: Bool[Array, "B T"]  # the completion, its stop token included
    old_logps: Float[Array, "B T"]  # of the sampler, at its temperature, before truncation by top-k or top-p
    truncated: Bool[Array, "B"]
    allowed: Bool[Array, "V"]  # ids that could be drawn
    experts: Int[Array, "L B T k"] | None = None  # the sampler's choices, if recorded
    ref_logps: Float[Array, "B T"] | None = None
    advantages: Float[Array, "B"] | None = None
    counted: Bool[Array, "B"] | None = None  # sequences in the loss and its denominators


def _after_prompt(prompt: Array, completion: Array, start: Int[Array, "B"]) -> Array:
    """Joins prompt [B, S, ...] and completion [B, C, ...] at each row's `start` -> [B, S + C, ...]."""
    s, c = prompt.shape[1], completion.shape[1]
    offset = jnp.arange(s + c) - start[:, None]
    index = jnp.where(offset < 0, jnp.arange(s + c), s + jnp.clip(offset, 0, c - 1))
    joined = jnp.concatenate([prompt, completion], axis=1)
    return jnp.take_along_axis(joined, index.reshape(index.shape + (1,) * (joined.ndim - 2)), axis=1)


def learner_batch(
    prompts: Int[Array, "P S"],
    prompt_lengths: Int[Array, "P"],
    rollout: Rollout,
    allowed: Bool[Array, "V"],
    pad_id: int,
) -> GRPOBatch:
    """Lays a rollout out for the learner: each completion directly after its prompt, padding at the right only."""
    p, g, c = rollout.completions.shape
    s = prompts.shape[1]
    start = jnp.repeat(prompt_lengths, g)
    lengths = rollout.lengths.reshape(-1)
    at = jnp.arange(s + c)
    mask = (at >= start[:, None]) & (at < (start + lengths)[:, None])
    valid = at < (start + lengths)[:, None]

    def lay_out(prompt: Array, completion: Array) -> Array:
        return _after_prompt(jnp.repeat(prompt, g, axis=0), completion.reshape(p * g, c, *completion.shape[3:]), start)

    tokens = jnp.where(valid, lay_out(prompts, rollout.completions), pad_id)
    logps = lay_out(jnp.zeros(prompts.shape), rollout.logps + rollout.log_mass)
    experts = None
    if rollout.experts is not None:
        experts = jax.vmap(lay_out)(rollout.prompt_experts, rollout.experts)
    return GRPOBatch(
        tokens=tokens,
        completion_mask=mask,
        old_logps=jnp.where(mask, logps, 0.0),
        truncated=rollout.truncated.reshape(-1),
        allowed=allowed,
        experts=experts,
    )


def make_rollout(
    model: ModelConfig,
    graph: nnx.GraphDef,
    config: SamplingConfig,
    stop_ids: tuple[int, ...],
    pad_id: int,
    layout: sharding.Layout,
    record_experts: bool = False,
) -> Callable[..., tuple[Rollout, GRPOBatch]]:
    """Returns the pure function of `make_sampler` for the learner's own state: relaid, sampled, laid out to learn."""
    sampler = make_sampler(graph, config, stop_ids, pad_id, record_experts)

    def rollout(state: nnx.State, prompts, prompt_lengths, max_lengths, allowed, key) -> tuple[Rollout, GRPOBatch]:
        copy = sharding.relay(state, layout, model.dtype)
        rollout = sampler(copy, prompts, prompt_lengths, max_lengths, allowed, key)
        return rollout, learner_batch(prompts, prompt_lengths, rollout, allowed, pad_id)

    return rollout


def _forward(graph: nnx.GraphDef, config: GRPOConfig, chunk: int, state: nnx.State, batch: GRPOBatch):
    """(log-probabilities, entropy) of every token, [B, T]; the temperature is the sampler's."""
    model: Decoder = nnx.merge(graph, state)
    experts = batch.experts if config.replay_experts else None
    hidden = model.trunk(batch.tokens, experts=experts).hidden
    return next_token_logprobs(
        hidden, model.head, batch.tokens, temperature=config.temperature, allowed=batch.allowed, chunk=chunk
    )


def make_logps(model: ModelConfig, graph: nnx.GraphDef, config: GRPOConfig) -> Callable[..., Float[Array, "B T"]]:
    """Returns the pure function (model state, batch) -> log-probability of every token, float32 [B, T]."""

    def logps(state: nnx.State, batch: GRPOBatch) -> Float[Array, "B T"]:
        parts = _microbatches(batch, config.num_microbatches * config.num_minibatches)
        if parts is None:
            return _forward(graph, config, model.logits_chunk, state, batch)[0]
        out = lax.map(lambda part: _forward(graph, config, model.logits_chunk, state, part)[0], parts)
        return out.swapaxes(0, 1).reshape(batch.tokens.shape)

    return logps


def _batched(batch: GRPOBatch, fn: Callable[[Array, int], Array]) -> GRPOBatch:
    """Applies fn(array, batch axis) to everything that has one entry per sequence."""
    experts = None if batch.experts is None else fn(batch.experts, 1)
    rest = batch.replace(experts=None, allowed=None)
    return jax.tree.map(lambda a: fn(a, 0), rest).replace(experts=experts, allowed=batch.allowed)


def _microbatches(batch: GRPOBatch, count: int) -> GRPOBatch | None:
    """Splits a batch into `count` parts in front."""
    if count == 1:
        return None
    parts = _batched(batch, lambda a, axis: split_rows(a, count, axis))
    return parts.replace(allowed=jnp.broadcast_to(batch.allowed, (count, *batch.allowed.shape)))


def make_grpo_update(
    model: ModelConfig,
    graph: nnx.GraphDef,
    config: GRPOConfig,
    optimizer: optax.GradientTransformation,
    seed: int = 0,
) -> Callable[[TrainState, GRPOBatch], tuple[TrainState, Metrics]]:
    """Returns the pure update (state, batch) -> (state, metrics).

    Each of num_iterations passes splits the batch at random (by `seed`, step and pass) into num_minibatches optimizer
    steps, each accumulated over num_microbatches. Denominators are the minibatch's, so that microbatches change nothing
    but rounding.
    """

    def part_loss(params: nnx.State, buffers: nnx.State, batch: GRPOBatch, denominator: Float[Array, ""]):
        logps, entropy = _forward(graph, config, model.logits_chunk, nnx.merge_state(params, buffers), batch)
        loss, sums = grpo_loss(
            config,
            logps,
            batch.old_logps,
            batch.ref_logps,
            batch.advantages,
            batch.completion_mask,
            batch.counted,
            denominator,
        )
        mask = batch.completion_mask
        gap = jnp.where(mask, jnp.abs(lax.stop_gradient(logps) - batch.old_logps), 0.0)
        sums |= {"all_tokens": mask.sum().astype(jnp.float32), "entropy": (entropy * mask).sum(), "gap": gap.sum()}
        return loss, (sums, gap.max())

    def gradients(state: TrainState, batch: GRPOBatch):
        denominator = loss_denominator(config, batch.completion_mask, batch.counted)

        def part_gradients(part: GRPOBatch):
            (loss, (sums, gap)), grads = jax.value_and_grad(part_loss, has_aux=True)(
                state.params, state.buffers, part, denominator
            )
            return (loss, sums, sharding.pin(grads)), gap

        parts = _microbatches(batch, config.num_microbatches)
        return part_gradients(batch) if parts is None else accumulate(part_gradients, parts)

    def optimizer_step(state: TrainState, batch: GRPOBatch) -> tuple[TrainState, Metrics]:
        (loss, sums, grads), gap = gradients(state, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        tokens = jnp.maximum(sums["tokens"], 1)
        all_tokens = jnp.maximum(sums["all_tokens"], 1)
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "entropy": sums["entropy"] / all_tokens,
            "sampling/sampling_logp_difference/mean": sums["gap"] / all_tokens,
            "sampling/sampling_logp_difference/max": gap,
        }
        metrics |= {
            k: sums[k] / tokens
            for k in ("kl", "ratio_mean", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")
        }
        return state.replace(params=params, opt_state=opt_state), metrics

    def update(state: TrainState, batch: GRPOBatch) -> tuple[TrainState, Metrics]:
        first_step = state.step
        all_metrics = []
        for iteration in range(config.num_iterations):
            if config.num_minibatches == 1:
                state, metrics = optimizer_step(state, batch)
            else:
                key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), first_step), iteration)
                order = jax.random.permutation(key, batch.tokens.shape[0])
                shuffled = _batched(batch, lambda a, axis, order=order: jnp.take(a, order, axis=axis))
                state, metrics = lax.scan(optimizer_step, state, _microbatches(shuffled, config.num_minibatches))
                metrics = jax.tree.map(lambda m: m.mean(axis=0), metrics)
            all_metrics.append(metrics)
        metrics = jax.tree.map(lambda *m: sum(m) / len(m), *all_metrics)
        return state.replace(step=first_step + 1), metrics

    return update


def sync_reference(state: TrainState) -> TrainState:
    """The policy becomes the reference (R1: every 400 steps)."""
    ref = jax.tree.map(lambda p, r: jnp.copy(p).astype(r.dtype), state.params, state.ref_params)
    return state.replace(ref_params=ref)


def counted_sequences(
    config: GRPOConfig, truncated: Any, scored: Bool[Array, "P G"], zero_std: Bool[Array, "P"]
) -> Bool[Array, "B"]:
    """Which sequences are in the loss and in its denominators."""
    counted = scored
    if config.drop_zero_variance_groups:
        counted = counted & ~zero_std[:, None]
    counted = counted.reshape(-1)
    return counted & ~truncated if config.mask_truncated_completions else counted
