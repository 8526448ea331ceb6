"""From graded samples to metrics with intervals, and to one row for each problem. No JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from r1jax.evaluation.benchmarks.base import Problem
from r1jax.evaluation.metrics import best_of_n_per_problem, estimate, pass_at_k

Metric = dict[str, Any]
"""{"value": float, "interval": [low, high] or None}; the interval is the 95% bootstrap interval over problems."""


@dataclasses.dataclass(frozen=True)
class Samples:
    """The k completions of one problem; every list has an entry for each of them."""

    problem: Problem
    completions: Sequence[str]
    tokens: Sequence[int | None] | None = None
    """Lengths in tokens, where known."""
    finish_reasons: Sequence[str | None] | None = None
    """"length" for a completion that reached the limit."""
    given_scores: Sequence[float] | None = None
    """By which best-of-N chooses, the higher the better: a reward model's, say, or mean log-probabilities."""
    unasked: str | None = None
    """Why the model could not be asked; its completions are then empty."""


@dataclasses.dataclass(frozen=True)
class Grades:
    """What a judge said of `Samples`."""

    scores: Sequence[float | None]
    """1 (or more) is right; None could not be scored, and counts as wrong."""
    lost: Sequence[str | None]
    """Why a score is missing though the judge was asked: "timeout" or "crash"."""
    answers: Sequence[str | None] | None = None
    """The answers that were voted on; None where there is no voting."""
    majority: str | None = None
    consensus: bool | None = None
    """Whether the majority's answer is right; None where there is no voting."""


def is_right(score: float | None) -> bool:
    """A score of at least 1; partial credit does not count as right."""
    return score is not None and score >= 1


def measure(samples: Sequence[Samples], grades: Sequence[Grades]) -> tuple[dict[str, Metric], list[str]]:
    """All metrics that the samples allow, by name, and a sentence on each one that they do not.

    Problems may differ in how many completions they have: pass@1 is the mean over problems of each one's share of right
    samples, pass@k goes up to the fewest, and cons@k and best_of_k need the same number everywhere.
    """
    right = [np.array([[is_right(score) for score in g.scores]]) for g in grades]
    counts = sorted({r.size for r in right})
    metrics = {}
    for k in (2**n for n in range(counts[0].bit_length())):
        metrics[f"pass@{k}"] = _over_problems([pass_at_k(r, k) for r in right])
    notes = []
    voted = all(g.consensus is not None for g in grades)
    chosen = all(s.given_scores is not None for s in samples)
    if len(counts) == 1:
        if voted:
            metrics[f"cons@{counts[0]}"] = _over_problems([g.consensus for g in grades])
        if chosen:
            best = best_of_n_per_problem([s.given_scores for s in samples], np.concatenate(right))
            metrics[f"best_of_{counts[0]}"] = _over_problems(best)
    elif voted or chosen:
        names = " and ".join(name for name, there in (("cons@k", voted), ("best_of_k", chosen)) if there)
        notes.append(
            f"{names} left out: problems differ in how many completions they have, {counts[0]} to {counts[-1]}"
        )
    if not voted:
        notes.append("cons@k left out: the judge names no answers to vote on")
    scores = [[0.0 if score is None else score for score in g.scores] for g in grades]
    if any(score not in (0.0, 1.0) for row in scores for score in row):
        metrics["mean_score"] = _over_problems([np.mean(row) for row in scores])
        notes.append("scores other than 0 and 1: at least 1 counts as right, and mean_score is the mean of them all")
    metrics["unscored"] = _plain(np.mean([s is None for g in grades for s in g.scores]))
    return metrics, notes


def measure_texts(samples: Sequence[Samples]) -> dict[str, Metric]:
    """Lengths (mean, median, 95th percentile) in tokens, or else in characters, and the share that was cut off."""
    asked = [s for s in samples if s.unasked is None]
    metrics: dict[str, Metric] = {}
    if not asked:
        return metrics
    tokens = [n for s in asked for n in s.tokens or [None]]
    unit, lengths = (
        ("length", tokens) if None not in tokens else ("characters", [len(t) for s in asked for t in s.completions])
    )
    metrics[f"mean_{unit}"] = _plain(np.mean(lengths))
    metrics[f"median_{unit}"] = _plain(np.median(lengths))
    metrics[f"p95_{unit}"] = _plain(np.quantile(lengths, 0.95))
    reasons = [reason for s in asked for reason in s.finish_reasons or [None]]
    if None not in reasons:
        metrics["truncated"] = _plain(np.mean([reason == "length" for reason in reasons]))
    return metrics


def reflection(samples: Sequence[Samples]) -> dict[str, int]:
    """How often each word of reflection ("wait", "let me check", ...) occurs in all completions."""
    from r1jax.evaluation.reflection import reflection_counts

    return dict(reflection_counts([text for s in samples for text in s.completions]))


def further(
    summarise: Callable[..., Mapping[str, Any]] | None, samples: Sequence[Samples], grades: Sequence[Grades]
) -> dict[str, Metric]:
    """A benchmark's own metrics, {"level": {"1": 0.5}} as {"level/1": ...}; what is no number stays as it is."""
    if summarise is None:
        return {}
    problems, completions = [s.problem for s in samples], [list(s.completions) for s in samples]
    return _flat(summarise(problems, completions, [list(g.scores) for g in grades]))


def count(samples: Sequence[Samples], grades: Sequence[Grades] | None) -> dict[str, int]:
    """How many of everything that a reader should know of; what is lost or not scored counts as wrong."""
    numbers = {
        "problems": len(samples),
        "completions": sum(len(s.completions) for s in samples),
        "problems not asked": sum(s.unasked is not None for s in samples),
    }
    if grades is not None:
        lost = [reason for g in grades for reason in g.lost]
        unscored = sum(score is None for g in grades for score in g.scores)
        numbers["completions that cannot be scored"] = unscored - sum(reason is not None for reason in lost)
        numbers["gradings that timed out"] = lost.count("timeout")
        numbers["gradings that crashed"] = lost.count("crash")
        if all(g.answers is not None for g in grades):
            numbers["completions without an answer"] = sum(a is None for g in grades for a in g.answers)
    return numbers


def problem_row(samples: Samples, grades: Grades | None) -> dict[str, Any]:
    """One problem as a line of problems.jsonl. `flags` name all that its numbers do not tell."""
    row: dict[str, Any] = {"id": samples.problem.id, "problem": samples.problem.prompt}
    if "answer" in samples.problem.columns:
        row["answer"] = samples.problem.columns["answer"]
    flags = [f"not asked: {samples.unasked}"] if samples.unasked is not None else []
    if grades is not None:
        row |= {"pass@1": float(np.mean([is_right(s) for s in grades.scores])), "scores": list(grades.scores)}
        reasons = set(grades.lost) - {None}
        flags += sorted(f"grading {'timed out' if reason == 'timeout' else 'crashed'}" for reason in reasons)
        if any(s is None and not lost for s, lost in zip(grades.scores, grades.lost, strict=True)):
            flags.append("cannot be scored")
        if grades.answers is not None:
            row |= {"answers": list(grades.answers), "majority": grades.majority, "consensus": grades.consensus}
            if grades.majority is None:
                flags.append("no answer to vote on")
    if samples.finish_reasons is not None and "length" in samples.finish_reasons:
        flags.append("cut off")
    row |= {"flags": flags, "completions": list(samples.completions)}
    for name in ("tokens", "finish_reasons", "given_scores"):
        if getattr(samples, name) is not None:
            row[name] = list(getattr(samples, name))
    return row


def _over_problems(per_problem: Sequence[float]) -> Metric:
    value, *interval = estimate(np.asarray(per_problem, np.float64))
    return {"value": value, "interval": interval}


def _plain(value: Any) -> Metric:
    return {"value": value if isinstance(value, int) else float(value), "interval": None}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}/")
        elif isinstance(value, (bool, int, float, np.number)):
            flat[f"{prefix}{name}"] = _plain(value)
        else:
            flat[f"{prefix}{name}"] = {"value": value, "interval": None}
    return flat
