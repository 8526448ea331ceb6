"""Rewards that depend on how many tokens a completion has. Options: no recipe uses them unless asked to."""

import math
from collections.abc import Callable, Sequence

from r1jax.errors import check_field


def soft_overlong_punishment_reward(
    prompts: list[str],
    completions: list[str],
    completion_ids: Sequence[Sequence[int]],
    *,
    max_completion_len: int,
    soft_punish_cache: int,
    **columns,
) -> list[float]:
    """DAPO's soft overlong punishment (arXiv 2503.14476, equation 13), between -1.0 and 0.0, under TRL's names.

    With |y| the tokens of a completion, stop token included: 0 up to `max_completion_len` - `soft_punish_cache`, then
    falling linearly to -1 at `max_completion_len`, and -1 beyond. `max_completion_len` is the sampler's own limit or
    less. Raises `ConfigError` unless 0 <= `soft_punish_cache` <= `max_completion_len`.
    """
    check_field(max_completion_len >= 1, "max_completion_len", max_completion_len, "tokens, at least 1")
    check_field(
        0 <= soft_punish_cache <= max_completion_len,
        "soft_punish_cache",
        soft_punish_cache,
        f"tokens, between 0 and max_completion_len={max_completion_len}",
    )
    free = max_completion_len - soft_punish_cache
    over = [len(ids) - free for ids in completion_ids]
    return [0.0 if n <= 0 else -1.0 if n >= soft_punish_cache else -n / soft_punish_cache for n in over]


def cosine_scaled_reward(
    prompts: list[str],
    completions: list[str],
    completion_ids: Sequence[Sequence[int]],
    *,
    accuracy: str | Callable[..., list[float | None]],
    max_len: int,
    min_value_wrong: float = -10.0,
    max_value_wrong: float = 0.0,
    min_value_correct: float = 1.0,
    max_value_correct: float = 2.0,
    exceed_length: float = -10.0,
    **columns,
) -> list[float | None]:
    """The cosine reward (arXiv 2502.03373, section 4.2), with that paper's values and open-r1's names.

    Over 0 to `max_len` tokens, along half a cosine: a correct completion earns from `max_value_correct` down to
    `min_value_correct`, so that short ones earn more; a wrong one from `min_value_wrong` up to `max_value_wrong`, so
    that long ones lose less. One of `max_len` tokens or more gets `exceed_length`, correct or not. Used instead of an
    accuracy reward, not beside it.

    `accuracy` is the reward function that says what is correct, by name or itself: a score of 1 is, None scores None,
    everything else is wrong. Raises `ConfigError` for ranges that are upside down, or for an unknown name.
    """
    # The registry lists this function, so that it cannot be imported before.
    from r1jax.rewards.registry import get_reward

    check_field(max_len >= 1, "max_len", max_len, "tokens, at least 1")
    for low, high, kind in (
        (min_value_wrong, max_value_wrong, "wrong"),
        (min_value_correct, max_value_correct, "correct"),
    ):
        ok = math.isfinite(low) and math.isfinite(high) and low <= high
        check_field(ok, f"min_value_{kind}", low, f"finite, and at most max_value_{kind}={high}")
    check_field(math.isfinite(exceed_length), "exceed_length", exceed_length, "must be finite")
    judge = get_reward(accuracy) if isinstance(accuracy, str) else accuracy

    def scaled(score: float | None, length: int) -> float | None:
        if score is None:
            return None
        if length >= max_len:
            return exceed_length
        if score == 1:
            at_zero, at_limit = max_value_correct, min_value_correct
        else:
            at_zero, at_limit = min_value_wrong, max_value_wrong
        return at_limit + 0.5 * (at_zero - at_limit) * (1.0 + math.cos(math.pi * length / max_len))

    scores = judge(prompts=prompts, completions=completions, **columns) if completions else []
    return [scaled(score, len(ids)) for score, ids in zip(scores, completion_ids, strict=True)]
