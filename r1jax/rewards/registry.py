"""Reward functions by name."""

import importlib
import os
import sys
from collections.abc import Callable

from r1jax.errors import ConfigError
from r1jax.rewards.arithmetic import exact_answer_reward
from r1jax.rewards.code import code_accuracy
from r1jax.rewards.format import format_reward, think_format_reward
from r1jax.rewards.language import language_consistency
from r1jax.rewards.length import cosine_scaled_reward, soft_overlong_punishment_reward
from r1jax.rewards.mathematics import math_accuracy
from r1jax.rewards.repetition import repetition_penalty_reward
from r1jax.rewards.world import refusal_accuracy, request_accuracy, world_accuracy

RewardFunction = Callable[..., list[float | None]]

REWARDS: dict[str, RewardFunction] = {
    "exact_answer": exact_answer_reward,
    "math_accuracy": math_accuracy,
    "format": format_reward,
    "code_accuracy": code_accuracy,
    "think_format": think_format_reward,
    "language_consistency": language_consistency,
    "soft_overlong_punishment": soft_overlong_punishment_reward,
    "cosine_scaled": cosine_scaled_reward,
    "repetition_penalty": repetition_penalty_reward,
    "world_accuracy": world_accuracy,
    "request_accuracy": request_accuracy,
    "refusal_accuracy": refusal_accuracy,
}


def get_reward(name: str) -> RewardFunction:
    """The reward function called `name`: one of `REWARDS`, or your own as "package.module:function".

    Raises `ConfigError` where there is none.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        if name not in REWARDS:
            raise ConfigError(
                f"reward={name!r}: use one of {', '.join(sorted(REWARDS))}, or 'package.module:function' for your own"
            )
        return REWARDS[name]
    if os.getcwd() not in sys.path:  # a script's own folder is on the path, the one that it was started in is not
        sys.path.append(os.getcwd())
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"reward={name!r}: module {module!r} cannot be imported ({error}); run where it lies, or install it"
        ) from error
    except AttributeError:
        raise ConfigError(f"reward={name!r}: module {module!r} has no {attribute!r}; name a function in it") from None
    if not callable(function):
        raise ConfigError(f"reward={name!r}: it is a {type(function).__name__}; name a function")
    return function
