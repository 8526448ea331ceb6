"""Rewards: graders of completions, on the host. Nothing here imports JAX, so that worker processes start at once."""

from r1jax.rewards.arithmetic import exact_answer_reward
from r1jax.rewards.format import format_reward
from r1jax.rewards.pool import RewardBatch, RewardHandle, RewardPool
from r1jax.rewards.registry import REWARDS, RewardFunction, get_reward

__all__ = [
    "REWARDS",
    "RewardBatch",
    "RewardFunction",
    "RewardHandle",
    "RewardPool",
    "exact_answer_reward",
    "format_reward",
    "get_reward",
]
