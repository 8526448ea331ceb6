"""Drawing a token from a temperature-scaled, truncated distribution, and what it was drawn with."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from r1jax.configs.training import SamplingConfig


class Drawn(NamedTuple):
    tokens: Int[Array, "*B"]
    logps: Float[Array, "*B"]  # under the distribution drawn from: temperature applied, truncated, renormalised
    log_mass: Float[Array, "*B"]  # of what truncation kept; logps + log_mass is the log-probability before it


def kept(logits: Float[Array, "*B V"], top_k: int, top_p: float) -> Bool[Array, "*B V"]:
    """Top-k, then of those the fewest whose probabilities reach top_p (never none). Ties at the border are kept."""
    keep = jnp.ones(logits.shape, bool)
    if top_k and top_k < logits.shape[-1]:
        keep = logits >= jax.lax.top_k(logits, top_k)[0][..., -1:]
    if top_p < 1:
        descending = -jnp.sort(-jnp.where(keep, logits, -jnp.inf), axis=-1)
        p = jax.nn.softmax(descending, axis=-1)
        needed = jnp.cumsum(p, axis=-1) - p < top_p  # the mass of all likelier tokens falls short
        lowest = jnp.min(jnp.where(needed, descending, jnp.inf), axis=-1, keepdims=True)
        keep &= logits >= lowest
    return keep


def _logp_of(logits: Float[Array, "*B V"], tokens: Int[Array, "*B"]) -> Float[Array, "*B"]:
    return jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), tokens[..., None], axis=-1)[..., 0]


def draw(config: SamplingConfig, key: PRNGKeyArray, logits: Float[Array, "*B V"]) -> Drawn:
    """Draws one token per row from float32 logits in which ids that must not be drawn are -inf.

    Greedy (temperature 0) draws from a point mass: its log-probability is 0, and log_mass is that of the token at
    temperature 1.
    """
    if config.temperature == 0:
        tokens = jnp.argmax(logits, axis=-1)
        return Drawn(tokens, jnp.zeros(tokens.shape, logits.dtype), _logp_of(logits, tokens))
    logits = logits / config.temperature
    if (not config.top_k) and config.top_p == 1:
        tokens = jax.random.categorical(key, logits)
        return Drawn(tokens, _logp_of(logits, tokens), jnp.zeros(tokens.shape, logits.dtype))
    inside = jnp.where(kept(logits, config.top_k, config.top_p), logits, -jnp.inf)
    tokens = jax.random.categorical(key, inside)
    log_mass = jax.nn.logsumexp(inside, axis=-1) - jax.nn.logsumexp(logits, axis=-1)
    return Drawn(tokens, _logp_of(inside, tokens), log_mass)


def distribution(
    config: SamplingConfig, logits: Float[Array, "*B V"]
) -> tuple[Float[Array, "*B V"], Float[Array, "*B"]]:
    """What `draw` draws from: (log-probability of every id, -inf outside of what is kept; log_mass)."""
    if config.temperature == 0:
        best = jnp.argmax(logits, axis=-1)
        point = jnp.where(jax.nn.one_hot(best, logits.shape[-1], dtype=bool), 0.0, -jnp.inf)
        return point, _logp_of(logits, best)
    logits = logits / config.temperature
    if (not config.top_k) and config.top_p == 1:
        return jax.nn.log_softmax(logits, axis=-1), jnp.zeros(logits.shape[:-1], logits.dtype)
    inside = jnp.where(kept(logits, config.top_k, config.top_p), logits, -jnp.inf)
    logz = jax.nn.logsumexp(inside, axis=-1)
    return inside - logz[..., None], logz - jax.nn.logsumexp(logits, axis=-1)
