"""The update of pretraining and of supervised fine-tuning: next-token loss on the targets that count, multi-token
prediction, balanced experts (DeepSeek-V3, section 2)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jaxtyping import Array, Bool, Float, Int

from r1jax import sharding
from r1jax.configs.model import ModelConfig
from r1jax.configs.training import SupervisedLossConfig
from r1jax.losses.logprobs import next_token_logprobs
from r1jax.models.decoder import Decoder
from r1jax.models.moe import RouterBias, balance_bias
from r1jax.training.accumulate import in_parts
from r1jax.training.state import TrainState


@struct.dataclass
class PackedBatch:
    """Whole documents packed into rows; segment 0 is padding."""

    tokens: Int[Array, "B T"]
    segment_ids: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    loss_mask: Bool[Array, "B T"]  # targets that count: entry t says whether predicting token t does


def targets(batch: PackedBatch, shift: int) -> Bool[Array, "B T"]:
    """Tokens to be predicted from `shift` before: those that count, in the same document."""
    same = batch.segment_ids == jnp.roll(batch.segment_ids, shift, axis=1)
    same &= jnp.arange(same.shape[1]) >= shift
    return batch.loss_mask & same & (batch.segment_ids > 0)


def make_supervised_loss(
    model: ModelConfig, graph: nnx.GraphDef
) -> Callable[[nnx.State, PackedBatch], tuple[Float[Array, ""], Float[Array, ""]]]:
    """Returns the pure function (model state, batch) -> (sum of the targets' negative log-likelihoods, their number),
    for evaluation: sums of several batches give the mean over all."""

    def loss(state: nnx.State, batch: PackedBatch) -> tuple[Float[Array, ""], Float[Array, ""]]:
        decoder: Decoder = nnx.merge(graph, state)
        packed = dict(positions=batch.positions, segment_ids=batch.segment_ids, mask=batch.segment_ids > 0)
        hidden = decoder.trunk(batch.tokens, **packed).hidden
        logps, _ = next_token_logprobs(hidden, decoder.head, batch.tokens, chunk=model.logits_chunk)
        counted = targets(batch, 1)
        return -(logps * counted).sum(), counted.sum()

    return loss


def make_supervised_update(
    model: ModelConfig,
    graph: nnx.GraphDef,
    config: SupervisedLossConfig,
    optimizer: optax.GradientTransformation,
    num_microbatches: int = 1,
) -> Callable[[TrainState, PackedBatch], tuple[TrainState, dict[str, Float[Array, ""]]]]:
    """Returns the pure update (state, batch) -> (state, metrics).

    Losses are means over all targets of the batch, so that every token weighs the same however rows are split into
    microbatches and over devices.
    """

    def part_loss(params: nnx.State, buffers: nnx.State, batch: PackedBatch, counts: dict[int, Float[Array, ""]]):
        decoder: Decoder = nnx.merge(graph, params, buffers)
        packed = dict(positions=batch.positions, segment_ids=batch.segment_ids, mask=batch.segment_ids > 0)
        trunk = decoder.trunk(batch.tokens, **packed)
        head = decoder.head

        def nll(hidden: Float[Array, "B T D"], shift: int) -> Float[Array, ""]:
            logps, _ = next_token_logprobs(hidden, head, batch.tokens, shift=shift, chunk=model.logits_chunk)
            return -(logps * targets(batch, shift)).sum() / counts[shift]

        loss = nll(trunk.hidden, 1)
        sums = {"loss": loss}
        total = loss
        routings = [] if trunk.routing is None else [trunk.routing]
        if config.mtp_loss_weight and len(decoder.mtp):
            modules = decoder.mtp_hidden(trunk.hidden, batch.tokens, **packed)
            mtp_loss = sum(nll(hidden, k + 2) for k, (hidden, _) in enumerate(modules)) / len(modules)
            routings += [jax.tree.map(lambda a: a[None], r) for _, r in modules if r is not None]
            sums["mtp_loss"] = mtp_loss
            total += config.mtp_loss_weight * mtp_loss
        if routings:
            balance = sum(r.balance_loss.sum() for r in routings) / num_microbatches
            sums["balance_loss"] = balance
            total += config.balance_loss_weight * balance
            sums["load"] = {"trunk": routings[0].load, "mtp": [r.load[0] for r in routings[1:]]}
        return total, sums

    def update(state: TrainState, batch: PackedBatch):
        counts = {k: jnp.maximum(targets(batch, k).sum(), 1) for k in range(1, model.num_nextn_predict_layers + 2)}

        def gradients(part: PackedBatch):
            (_, sums), grads = jax.value_and_grad(part_loss, has_aux=True)(state.params, state.buffers, part, counts)
            return (sums, sharding.pin(grads)), ()

        (metrics, grads), _ = in_parts(gradients, batch, num_microbatches)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        buffers, load = state.buffers, metrics.pop("load", None)
        if load is not None:
            # The busiest expert's load over the mean, less 1 (MaxVio of arXiv 2408.15664), averaged over layers.
            metrics["max_violation"] = (load["trunk"].max(axis=-1) / load["trunk"].mean(axis=-1) - 1).mean()
            if config.bias_update_rate:
                buffers = _rebalance(buffers, load, config.bias_update_rate)
        metrics |= {"grad_norm": optax.tree.norm(grads), "num_tokens": counts[1].astype(jnp.float32)}
        return TrainState(state.step + 1, params, buffers, opt_state, state.ref_params), metrics

    return update


def _rebalance(buffers: nnx.State, load: dict, rate: float) -> nnx.State:
    """Moves each router's correction bias against its load."""

    def one(path, bias: RouterBias) -> RouterBias:
        keys = [getattr(k, "key", None) for k in path]
        if "mtp" in keys and not load["mtp"]:  # its loss has no weight: it did not run
            return bias
        loads = load["mtp"][keys[keys.index("mtp") + 1]] if "mtp" in keys else load["trunk"]
        return bias.replace(balance_bias(bias.get_value(), loads, rate))

    return jax.tree_util.tree_map_with_path(one, buffers, is_leaf=lambda v: isinstance(v, RouterBias))
