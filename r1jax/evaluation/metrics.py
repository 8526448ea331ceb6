"""Scores from graded samples: pass@1, pass@k, cons@k and their confidence intervals. NumPy only.

N problems, k samples each.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def pass_at_1(correct: ArrayLike) -> float:
    """Mean share of right samples: `correct` [N, k] of booleans -> [0, 1] (arXiv 2501.12948, section 3)."""
    return float(_graded(correct).mean())


def pass_at_k(correct: ArrayLike, k: int) -> float:
    """Chance that at least one of `k` samples is right, estimated without bias from `correct` [N, n], n >= k.

    Per problem 1 - C(n-c, k) / C(n, k) with c right samples of n (Chen et al. 2021, arXiv 2107.03374), as the product
    of 1 - k/i for i in n-c+1..n, which does not overflow.
    """
    correct = _graded(correct)
    n = correct.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"k={k}: pass@k needs between 1 and {n} samples, the number drawn per problem")
    factors = np.maximum(
        0.0, 1.0 - k / np.arange(1, n + 1)
    )  # 0 where fewer than k wrong samples exist: k would all miss
    failures = [np.prod(factors[n - c :]) for c in correct.sum(axis=1)]
    return float(1.0 - np.mean(failures))


def majority_answer(answers: Sequence[str | None]) -> str | None:
    """The most frequent answer; among equals the one given first. None (no answer found) never wins over an answer."""
    counts = Counter(answer for answer in answers if answer is not None)  # keeps the order of first occurrence
    return max(counts, key=counts.__getitem__, default=None)  # max returns the first of equals


def cons_at_k(answers: Sequence[Sequence[str | None]], gold: Sequence[str]) -> float:
    """Share of problems whose majority answer equals the gold one: `answers` N x k, `gold` N.

    Answers are compared as strings: bring equal ones ("1/2", "0.5") to one form first.
    """
    if not gold:
        raise ValueError("gold: cons@k of no problems is undefined")
    return float(np.mean([majority_answer(row) == right for row, right in zip(answers, gold, strict=True)]))


def bootstrap_interval(per_problem: ArrayLike, seed: int, n: int = 1000, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of the mean of `per_problem` [N] over `n` redraws of the problems.

    Problems, not samples, are redrawn: samples of one problem are not independent evidence about others.
    """
    per_problem = np.asarray(per_problem, np.float64)
    if per_problem.ndim != 1 or not per_problem.size or not 0 < level < 1:
        raise ValueError(
            f"per_problem of shape {per_problem.shape}, level={level}: needs [N > 0] and a level in (0, 1)"
        )
    draws = np.random.default_rng(seed).integers(per_problem.size, size=(n, per_problem.size))
    low, high = np.quantile(per_problem[draws].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _graded(correct: ArrayLike) -> np.ndarray:
    correct = np.asarray(correct, bool)
    if correct.ndim != 2 or not correct.size:
        raise ValueError(f"correct of shape {correct.shape}: needs [N problems, k samples], neither 0")
    return correct
