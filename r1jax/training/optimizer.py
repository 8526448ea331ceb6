"""AdamW, clipping and schedules (optax)."""

from __future__ import annotations

import jax
import optax

from r1jax.configs.training import OptimizerConfig


def schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then constant, linear or cosine to min_lr_ratio at `total_steps`."""
    peak, end = config.learning_rate, config.learning_rate * config.min_lr_ratio
    decay_steps = max(total_steps - config.warmup_steps, 1)
    if config.lr_scheduler_type == "constant":
        after = optax.constant_schedule(peak)
    elif config.lr_scheduler_type == "linear":
        after = optax.linear_schedule(peak, end, decay_steps)
    else:
        after = optax.cosine_decay_schedule(peak, decay_steps, alpha=config.min_lr_ratio)
    if not config.warmup_steps:
        return after
    # The first step is already one warm-up step in: a learning rate of 0 would waste it.
    warmup = optax.linear_schedule(peak / config.warmup_steps, peak, max(config.warmup_steps - 1, 1))
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(
    config: OptimizerConfig, total_steps: int, updates_per_step: int = 1
) -> optax.GradientTransformation:
    """The gradient transformation; weight decay spares whatever is named a norm or a bias.

    Args:
      updates_per_step: optimizer steps per training step; the schedule counts training steps.
    """
    rate = schedule(config, total_steps)

    def decayed(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: (
                not any("norm" in jax.tree_util.keystr((k,)) or "bias" in jax.tree_util.keystr((k,)) for k in path)
            ),
            params,
        )

    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(
            lambda count: rate(count // updates_per_step),
            b1=config.adam_beta1,
            b2=config.adam_beta2,
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
            mask=decayed,
            mu_dtype=config.momentum_dtype,
        ),
    )
