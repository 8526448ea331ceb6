"""Losses of reward models: pairs by Bradley-Terry, single responses by binary cross-entropy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Metrics = dict[str, Float[Array, ""]]


def bradley_terry_loss(
    chosen: Float[Array, "R"],
    rejected: Float[Array, "R"],
    margin: Float[Array, "R"] | float = 0.0,
    counted: Bool[Array, "R"] | None = None,
    denominator: Float[Array, ""] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Mean of -log sigmoid(r_chosen - r_rejected - margin) over pairs, and metrics as TRL's RewardTrainer calls them.

    The Bradley-Terry model of preferences (Biometrika 39, 1952) as a loss: InstructGPT (arXiv 2203.02155), equation 1;
    R1's helpfulness model is a pairwise one (arXiv 2501.12948, section 3.1). The margin by which a pair must be told
    apart is that of Llama 2 (arXiv 2307.09288), equation 2.

    Args:
      counted: pairs that count; None: all.
      denominator: how many those are in the whole batch, of which these may be a part; None: those here.

    Returns:
      The loss, and "accuracy" (share of pairs whose chosen response scores higher; equal scores are no success),
      "margin" (mean of r_chosen - r_rejected), "chosen_reward" and "rejected_reward": each this part's share of the
      mean over the batch, so that the parts add up.
    """
    delta = chosen - rejected
    mean = _mean(chosen, counted, denominator)
    metrics = {
        "accuracy": mean((delta > 0).astype(delta.dtype)),
        "margin": mean(delta),
        "chosen_reward": mean(chosen),
        "rejected_reward": mean(rejected),
    }
    return mean(-jax.nn.log_sigmoid(delta - margin)), metrics


def pointwise_loss(
    scores: Float[Array, "R"],
    labels: Float[Array, "R"],
    counted: Bool[Array, "R"] | None = None,
    denominator: Float[Array, ""] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Mean binary cross-entropy of sigmoid(score) against labels 1 (safe) and 0, and metrics.

    R1's safety model is trained pointwise to tell safe responses from unsafe ones (arXiv 2501.12948, section 3.1). The
    other arguments are those of `bradley_terry_loss`, and so are the metrics, where "accuracy" is the share of scores
    on the right side of 0, "margin" the mean distance from it on that side, and "mean_reward" the mean score.
    """
    mean = _mean(scores, counted, denominator)
    signed = scores * (2 * labels - 1)
    losses = jax.nn.softplus(scores) - labels * scores
    metrics = {"accuracy": mean((signed > 0).astype(scores.dtype)), "margin": mean(signed), "mean_reward": mean(scores)}
    return mean(losses), metrics


def _mean(like: Array, counted: Bool[Array, "R"] | None, denominator: Float[Array, ""] | None):
    counted = jnp.ones(like.shape, bool) if counted is None else counted
    total = jnp.maximum(counted.sum() if denominator is None else denominator, 1)
    return lambda values: jnp.where(counted, values, 0).sum() / total
