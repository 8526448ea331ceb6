"""Group relative policy optimisation (DeepSeekMath, arXiv 2402.03300; DeepSeek-R1, arXiv 2501.12948, section 2.2.1)."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from r1jax.configs.training import GRPOConfig


class Advantages(NamedTuple):
    advantages: Float[Array, "P G"]
    scored: Bool[Array, "P G"]  # completions that have a reward
    zero_std: Bool[Array, "P"]  # groups whose scored rewards are all equal: they teach nothing


def group_advantages(rewards: Float[Array, "P G"], scale_rewards: bool = True) -> Advantages:
    """A_i = (r_i - mean(r)) / std(r) within each group (R1, equation 3): no epsilon, population standard deviation.

    A NaN reward cannot be scored: it stays out of its group's statistics and has no advantage. A group without
    variance has none either, decided by comparing rewards and not by its (rounded) standard deviation.

    Args:
      scale_rewards: False leaves out the division (Dr. GRPO, arXiv 2503.20783).
    """
    scored = ~jnp.isnan(rewards)
    r = jnp.where(scored, rewards, 0.0)
    count = jnp.maximum(scored.sum(axis=1, keepdims=True), 1)
    highest = jnp.where(scored, rewards, -jnp.inf).max(axis=1)
    lowest = jnp.where(scored, rewards, jnp.inf).min(axis=1)
    zero_std = highest <= lowest
    centred = jnp.where(scored & ~zero_std[:, None], r - r.sum(axis=1, keepdims=True) / count, 0.0)
    std = jnp.sqrt(jnp.square(centred).sum(axis=1, keepdims=True) / count)
    advantages = centred / jnp.where(zero_std[:, None], 1.0, std) if scale_rewards else centred
    return Advantages(advantages, scored, zero_std)


def loss_denominator(
    config: GRPOConfig, completion_mask: Bool[Array, "B T"], counted: Bool[Array, "B"]
) -> Float[Array, ""]:
    """What the sum of `sequence_losses` is divided by, taken over the whole minibatch and never a microbatch.

    Sequences that do not count (unscored, truncated and masked, dropped) are in no denominator.
    """
    if config.loss_type == "grpo":
        total = counted.sum()
    elif config.loss_type == "dapo":
        total = (completion_mask & counted[:, None]).sum()
    else:
        total = counted.sum() * config.max_completion_length
    return jnp.maximum(total, 1).astype(jnp.float32)


def grpo_loss(
    config: GRPOConfig,
    logps: Float[Array, "B T"],
    old_logps: Float[Array, "B T"],
    ref_logps: Float[Array, "B T"] | None,
    advantages: Float[Array, "B"],
    completion_mask: Bool[Array, "B T"],
    counted: Bool[Array, "B"],
    denominator: Float[Array, ""],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """This microbatch's part of the loss, and sums for the metrics.

    Per token: -min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon_high) A) + beta k3, with ratio = pi / pi_old and
    k3 = pi_ref / pi - log(pi_ref / pi) - 1 (DeepSeekMath, equation 4), differentiated as it stands: the expected
    gradient of k3 is that of KL(pi_ref || pi), where k1's would be zero.

    Args:
      denominator: `loss_denominator` of the minibatch that this microbatch is a part of.
    """
    mask = completion_mask & counted[:, None]
    weight = mask.astype(jnp.float32)
    # Outside the mask there is nothing to compare; zeros keep exp from overflowing there.
    delta = jnp.where(mask, logps - old_logps, 0.0)
    ratio = jnp.exp(delta)
    clipped = jnp.clip(ratio, 1 - config.epsilon, 1 + config.upper_epsilon)
    a = advantages[:, None]
    token_loss = -jnp.minimum(ratio * a, clipped * a)
    kl = jnp.zeros_like(logps)
    if ref_logps is not None:
        gap = jnp.where(mask, ref_logps - logps, 0.0)
        kl = jnp.exp(gap) - gap - 1
        token_loss = token_loss + config.beta * kl
    per_sequence = (token_loss * weight).sum(axis=1)
    if config.loss_type == "grpo":
        per_sequence = per_sequence / jnp.maximum(weight.sum(axis=1), 1)
    low = (ratio < 1 - config.epsilon) & (a < 0) & mask
    high = (ratio > 1 + config.upper_epsilon) & (a > 0) & mask
    sums = {
        "tokens": weight.sum(),
        "kl": (kl * weight).sum(),
        "clip_ratio/low_mean": low.sum().astype(jnp.float32),
        "clip_ratio/high_mean": high.sum().astype(jnp.float32),
        "clip_ratio/region_mean": (low | high).sum().astype(jnp.float32),
        "ratio_mean": (ratio * weight).sum(),
    }
    return per_sequence.sum() / denominator, sums
