"""The small parts that every layer is made of: products, norms, embeddings, the gated MLP."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from r1jax.configs.model import ModelConfig
from r1jax.sharding import constrain

FEW_TOKENS = 64  # up to which a device's MLPs take them with features first


def precision(dtype: jnp.dtype) -> lax.Precision | None:
    """float32 products must be float32 on every backend: a TPU would otherwise round their inputs to bfloat16."""
    return lax.Precision.HIGHEST if dtype == jnp.float32 else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: Array, w: Array, contract: int = 1) -> Array:
    """Contracts the last `contract` axes of x [..., in...] with the first of w [in..., out...] -> [..., out...].

    Its backward pass keeps the cotangent materialised in its own layout: left to itself XLA on CPU fuses the
    elementwise chain before it into a transposed copy for the weight gradient, which costs several times the product.
    """
    axes = (tuple(range(x.ndim - contract, x.ndim)), tuple(range(contract)))
    return lax.dot_general(x, w, (axes, ((), ())), precision=precision(x.dtype))


def _matmul_fwd(x, w, contract):
    return matmul(x, w, contract), (x, w)


def _matmul_bwd(contract, saved, g):
    x, w = saved
    g = lax.optimization_barrier(g)
    batch = x.ndim - contract
    out = w.ndim - contract
    dims = ((tuple(range(g.ndim - out, g.ndim)), tuple(range(contract, w.ndim))), ((), ()))
    dx = lax.dot_general(g, w, dims, precision=precision(x.dtype))
    dw = lax.dot_general(x, g, ((tuple(range(batch)),) * 2, ((), ())), precision=precision(x.dtype))
    return dx, dw


matmul.defvjp(_matmul_fwd, _matmul_bwd)


def parameter(
    rngs: nnx.Rngs,
    config: ModelConfig,
    shape: tuple[int, ...],
    logical: tuple[str | None, ...],
    fan_in: int,
    wide: bool = False,
) -> nnx.Param:
    """A normally distributed weight whose axes carry the logical names of `r1jax.sharding`.

    `wide` marks a weight that enters its product in float32 whatever the compute dtype.
    """
    std = config.initializer_range or 1 / math.sqrt(fan_in)
    value = std * jax.random.normal(rngs.params(), shape, jnp.float32)
    return nnx.Param(value.astype(config.param_dtype), logical=logical, wide=wide)


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis, in float32 whatever the compute dtype."""

    def __init__(self, size: int, eps: float, param_dtype: str):
        self.weight = nnx.Param(jnp.ones(size, param_dtype), logical=(None,), wide=True)
        self.eps = eps

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        wide = jnp.promote_types(x.dtype, jnp.float32)
        y = x.astype(wide)
        y = y * lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return (y * self.weight[...].astype(wide)).astype(x.dtype)


class Embedding(nnx.Module):
    """Token embedding. While learning its width is split; a look-up gathers the table, as layers gather weights.

    Looked up in parts, every sequence's states would have to change devices: XLA then makes all of [B, T, D] whole.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.weight = parameter(
            rngs, config, (config.vocab_size, config.hidden_size), ("vocab", "embed"), 1, config.tie_word_embeddings
        )
        self.dtype = jnp.dtype(config.dtype)

    def __call__(self, tokens: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        # Looked up before it is rounded, so that the gradient of a frequent token is summed in float32.
        return constrain(self.weight[...], "vocab", None)[tokens].astype(self.dtype)


class MLP(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)). Also DeepSeek's shared experts, side by side as one wide MLP."""

    def __init__(self, config: ModelConfig, size: int, rngs: nnx.Rngs):
        d = config.hidden_size
        self.gate_proj = parameter(rngs, config, (d, size), ("embed", "mlp"), d)
        self.up_proj = parameter(rngs, config, (d, size), ("embed", "mlp"), d)
        self.down_proj = parameter(rngs, config, (size, d), ("mlp", "embed"), size)

    def __call__(self, x: Float[Array, "A B D"], names: tuple[str, str]) -> Float[Array, "A B D"]:
        """`names` are the logical names of the two token axes."""
        gate = matmul(x, self.gate_proj[...].astype(x.dtype))
        up = matmul(x, self.up_proj[...].astype(x.dtype))
        hidden = constrain(jax.nn.silu(gate) * up, *names, "mlp")
        return matmul(hidden, self.down_proj[...].astype(x.dtype))

    def prepared(self, tokens: int) -> MLP | FeaturesFirst:
        """The form in which a CPU device takes that many tokens at a time, many times, with all weights."""
        if tokens > FEW_TOKENS:
            return self
        gate, up, down = (w[...].T for w in (self.gate_proj, self.up_proj, self.down_proj))
        return FeaturesFirst(gate[None], up[None], down[:, None])


class FeaturesFirst(nnx.Module):
    """Gated MLPs side by side for few tokens, each of which goes through all of them, in two plain products.

    XLA on CPU reads a weight fastest as the left factor, so tokens come last: [D, N] goes in, [E, F, N] is between,
    [D, N] comes out.
    """

    def __init__(self, gate: Float[Array, "E F D"], up: Float[Array, "E F D"], down: Float[Array, "D E F"]):
        self.in_proj = nnx.Param(jnp.stack([gate, up]))
        self.out_proj = nnx.Param(down)

    def __call__(
        self, x: Float[Array, "A B D"], names: tuple[str, str], share: Float[Array, "E A*B"] | None = None
    ) -> Float[Array, "A B D"]:
        """The MLPs' sum, each token's weighted by its `share` of them; what has none is left out, whatever it is."""
        gate, up = matmul(self.in_proj[...].astype(x.dtype), x.reshape(-1, x.shape[-1]).T)
        hidden = jax.nn.silu(gate) * up
        if share is not None:
            # By `where`: 0 times what overflows would be NaN.
            share = share[:, None]
            hidden = jnp.where(share != 0, hidden.astype(share.dtype) * share, 0).astype(x.dtype)
        y = matmul(self.out_proj[...].astype(x.dtype), hidden, 2)
        # The barrier keeps XLA from turning the product round again, to have its result transposed.
        return lax.optimization_barrier(y).T.reshape(x.shape)
