"""Scores from graded samples: pass@1, pass@k, cons@k and their confidence intervals. NumPy only.

N problems, k samples each.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

Equivalent = Callable[[str, str], bool | None]
"""Whether two answers are the same; None where that cannot be told, which counts as no."""

_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})")


class Estimate(NamedTuple):
    """A mean over problems with its bootstrap interval."""

    value: float
    low: float
    high: float


def pass_at_1(correct: ArrayLike) -> float:
    """Mean share of right samples: `correct` [N, k] of booleans -> [0, 1] (arXiv 2501.12948, section 3)."""
    return float(_graded(correct).mean())


def pass_at_k(correct: ArrayLike, k: int) -> float:
    """Chance that at least one of `k` samples is right, estimated without bias from `correct` [N, n], n >= k."""
    return float(pass_at_k_per_problem(correct, k).mean())


def pass_at_k_per_problem(correct: ArrayLike, k: int) -> np.ndarray:
    """pass@k of each problem, float64 [N], from `correct` [N, n] of booleans, n >= k.

    1 - C(n-c, k) / C(n, k) with c right samples of n (Chen et al. 2021, arXiv 2107.03374), as the product of 1 - k/i
    for i in n-c+1..n, which does not overflow.
    """
    correct = _graded(correct)
    n = correct.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"k={k}: pass@k needs between 1 and {n} samples, the number drawn per problem")
    # 0 where fewer than k wrong samples exist: k would all miss
    factors = np.maximum(0.0, 1.0 - k / np.arange(1, n + 1))
    return 1.0 - np.array([np.prod(factors[n - c :]) for c in correct.sum(axis=1)])


def majority_answer(answers: Sequence[str | None], equivalent: Equivalent | None = None) -> str | None:
    """The most frequent answer; among equals the one given first. None (no answer found) never wins over an answer.

    With `equivalent`, answers that it holds for the same are counted together, and the one of them given first stands
    for all. Without it, answers are the same that are the same string.
    """
    if equivalent is not None:
        answers = _representatives(answers, equivalent)
    counts = Counter(answer for answer in answers if answer is not None)  # keeps the order of first occurrence
    return max(counts, key=counts.__getitem__, default=None)  # max returns the first of equals


def cons_at_k(
    answers: Sequence[Sequence[str | None]], gold: Sequence[str], equivalent: Equivalent | None = None
) -> float:
    """Share of problems whose majority answer is the gold one: `answers` N x k, `gold` N.

    `equivalent` as for `cons_per_problem`.
    """
    return float(cons_per_problem(answers, gold, equivalent).mean())


def cons_per_problem(
    answers: Sequence[Sequence[str | None]], gold: Sequence[str], equivalent: Equivalent | None = None
) -> np.ndarray:
    """1.0 for each problem whose majority answer is the gold one, else 0.0: float64 [N] from `answers` N x k, `gold` N.

    Votes for answers that are `equivalent` are counted together. By default that is by meaning (`by_meaning`); compare
    strings as they are with `operator.eq`. A gold answer that cannot be read is missed by every answer but itself.
    """
    if not gold:
        raise ValueError("gold: cons@k of no problems is undefined")
    equivalent = equivalent or by_meaning
    verdicts = []
    for row, right in zip(answers, gold, strict=True):
        majority = majority_answer(row, equivalent)
        verdicts.append(majority is not None and (majority == right or bool(equivalent(right, majority))))
    return np.array(verdicts, np.float64)


def by_meaning(first: str, second: str) -> bool | None:
    """Whether two answers mean the same.

    Strings that are equal, and a whole number against a plain one (7, 07, 7.0), are decided here; everything else by
    `r1jax.rewards.equivalence.equivalent`, which may need a worker process, and says how many digits a decimal needs.
    """
    first, second = first.strip(), second.strip()
    if first == second:
        return True
    if _NUMBER.fullmatch(first) and _NUMBER.fullmatch(second):
        ours, theirs = Fraction(first), Fraction(second)
        if ours == theirs or ours.denominator == 1 or theirs.denominator == 1:
            return ours == theirs
    from r1jax.rewards.equivalence import equivalent

    return equivalent(first, second)


def _representatives(answers: Sequence[str | None], equivalent: Equivalent) -> list[str | None]:
    """Each answer replaced by the first one that it is the same as; each different string is compared once."""
    found: dict[str | None, str | None] = {None: None}
    leaders: list[str] = []
    for answer in answers:
        if answer not in found:
            found[answer] = next((leader for leader in leaders if equivalent(leader, answer)), answer)
            if found[answer] == answer:
                leaders.append(answer)
    return [found[answer] for answer in answers]


def best_of_n(scores: ArrayLike, correct: ArrayLike) -> float:
    """Share of problems whose best sample by `scores` [N, n] is right, `correct` [N, n]."""
    return float(best_of_n_per_problem(scores, correct).mean())


def best_of_n_per_problem(scores: ArrayLike, correct: ArrayLike) -> np.ndarray:
    """Whether each problem's best sample by `scores` [N, n] is right by `correct` [N, n]: float64 [N].

    Where several samples share the best score it is the share of them that is right, as if one were drawn. A sample
    whose score is nan is never the best; without any score all samples tie.
    """
    correct = _graded(correct)
    scores = np.asarray(scores, np.float64)
    if scores.shape != correct.shape:
        raise ValueError(f"scores of shape {scores.shape}: needs {correct.shape}, that of correct")
    scores = np.where(np.isnan(scores), -np.inf, scores)
    best = scores == scores.max(axis=1, keepdims=True)
    return (correct & best).sum(axis=1) / best.sum(axis=1)


def estimate(per_problem: ArrayLike, seed: int = 0, n: int = 1000, level: float = 0.95) -> Estimate:
    """The mean of `per_problem` [N] with its `bootstrap_interval`.

    For pass@1 give `correct.mean(axis=1)`, for the other scores what their functions `*_per_problem` return.
    """
    return Estimate(float(np.mean(per_problem)), *bootstrap_interval(per_problem, seed, n, level))


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
    given = np.asarray(correct)
    correct = given.astype(bool)
    if given.dtype != bool and not np.isin(given, (0, 1)).all():
        raise ValueError("correct: holds other values than 0 and 1; say first which scores are right")
    if correct.ndim != 2 or not correct.size:
        raise ValueError(f"correct of shape {correct.shape}: needs [N problems, k samples], neither 0")
    return correct
