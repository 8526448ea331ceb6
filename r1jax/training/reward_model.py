"""The update of reward models, from pairs or from labelled responses. The routers' correction biases are frozen."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, struct
from jaxtyping import Array, Bool, Float, Int

from r1jax import sharding
from r1jax.data.preferences import Kind
from r1jax.losses.preference import bradley_terry_loss, pointwise_loss
from r1jax.models.scalar import ScalarModel
from r1jax.training.accumulate import in_parts
from r1jax.training.state import TrainState


@struct.dataclass
class PreferenceBatch:
    """Examples of S sequences each, right-padded: 2 for a pair, the chosen one first, or 1."""

    tokens: Int[Array, "R S T"]
    lengths: Int[Array, "R S"]
    targets: Float[Array, "R"]  # a pair's margin, a response's label
    counted: Bool[Array, "R"]


def preference_batch(batch: dict[str, np.ndarray], layout: sharding.Layout) -> PreferenceBatch:
    """A batch of `PreferenceBatches` on the mesh."""
    names = {"tokens": ("batch", None, "length"), "lengths": ("batch", None)}
    put = {name: jax.device_put(a, layout.sharding(names.get(name, ("batch",)))) for name, a in batch.items()}
    return PreferenceBatch(**put)


def make_scores(graph: nnx.GraphDef) -> Callable[[nnx.State, PreferenceBatch], Float[Array, "R S"]]:
    """Returns the pure function (state of a `ScalarModel`, batch) -> scores, float32 [R, S]."""

    def scores(state: nnx.State, batch: PreferenceBatch) -> Float[Array, "R S"]:
        model: ScalarModel = nnx.merge(graph, state)
        rows = batch.lengths.size
        return model(batch.tokens.reshape(rows, -1), batch.lengths.reshape(rows)).reshape(batch.lengths.shape)

    return scores


def make_reward_model_update(
    graph: nnx.GraphDef, kind: Kind, optimizer: optax.GradientTransformation, num_microbatches: int = 1
) -> Callable[[TrainState, PreferenceBatch], tuple[TrainState, dict[str, Float[Array, ""]]]]:
    """Returns the pure update (state, batch) -> (state, metrics) of a `ScalarModel`.

    The loss is the mean over the batch's examples that count, however they are split into microbatches and over
    devices; `r1jax.losses.preference` says what the metrics are. Biases that balance experts do not move, as in
    reinforcement learning.
    """
    scores = make_scores(graph)

    def part_loss(params: nnx.State, buffers: nnx.State, batch: PreferenceBatch, count: Float[Array, ""]):
        s = scores(nnx.merge_state(params, buffers), batch)
        if kind == "pairs":
            loss, metrics = bradley_terry_loss(s[:, 0], s[:, 1], batch.targets, batch.counted, count)
        else:
            loss, metrics = pointwise_loss(s[:, 0], batch.targets, batch.counted, count)
        return loss, {"loss": loss} | metrics

    def update(state: TrainState, batch: PreferenceBatch):
        count = batch.counted.sum()

        def gradients(part: PreferenceBatch):
            (_, sums), grads = jax.value_and_grad(part_loss, has_aux=True)(state.params, state.buffers, part, count)
            return (sums, sharding.pin(grads)), ()

        (metrics, grads), _ = in_parts(gradients, batch, num_microbatches)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        tokens = (batch.lengths.sum(axis=1) * batch.counted).sum()
        metrics |= {"grad_norm": optax.tree.norm(grads), "num_tokens": tokens.astype(jnp.float32)}
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return update


def held_out_margins(scores: Float[np.ndarray, "R S"], targets: Float[np.ndarray, "R"], kind: Kind) -> np.ndarray:
    """How far each example's scores lie on the right side, float64 [R]: r_chosen - r_rejected of a pair, and of a
    labelled response its distance from 0 on its label's side. Above 0 is right."""
    scores = np.asarray(scores, np.float64)
    return scores[:, 0] - scores[:, 1] if kind == "pairs" else scores[:, 0] * (2 * np.asarray(targets) - 1)
