"""Log-probabilities of given tokens, without ever holding [B, T, vocab]."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from r1jax.errors import check_field
from r1jax.models.layers import matmul


def allowed_logits(logits: Float[Array, "*B V"], allowed: Bool[Array, "V"] | None) -> Float[Array, "*B V"]:
    """Removes ids that the tokenizer does not have; the sampler and the learner must both do so."""
    return logits if allowed is None else jnp.where(allowed, logits, -jnp.inf)


def next_token_logprobs(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "D V"],
    tokens: Int[Array, "B T"],
    *,
    shift: int = 1,
    temperature: float = 1.0,
    allowed: Bool[Array, "V"] | None = None,
    chunk: int = 0,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """log p(token t | tokens before t) at temperature, aligned with the tokens, and the entropy of that distribution.

    Entry t is read from state t - `shift` (1 for the decoder, 2 for its prediction module); the first `shift` entries,
    which nothing predicts, are 0. float32.

    Args:
      head: output matrix; its dtype is that of the logits (float32).
      temperature: of the distribution that the tokens were drawn from, 0 (greedy) counting as 1.
      allowed: ids that can be drawn at all.
      chunk: positions whose logits exist at a time (recomputed in the backward pass); 0: all.
    """
    temperature = temperature or 1.0

    def block(hidden: Float[Array, "B C D"], targets: Int[Array, "B C"]):
        logits = allowed_logits(matmul(hidden.astype(head.dtype), head) / temperature, allowed)
        log_p = jax.nn.log_softmax(logits, axis=-1)  # no digits are lost to what all logits share
        chosen = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
        p, log_p = jnp.exp(lax.stop_gradient(log_p)), lax.stop_gradient(log_p)
        # 0 log 0 is 0: an id that is not allowed has probability 0 and logit -inf.
        return chosen, -jnp.where(p > 0, p * log_p, 0).sum(axis=-1)

    b, t, d = hidden.shape
    targets = jnp.roll(tokens, -shift, axis=1)
    check_field(not chunk or t <= chunk or t % chunk == 0, "logits_chunk", chunk, f"must divide the length {t}")
    if not chunk or t <= chunk:
        logps, entropy = block(hidden, targets)
    else:
        split = (hidden.reshape(b, -1, chunk, d).swapaxes(0, 1), targets.reshape(b, -1, chunk).swapaxes(0, 1))
        logps, entropy = lax.map(lambda args: jax.checkpoint(block)(*args), split)
        logps, entropy = (a.swapaxes(0, 1).reshape(b, t) for a in (logps, entropy))
    predicted = jnp.arange(t) >= shift
    return tuple(jnp.where(predicted, jnp.roll(a, shift, axis=1), 0.0) for a in (logps, entropy))
