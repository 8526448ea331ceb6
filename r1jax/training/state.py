"""What training carries from step to step, and where it lies on the mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jaxtyping import Array, Int, PRNGKeyArray

from r1jax import sharding
from r1jax.configs.model import ModelConfig
from r1jax.models.decoder import Decoder


@struct.dataclass
class TrainState:
    """A pytree; every update returns a new one and donates the old."""

    step: Int[Array, ""]
    params: nnx.State  # of nnx.Param: what gradients move
    buffers: nnx.State  # the routers' correction biases: moved by load in pretraining, frozen in RL
    opt_state: optax.OptState
    ref_params: nnx.State | None = None  # the reference policy of RL

    @property
    def model_state(self) -> nnx.State:
        """Everything that the decoder needs."""
        return nnx.merge_state(self.params, self.buffers)

    @property
    def ref_state(self) -> nnx.State:
        return nnx.merge_state(self.ref_params, self.buffers)


def model_graph(config: ModelConfig, module: type[nnx.Module] = Decoder) -> nnx.GraphDef:
    """The decoder, or another module of its config, without its arrays."""
    return nnx.graphdef(nnx.eval_shape(lambda: module(config, nnx.Rngs(params=0))))


def init_state(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    key: PRNGKeyArray,
    module: type[nnx.Module] = Decoder,
) -> TrainState:
    """A fresh model and optimizer; a pure function, to be jitted with `state_shardings` as its out_shardings."""
    model = module(config, nnx.Rngs(params=key))
    _, params, buffers = nnx.split(model, nnx.Param, ...)
    return TrainState(jnp.int32(0), params, buffers, optimizer.init(params))


def start_state(params: nnx.State, buffers: nnx.State, optimizer: optax.GradientTransformation) -> TrainState:
    """The start of training from given weights: a fresh optimizer, step 0."""
    return TrainState(jnp.int32(0), params, buffers, optimizer.init(params))


def with_reference(state: TrainState, optimizer: optax.GradientTransformation, dtype: str) -> TrainState:
    """The start of RL: the policy as its own reference, a fresh optimizer, step 0."""
    # A copy even where the dtype is the same: the update donates both.
    ref = jax.tree.map(lambda x: jnp.copy(x).astype(dtype), state.params)
    return start_state(state.params, state.buffers, optimizer).replace(ref_params=ref)


def state_shardings(state: TrainState, layout: sharding.Layout) -> Any:
    """Shardings of a TrainState (of arrays or shapes): moments lie as their parameters do, the rest everywhere."""
    params = sharding.state_shardings(state.params, layout)
    by_shape_tree = jax.tree.structure(state.params)

    def like_params(node):
        return jax.tree.structure(node) == by_shape_tree

    def optimizer_part(node):
        return params if like_params(node) else layout.replicated

    opt_state = jax.tree.map(optimizer_part, state.opt_state, is_leaf=like_params)
    return TrainState(
        step=layout.replicated,
        params=params,
        buffers=jax.tree.map(lambda _: layout.replicated, state.buffers),
        opt_state=opt_state,
        ref_params=None if state.ref_params is None else params,
    )


def abstract_state(make: Callable[[PRNGKeyArray], TrainState], layout: sharding.Layout) -> TrainState:
    """Shapes and shardings of the state that `make(key)` returns."""
    shapes = jax.eval_shape(make, jax.random.key(0))
    return jax.tree.map(
        lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes, state_shardings(shapes, layout)
    )


def shardings_of(abstract: TrainState) -> Any:
    """The shardings in what `abstract_state` returns."""
    return jax.tree.map(lambda a: a.sharding, abstract)
