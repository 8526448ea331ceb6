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
from r1jax.sharding import constrain, on_cpu

FEW_TOKENS = 64  # up to which a device's MLPs are `FeaturesFirst`


def precision(dtype: jnp.dtype) -> lax.Precision | None:
    """float32 products must be float32 on every backend: a TPU would otherwise round their inputs to bfloat16."""
    return lax.Precision.HIGHEST if dtype == jnp.float32 else None


def narrow(dtype: jnp.dtype) -> bool:
    """Whether products of `dtype` are asked for in float32, to be rounded after (which is how they are rounded anyway).

    XLA on CPU multiplies bfloat16 as such, where the processor can, only if the result is float32; for another it makes
    float32 copies of both factors, which takes three to ten times as long. Elsewhere a product in float32 would be
    twice as much to sum between devices. (The products within attention, and of experts in tiles, are as they were.)
    """
    return jnp.dtype(dtype).itemsize < 4 and on_cpu()


def dot(x: Array, w: Array, axes: tuple[tuple[int, ...], tuple[int, ...]]) -> Array:
    """The product over `axes` of x and of w; in float32 if they are `narrow`."""
    wide = jnp.float32 if narrow(x.dtype) else None
    return lax.dot_general(x, w, (axes, ((), ())), precision=precision(x.dtype), preferred_element_type=wide)


def narrow_matmul(x: Float[Array, "N D"], w: Array, axis: int) -> Float[Array, "N F"]:
    """`dot` over this axis of w [D, F] or [F, D] for what is `narrow`."""
    if x.shape[0] == 1:  # XLA on CPU would make float32 copies for one row too
        return dot(jnp.concatenate([x, x]), w, ((1,), (axis,)))[:1]
    return dot(x, w, ((1,), (axis,)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: Array, w: Array, contract: int = 1) -> Array:
    """Contracts the last `contract` axes of x [..., in...] with the first of w [in..., out...] -> [..., out...].

    Its backward pass keeps the cotangent materialised in its own layout: left to itself XLA on CPU fuses the
    elementwise chain before it into a transposed copy for the weight gradient, which costs several times the product.
    """
    batch, out = x.shape[: x.ndim - contract], w.shape[contract:]
    if narrow(x.dtype):
        size = math.prod(w.shape[:contract])
        y = narrow_matmul(x.reshape(-1, size), w.reshape(size, -1), 0).reshape(*batch, *out)
    else:
        y = dot(x, w, (tuple(range(len(batch), x.ndim)), tuple(range(contract))))
    return y.astype(x.dtype)


def _matmul_fwd(x, w, contract):
    return matmul(x, w, contract), (x, w)


def _matmul_bwd(contract, saved, g):
    x, w = saved
    g = lax.optimization_barrier(g)
    batch = x.ndim - contract
    out = w.ndim - contract
    dx = dot(g, w, (tuple(range(g.ndim - out, g.ndim)), tuple(range(contract, w.ndim))))
    dw = dot(x, g, (tuple(range(batch)),) * 2)
    return dx.astype(x.dtype), dw.astype(w.dtype)


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


def matmul_features_first(x: Float[Array, "*B D"], w: Float[Array, "F D"]) -> Float[Array, "*B F"]:
    """x @ w.T in float32 at least, as XLA on CPU does it fastest for few tokens: see `FeaturesFirst`."""
    rows = x.reshape(-1, x.shape[-1])
    if narrow(x.dtype):
        y = narrow_matmul(rows, w, 1)
    else:  # the barrier keeps XLA from turning the product round again, to have its result transposed
        y = lax.optimization_barrier(dot(w, rows.T, ((1,), (0,)))).T
    return y.reshape(*x.shape[:-1], -1)


class FeaturesFirst(nnx.Module):
    """Gated MLPs side by side for few tokens, each of which goes through all of them, in two plain products.

    XLA on CPU reads a weight fastest with what it sums over last: a float32 one as the left factor, so that tokens come
    last ([D, N] goes in, [E, F, N] is between, [D, N] comes out), a bfloat16 one as the right factor.
    """

    def __init__(self, gate: Float[Array, "E F D"], up: Float[Array, "E F D"], down: Float[Array, "D E F"]):
        self.in_proj = nnx.Param(jnp.stack([gate, up]))
        self.out_proj = nnx.Param(down)

    def __call__(
        self, x: Float[Array, "A B D"], names: tuple[str, str], share: Float[Array, "E A*B"] | None = None
    ) -> Float[Array, "A B D"]:
        """The MLPs' sum, each token's weighted by its `share` of them; what has none is left out, whatever it is."""
        into, out = (w[...].astype(x.dtype) for w in (self.in_proj, self.out_proj))
        rows = x.reshape(-1, x.shape[-1])
        if narrow(x.dtype):
            both = narrow_matmul(rows, into.reshape(-1, rows.shape[1]), 1).astype(x.dtype)
            gate, up = jnp.moveaxis(both.reshape(-1, *into.shape[:-1]), 1, 0)  # [N, E, F]
            hidden = _weighted(jax.nn.silu(gate) * up, None if share is None else share.T[..., None])
            y = narrow_matmul(hidden.reshape(rows.shape[0], -1), out.reshape(out.shape[0], -1), 1)
            return y.astype(x.dtype).reshape(x.shape)
        gate, up = matmul(into, rows.T)
        hidden = _weighted(jax.nn.silu(gate) * up, None if share is None else share[:, None])
        # The barrier keeps XLA from turning the product round again, to have its result transposed.
        return lax.optimization_barrier(matmul(out, hidden, 2)).T.reshape(x.shape)


def _weighted(hidden: Array, share: Array | None) -> Array:
    if share is None:
        return hidden
    # By `where`: 0 times what overflows would be NaN.
    return jnp.where(share != 0, hidden.astype(share.dtype) * share, 0).astype(hidden.dtype)
