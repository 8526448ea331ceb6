"""Grouped-query attention, as in Qwen2/Qwen3 (query, key and value biases; norms on queries and keys) and Llama 3."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from r1jax.configs.model import ModelConfig
from r1jax.models.attention import by_row, causal_attention, decode_attention
from r1jax.models.layers import RMSNorm, matmul, parameter, precision
from r1jax.models.rope import rotate, softmax_scale
from r1jax.sharding import constrain


class GQA(nnx.Module):
    """A cache entry is [key, value] of every key/value head: [2, Hkv, K]."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        d, h, hkv, k = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.scale = softmax_scale(config)
        self.chunk = config.attention_chunk
        self.kv_heads = hkv
        self.q_proj = parameter(rngs, config, (d, h, k), ("embed", "heads", None), d)
        self.k_proj = parameter(rngs, config, (d, hkv, k), ("embed", "kv_heads", None), d)
        self.v_proj = parameter(rngs, config, (d, hkv, k), ("embed", "kv_heads", None), d)
        self.o_proj = parameter(rngs, config, (h, k, d), ("heads", None, "embed"), h * k)
        self.bias = config.attention_bias
        if self.bias:
            self.q_bias = nnx.Param(jnp.zeros((h, k), config.param_dtype), logical=("heads", None))
            self.k_bias = nnx.Param(jnp.zeros((hkv, k), config.param_dtype), logical=("kv_heads", None))
            self.v_bias = nnx.Param(jnp.zeros((hkv, k), config.param_dtype), logical=("kv_heads", None))
        self.qk_norm = config.qk_norm
        if self.qk_norm:
            self.q_norm = RMSNorm(k, config.rms_norm_eps, config.param_dtype)
            self.k_norm = RMSNorm(k, config.rms_norm_eps, config.param_dtype)

    def _project(self, x: Float[Array, "X Y D"], cos: Array, sin: Array) -> tuple[Array, Array, Array]:
        q = matmul(x, self.q_proj[...].astype(x.dtype))
        k = matmul(x, self.k_proj[...].astype(x.dtype))
        v = matmul(x, self.v_proj[...].astype(x.dtype))
        if self.bias:
            q, k, v = (a + b[...].astype(x.dtype) for a, b in ((q, self.q_bias), (k, self.k_bias), (v, self.v_bias)))
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        return rotate(q, cos, sin, interleaved=False), rotate(k, cos, sin, interleaved=False), v

    def __call__(
        self,
        x: Float[Array, "B T D"],
        cos: Array,
        sin: Array,
        segment_ids: Int[Array, "B T"] | None,
        names: tuple[str, str],
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T 2 Hkv K"]]:
        """Attention over whole sequences, whose axes have logical `names`; the output and each token's cache entry."""
        q, k, v = self._project(x, cos, sin)
        q = constrain(q, *names, "heads", None)
        k, v = (constrain(a, names[0], None, "kv_heads", None) for a in (k, v))
        out = causal_attention(q, k, v, segment_ids, self.scale, self.chunk)
        return matmul(out, self.o_proj[...].astype(x.dtype), 2), jnp.stack([k, v], axis=2)

    def prepare(self) -> None:
        """Nothing here is worth preparing for many steps (`MLA.prepare`)."""

    def decode(
        self,
        x: Float[Array, "P G*Q D"],
        cos: Array,
        sin: Array,
        prompt: Float[Array, "P S 2 Hkv K"],
        prompt_mask: Bool[Array, "P S"],
        completion: Float[Array, "P G C 2 Hkv K"],
        step: Int[Array, "*PG"],
        in_place: bool,
    ) -> tuple[Float[Array, "P G*Q D"], Float[Array, "P G S 2 Hkv K"]]:
        """Q tokens per row against the cache; see `decode_attention` for what comes back beside their output."""
        prec = precision(x.dtype)
        q, k, v = self._project(x, cos, sin)
        entries = by_row(jnp.stack([k, v], axis=2), completion)
        heads = (self.kv_heads, q.shape[2] // self.kv_heads)  # n: key/value head, m: query head within it
        q = by_row(q.reshape(*q.shape[:2], *heads, -1), completion)
        letters = {"shared": "psnk", "own": "pgsnk"}
        scores = {"shared": "psgqnm", "own": "pgsqnm"}

        def score(entries, segment):
            s = jnp.einsum(f"{letters[segment]},pgqnmk->{scores[segment]}", entries[..., 0, :, :], q, precision=prec)
            return s.reshape(*s.shape[:4], -1)

        def read(weights, entries, segment):
            weights = weights.reshape(*weights.shape[:4], *heads)
            values = entries[..., 1, :, :]
            out = jnp.einsum(f"{scores[segment]},{letters[segment]}->pgqnmk", weights, values, precision=prec)
            return out.reshape(*out.shape[:3], -1, out.shape[-1])

        args = (prompt, prompt_mask, completion, entries, step)
        out, written = decode_attention(score, read, *args, self.scale, in_place)
        out = out.reshape(*x.shape[:2], *out.shape[3:])
        return matmul(out, self.o_proj[...].astype(x.dtype), 2), written
