"""Held-out evaluation by sampling: pass@1 over k samples, cons@k, length, format."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from r1jax.data.tokenizer import Tokenizer
from r1jax.evaluation.benchmarks.base import Problem
from r1jax.evaluation.metrics import majority_answer
from r1jax.evaluation.scoring import Grades, Samples, is_right, measure, measure_texts
from r1jax.sampling.sampler import Rollout
from r1jax.sampling.text import decode_completions


@dataclasses.dataclass(frozen=True)
class Scorer:
    """How completions are judged: a correctness reward, the answer that a vote counts, the layout's reward if any."""

    correct: Callable[..., list[float | None]]
    answer: Callable[[str], str | None]
    well_formed: Callable[..., list[float | None]] | None


def evaluate(
    rollout: Rollout, tokenizer: Tokenizer, prompts: Sequence[str], columns: dict[str, list[Any]], scorer: Scorer
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Metrics of k samples per problem (host arrays), and one sample row per problem.

    pass@1 is the mean over samples, cons@k the accuracy of the majority answer. Samples that cannot be scored count as
    wrong here and are reported as `eval/unscored`.
    """
    texts = decode_completions(tokenizer, rollout)
    k = len(texts[0])
    flat = [text for group in texts for text in group]
    per_sample = {name: [value for value in values for _ in range(k)] for name, values in columns.items()}
    repeated = [prompt for prompt in prompts for _ in range(k)]
    scores = scorer.correct(repeated, flat, **per_sample)
    answers = [[scorer.answer(text) for text in group] for group in texts]
    reasons = np.where(rollout.truncated, "length", "stop")
    samples = [
        Samples(Problem(str(i), prompt, {}), texts[i], rollout.lengths[i].tolist(), reasons[i].tolist())
        for i, prompt in enumerate(prompts)
    ]
    grades = [
        Grades(group, [None] * k, answers[i], consensus=_consensus(answers[i], group))
        for i, group in enumerate(scores[j : j + k] for j in range(0, len(scores), k))
    ]
    measured = measure(samples, grades)[0] | measure_texts(samples)
    names = ("pass@1", f"cons@{k}", "mean_length", "truncated", "unscored")
    metrics = {f"eval/{name}": measured[name]["value"] for name in names}
    if scorer.well_formed is not None:
        formatted = scorer.well_formed(repeated, flat, **per_sample)
        metrics["eval/format"] = float(np.mean([score or 0.0 for score in formatted]))
    correct = np.array([is_right(score) for score in scores], np.float64).reshape(-1, k)
    if "level" in columns:
        levels = np.asarray(columns["level"])
        metrics |= {f"eval/level_{n}/pass@1": float(correct[levels == n].mean()) for n in sorted(set(levels.tolist()))}
    rows = [
        {"prompt": columns.get("question", prompts)[i], "completion": texts[i][0], "reward": float(correct[i, 0]),
         "answer": columns["answer"][i] if "answer" in columns else None}
        for i in range(len(texts))
    ]  # fmt: skip
    return metrics, rows


def _consensus(answers: Sequence[str | None], scores: Sequence[float | None]) -> bool:
    """Whether the most frequent answer is right: whether a sample that gives it is."""
    majority = majority_answer(answers)
    return majority is not None and any(is_right(s) for a, s in zip(answers, scores, strict=True) if a == majority)
