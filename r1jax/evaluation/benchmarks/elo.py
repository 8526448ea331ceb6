"""A model's Elo rating from contests of people, as CodeElo defines it (arXiv 2501.01257), and its percentile."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from r1jax.errors import DataError

_WRONG_POINTS, _WRONG_MINUTES = 50, 10  # what a wrong submission costs in contests with and without points


@dataclasses.dataclass(frozen=True)
class Contest:
    """The results of a contest's rated participants."""

    id: str
    points: Mapping[str, float | None]
    """What each problem gives, by its index ("A", "B1"); None in a contest that counts problems and penalties."""
    ratings: np.ndarray
    """float64 [n]: each participant's rating before the contest."""
    results: Sequence[tuple[float, float]]
    """Each participant's points and penalty."""

    @classmethod
    def from_api(cls, standings: Mapping[str, Any], rating_changes: Sequence[Mapping[str, Any]], where: str) -> Contest:
        """From what Codeforces' API calls contest.standings and contest.ratingChanges return as `result`.

        Participants are those in both. Raises `DataError` naming `where` if there is none, or a field is missing.
        """
        try:
            before = {change["handle"]: float(change["oldRating"]) for change in rating_changes}
            rows = [(row["party"]["members"][0]["handle"], row) for row in standings["rows"]]
            rated = [(before[handle], row) for handle, row in rows if handle in before]
            contest = cls(
                str(standings["contest"]["id"]),
                {problem["index"]: problem.get("points") for problem in standings["problems"]},
                np.array([rating for rating, _ in rated]),
                [(float(row["points"]), float(row["penalty"])) for _, row in rated],
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(
                f"{where}: {error!r} in its results; give what contest.standings and contest.ratingChanges return"
            ) from None
        if not rated:
            raise DataError(f"{where}: no participant of contest {contest.id} has a rating; give a rated contest")
        return contest


def contest_rating(contest: Contest, attempts: Mapping[str, Sequence[bool]]) -> float:
    """The rating of who solves a contest's problems by `attempts`: for each index, whether each submission was right.

    The first right submission counts. It gives the problem's points less 50 for each wrong one before it, or one
    problem with 10 minutes of penalty for each; time is not counted. Problems without attempts are not solved.
    """
    points = penalty = 0.0
    for index, right in attempts.items():
        if index not in contest.points or not any(right):
            continue
        wrong = list(right).index(True)
        worth = contest.points[index]
        points += 1.0 if worth is None else max(0.0, worth - _WRONG_POINTS * wrong)
        penalty += _WRONG_MINUTES * wrong if worth is None else 0.0
    # Who ties with the model is ahead of it: Codeforces gives all of a tie the last of its places.
    ahead = sum(p > points or (p == points and m <= penalty) for p, m in contest.results)
    return elo_rating(contest.ratings, ahead)


def elo_rating(ratings: np.ndarray, ahead: int) -> float:
    """The rating at which as many of the participants are expected ahead as were: solved by bisection.

    A participant of rating r_i is ahead of one of rating r with probability 1 / (1 + 10^((r - r_i) / 400)); Codeforces'
    expected place is 1 + their sum, and the place is 1 + `ahead`. The rating is sought between 0 and 100 above the best
    participant's, where the ends stand for last and first places, which have no finite solution.
    """
    low, high = 0.0, float(np.max(ratings)) + 100.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        expected = float(np.sum(1.0 / (1.0 + 10.0 ** ((middle - ratings) / 400.0))))
        low, high = (middle, high) if expected > ahead else (low, middle)
    return (low + high) / 2


def percentile(rating: float, people: Sequence[float]) -> float:
    """Share of `people` (their ratings, in ascending order) below `rating`, in percent."""
    return 100.0 * bisect.bisect_left(people, rating) / len(people)


def rate(
    contests: Mapping[str, Contest],
    solved: Mapping[str, Mapping[str, Sequence[bool]]],
    people: Sequence[float] | None,
    submissions: int = 8,
) -> dict[str, float]:
    """Ratings averaged over contests, from `solved`: contest id -> problem index -> k samples right or wrong.

    "rating" is the mean over samples of one submission a problem, as pass@1 is; "rating@8" is CodeElo's, with the first
    8 samples (fewer where k is less) submitted one after the other until one is right. Percentiles where `people`'s
    ratings are given, in ascending order. Contests without results are left out; {} where none has any.
    """
    shared = [(contests[name], problems) for name, problems in solved.items() if name in contests]
    if not shared:
        return {}
    k = min(len(samples) for _, problems in shared for samples in problems.values())
    single = [
        contest_rating(contest, {index: samples[i : i + 1] for index, samples in problems.items()})
        for contest, problems in shared
        for i in range(k)
    ]
    n = min(k, submissions)
    several = [
        contest_rating(contest, {index: samples[:n] for index, samples in problems.items()})
        for contest, problems in shared
    ]
    metrics = {"contests": len(shared), "rating": math.fsum(single) / len(single)}
    metrics[f"rating@{n}"] = math.fsum(several) / len(several)
    if people:
        metrics |= {
            name.replace("rating", "percentile"): percentile(metrics[name], people) for name in list(metrics)[1:]
        }
    return metrics
