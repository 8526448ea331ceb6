"""A penalty for saying the same again and again. An option: no recipe uses it unless asked to."""

from collections.abc import Sequence

from r1jax.errors import check_field


def repetition_penalty_reward(
    prompts: list[str],
    completions: list[str],
    completion_ids: Sequence[Sequence[int]],
    *,
    ngram_size: int = 3,
    max_penalty: float = -1.0,
    **columns,
) -> list[float]:
    """(1 - unique n-grams / n-grams) * `max_penalty` of each completion's tokens (arXiv 2502.03373, C.2; TRL's names).

    0 where no n-gram occurs twice, or where there are fewer than `ngram_size` tokens. Mathematics repeats short
    sequences for good reasons: that paper counts 40-grams in its long chains. Raises `ConfigError` for a size below 1
    or a positive penalty.
    """
    check_field(ngram_size >= 1, "ngram_size", ngram_size, "tokens, at least 1")
    check_field(-3e38 <= max_penalty <= 0, "max_penalty", max_penalty, "must be finite and not positive")
    return [0.0 + max_penalty * _repeated(ids, ngram_size) for ids in completion_ids]  # 0.0 and not -0.0


def _repeated(ids: Sequence[int], n: int) -> float:
    """Share of the n-grams that occurred before."""
    total = len(ids) - n + 1
    return 1.0 - len(set(zip(*(ids[i:] for i in range(n)), strict=False))) / total if total > 0 else 0.0
