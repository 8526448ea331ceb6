"""Rewards: graders of completions, on the host. Nothing here imports JAX, so that worker processes start at once."""

from r1jax.rewards.arithmetic import exact_answer_reward
from r1jax.rewards.code import code_accuracy
from r1jax.rewards.combination import combine
from r1jax.rewards.format import format_reward, think_format_reward
from r1jax.rewards.language import language_consistency, language_share
from r1jax.rewards.length import cosine_scaled_reward, soft_overlong_punishment_reward
from r1jax.rewards.mathematics import math_accuracy
from r1jax.rewards.parameters import with_parameters
from r1jax.rewards.pool import RewardBatch, RewardHandle, RewardPool
from r1jax.rewards.registry import REWARDS, RewardFunction, get_reward
from r1jax.rewards.repetition import repetition_penalty_reward

__all__ = [
    "REWARDS",
    "RewardBatch",
    "RewardFunction",
    "RewardHandle",
    "RewardPool",
    "code_accuracy",
    "combine",
    "cosine_scaled_reward",
    "exact_answer_reward",
    "format_reward",
    "get_reward",
    "language_consistency",
    "language_share",
    "math_accuracy",
    "repetition_penalty_reward",
    "soft_overlong_punishment_reward",
    "think_format_reward",
    "with_parameters",
]
