"""Parameters of reward functions, from a configuration."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from r1jax.errors import ConfigError
from r1jax.rewards.registry import REWARDS, RewardFunction, get_reward

_GIVEN = ("prompts", "completions", "completion_ids")  # what every caller passes


def with_parameters(name: str, parameters: Mapping[str, Any]) -> RewardFunction:
    """The reward function called `name` (as `get_reward` takes it) with values for some of its keyword arguments.

    A parameter may also stand for a column, which then holds one value for all rows where the function takes that.
    Where a batch brings a column of the same name, the column counts.

    Raises `ConfigError` where there is no such function or parameter, where one that must be given (keyword-only and
    without a default) is not, and where a function of r1jax's own refuses a value.
    """
    function = get_reward(name)
    arguments = _arguments(function)
    known = [a.name for a in arguments if a.name not in _GIVEN]
    for parameter in parameters:
        if parameter not in known:
            raise ConfigError(
                f"reward.parameters: {name!r} has no parameter {parameter!r}; it takes {', '.join(known) or 'none'}"
            )
    unset = [a for a in arguments if a.default is a.empty and a.name not in parameters]
    needed = [a.name for a in unset if a.kind is a.KEYWORD_ONLY]
    if needed:
        raise ConfigError(f"reward.parameters: {name!r} needs {' and '.join(needed)}; give a value for each")
    if not parameters:
        return function
    bound = functools.partial(function, **parameters)
    if name in REWARDS:  # functions of others may be slow to start, or may not take a batch without rows
        try:
            bound(**{a.name: [] for a in unset})
        except Exception as error:
            raise ConfigError(f"reward.parameters: {name!r} cannot work with {dict(parameters)} ({error})") from None
    return bound


def _arguments(function: RewardFunction) -> list[inspect.Parameter]:
    """The arguments that a function names; none where it does not tell."""
    try:
        arguments = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [a for a in arguments if a.kind in (a.POSITIONAL_OR_KEYWORD, a.KEYWORD_ONLY)]


def needed_columns(function: RewardFunction) -> set[str]:
    """The columns without which a function cannot be called."""
    return {a.name for a in _arguments(function) if a.default is a.empty and a.name not in _GIVEN}


def takes_token_ids(function: RewardFunction) -> bool:
    """Whether a function names the argument `completion_ids`: only then are token ids sent to it."""
    return any(a.name == "completion_ids" for a in _arguments(function))
