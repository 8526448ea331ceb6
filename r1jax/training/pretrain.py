"""The pretraining update: next-token loss, multi-token prediction, balanced experts (DeepSeek-V3, section 2)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jaxtyping import Array, Bool, Float, Int

from r1jax import sharding
from r1jax.configs.model import ModelConfig
from r1jax.configs.training import PretrainLossConfig
from r1jax.losses.logprobs import next_token_logprobs
from r1jax.models.decoder import Decoder
from r1jax.models.moe import RouterBias, balance_bias
from r1jax.training.state import TrainState


@struct.dataclass
class PackedBatch:
    """Whole documents packed into rows; segment 0 is padding."""

    tokens: Int[Array, "B T"]
    segment_ids: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    loss_mask: Bool[Array, "B T"]  # targets that count: entry t says whether predicting token t does


def _mean(values: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, ""]:
    return (values * mask).sum() / jnp.maximum(mask.sum(), 1)


def make_pretrain_update(
    model: ModelConfig, graph: nnx.GraphDef, config: PretrainLossConfig, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, PackedBatch], tuple[TrainState, dict[str, Float[Array, ""]]]]:
    """Returns the pure update (state, batch) -> (state, metrics)."""

    def loss_fn(params: nnx.State, buffers: nnx.State, batch: PackedBatch):
        decoder: Decoder = nnx.merge(graph, params, buffers)
        real = batch.segment_ids > 0
        packed = dict(positions=batch.positions, segment_ids=batch.segment_ids, mask=real)
        trunk = decoder.trunk(batch.tokens, **packed)
        head = decoder.head

        def nll(hidden: Float[Array, "B T D"], shift: int) -> Float[Array, ""]:
            logps, _ = next_token_logprobs(hidden, head, batch.tokens, shift=shift, chunk=model.logits_chunk)
            # Predicting across the border between two documents teaches nothing.
            same = batch.segment_ids == jnp.roll(batch.segment_ids, shift, axis=1)
            same &= jnp.arange(same.shape[1]) >= shift
            return -_mean(logps, batch.loss_mask & same & real)

        loss = nll(trunk.hidden, 1)
        metrics = {"loss": loss}
        total = loss
        routings = [] if trunk.routing is None else [trunk.routing]
        if config.mtp_loss_weight and len(decoder.mtp):
            modules = decoder.mtp_hidden(trunk.hidden, batch.tokens, **packed)
            mtp_loss = sum(nll(hidden, k + 2) for k, (hidden, _) in enumerate(modules)) / len(modules)
            routings += [jax.tree.map(lambda a: a[None], r) for _, r in modules if r is not None]
            metrics["mtp_loss"] = mtp_loss
            total += config.mtp_loss_weight * mtp_loss
        load = {}
        if routings:
            balance = sum(r.balance_loss.sum() for r in routings)
            metrics["balance_loss"] = balance
            total += config.balance_loss_weight * balance
            trunk_load = routings[0].load
            # The busiest expert's load over the mean, less 1 (MaxVio of arXiv 2408.15664), averaged over layers.
            metrics["max_violation"] = (trunk_load.max(axis=-1) / trunk_load.mean(axis=-1) - 1).mean()
            load = {"trunk": trunk_load, "mtp": [r.load[0] for r in routings[1:]]}
        return total, (metrics, load)

    def update(state: TrainState, batch: PackedBatch):
        (_, (metrics, load)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, state.buffers, batch)
        grads = sharding.pin(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        buffers = state.buffers
        if load and config.bias_update_rate:
            buffers = _rebalance(buffers, load, config.bias_update_rate)
        metrics["grad_norm"] = optax.tree.norm(grads)
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
