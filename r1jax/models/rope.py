"""Rotary positions: plain, YaRN (arXiv 2309.00071) and Llama 3's scaling.

MLA rotates interleaved pairs (x0, x1), (x2, x3) ..., as DeepSeek's own code does; GQA rotates halves, as Hugging
Face's Qwen2 and Llama do.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from r1jax.configs.model import ModelConfig


def yarn_mscale(factor: float, mscale: float) -> float:
    """m(s) = 0.1 s ln(factor) + 1 (YaRN, equation 22, with DeepSeek's multiplier s)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def softmax_scale(config: ModelConfig) -> float:
    """What attention scores are multiplied by; under YaRN, MLA's grows with m(mscale_all_dim)^2."""
    if config.attention == "gqa":
        return config.head_dim**-0.5
    scale = (config.qk_nope_head_dim + config.qk_rope_head_dim) ** -0.5
    if config.yarn_active:
        scale *= yarn_mscale(config.rope_scaling.factor, config.rope_scaling.mscale_all_dim) ** 2
    return scale


def inverse_frequencies(config: ModelConfig) -> np.ndarray:
    """Radians per position of each rotated pair: float64 [rope_dim / 2]."""
    dim = config.rope_dim
    inv = config.rope_theta ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)
    s = config.rope_scaling
    if config.yarn_active:
        # Pairs that turn more than beta_fast times within the original length keep their frequency, those that turn
        # less than beta_slow times are slowed by the factor, and a linear ramp joins the two.
        def pair_turning(rotations: float) -> float:
            length = s.original_max_position_embeddings
            return dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(config.rope_theta))

        low = max(math.floor(pair_turning(s.beta_fast)), 0)
        high = min(math.ceil(pair_turning(s.beta_slow)), dim - 1)
        ramp = np.clip((np.arange(dim // 2) - low) / max(high - low, 0.001), 0, 1)
        inv = inv / s.factor * ramp + inv * (1 - ramp)
    elif s is not None and s.type == "llama3":
        wavelength = 2 * math.pi / inv
        length = s.original_max_position_embeddings
        smooth = (length / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
        smooth = np.clip(smooth, 0, 1)
        inv = inv / s.factor * (1 - smooth) + inv * smooth
    return inv


def cos_sin(config: ModelConfig, positions: Int[Array, "*B"]) -> tuple[Float[Array, "*B P"], Float[Array, "*B P"]]:
    """Cosine and sine of each pair's angle, float32 (float64 in a float64 model)."""
    wide = jnp.promote_types(jnp.dtype(config.dtype), jnp.float32)
    angles = positions[..., None].astype(wide) * jnp.asarray(inverse_frequencies(config), wide)
    scale = 1.0
    if config.yarn_active:
        s = config.rope_scaling
        scale = yarn_mscale(s.factor, s.mscale) / yarn_mscale(s.factor, s.mscale_all_dim)
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(x: Float[Array, "*B H R"], cos: Float[Array, "*B P"], sin: Float[Array, "*B P"], interleaved: bool) -> Array:
    """Rotates each pair of the last axis by its angle, in float32, and returns x's dtype."""
    y = x.astype(cos.dtype)
    cos, sin = cos[..., None, :], sin[..., None, :]
    if interleaved:
        a, b = y[..., 0::2], y[..., 1::2]
        y = jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(y.shape)
    else:
        a, b = jnp.split(y, 2, axis=-1)
        y = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return y.astype(x.dtype)
