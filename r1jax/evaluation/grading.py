"""Judges put to work on samples, in worker processes with deadlines: what hangs costs its own score and no other."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import numpy as np

from r1jax.errors import DataError
from r1jax.evaluation.benchmarks.base import Benchmark
from r1jax.evaluation.metrics import majority_answer
from r1jax.evaluation.scoring import Grades, Samples, is_right
from r1jax.rewards import RewardPool, get_reward

_VOTES = {  # reward functions of r1jax's own whose completions have an answer: (answer, whether two are the same)
    "math_accuracy": ("r1jax.rewards.answers:extract_answer", "r1jax.rewards.equivalence:equivalent"),
    "exact_answer": ("r1jax.rewards.arithmetic:answer_text", None),
    "world_accuracy": ("r1jax.rewards.world:world_answer", None),
}


@dataclasses.dataclass(frozen=True)
class Judge:
    """A reward function that says what is right, and how its completions' answers are voted on."""

    name: str
    score: Callable[..., list[float | None]]
    answer: Callable[[str], str | None] | None = None
    equivalent: Callable[[str, str], bool | None] | None = None

    @classmethod
    def of_reward(cls, name: str) -> Judge:
        """By the name of a reward function. Raises `ConfigError` where there is none."""
        answer, equivalent = _VOTES.get(name, (None, None))
        return cls(name, get_reward(name), answer and get_reward(answer), equivalent and get_reward(equivalent))

    @classmethod
    def of_benchmark(cls, benchmark: Benchmark) -> Judge | None:
        """None where the benchmark is judged elsewhere."""
        if benchmark.score is None:
            return None
        return cls(benchmark.name, benchmark.score, benchmark.answer, benchmark.equivalent)

    def columns(self, given: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Those of a problem's columns that the reward function takes. Raises `DataError` for one that it misses."""
        parameters = inspect.signature(self.score).parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            taken = dict(given)
        else:
            taken = {name: value for name, value in given.items() if name in parameters}
        for name, p in parameters.items():
            named = p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
            if named and name not in given and name not in ("prompts", "completions"):
                raise DataError(f"{where}: has no {name!r}, which {self.name} needs; add it, or use another judge")
        return taken

    def __call__(
        self, prompts: list[str], completions: list[str] | list[list[str]], **columns: Any
    ) -> list[float | None]:
        """What a worker runs. Scores; or, of lists of completions, each one's number that has the majority's answer."""
        if isinstance(completions[0], str):
            return self.score(prompts, completions, **columns)
        return [self._vote([self.answer(text) for text in texts]) for texts in completions]

    def _vote(self, answers: list[str | None]) -> int | None:
        majority = majority_answer(answers, self.equivalent)
        return None if majority is None else answers.index(majority)


def grade(
    judge: Judge, samples: Sequence[Samples], workers: int, timeout: float, done: Collection[int] = ()
) -> Iterator[tuple[int, Grades]]:
    """Yields (number of the problem, its grades) as they come, of the problems that are not `done`.

    `timeout` is in seconds, for each completion and for each vote. The majority is right if the judge holds most of the
    samples with that answer right, so that a vote is judged as its samples are.

    Raises:
      DataError: a problem lacks a column that the judge needs. Before any work.
      RewardError: the judge raised, or returned what is no score.
    """
    columns = [judge.columns(s.problem.columns, f"problem {s.problem.id}") for s in samples]
    left = [i for i in range(len(samples)) if i not in done]
    if not left:
        return
    # The pool is closed first: what still waits for it then fails, and its threads end.
    with (
        ThreadPoolExecutor(workers) as threads,
        RewardPool({judge.name: judge}, num_workers=workers, timeout=timeout) as pool,
    ):
        futures = {threads.submit(_grade_one, judge, pool, samples[i], columns[i]): i for i in left}
        for future in as_completed(futures):
            yield futures.pop(future), future.result()


def _grade_one(judge: Judge, pool: RewardPool, samples: Samples, columns: Mapping[str, Any]) -> Grades:
    def ask(completion: str | list[str]) -> tuple[float | None, str | None]:
        """(score, why it is lost)"""
        told = pool.submit([samples.problem.prompt], [completion], {name: [v] for name, v in columns.items()}).result()
        score = round(float(told.rewards[0, 0]), 6)
        lost = "timeout" if told.timeouts else "crash" if told.crashes else None
        return None if np.isnan(score) else score, lost

    scores, lost = map(list, zip(*map(ask, samples.completions), strict=True))
    if judge.answer is None:
        return Grades(scores, lost)
    number, gone = ask(list(samples.completions))
    if gone:
        return Grades(scores, lost, [None] * len(scores), None, False)
    answers = [judge.answer(text) for text in samples.completions]  # a worker has shown that it ends
    if number is None:
        return Grades(scores, lost, answers, None, False)
    majority = answers[int(number)]
    votes = [s for s, answer in zip(scores, answers, strict=True) if answer == majority and s is not None]
    return Grades(scores, lost, answers, majority, 2 * sum(map(is_right, votes)) > len(votes))
