"""Held-out evaluation by sampling: pass@1 over k samples, cons@k, length, format."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from r1jax.data.tokenizer import Tokenizer
from r1jax.evaluation.metrics import cons_at_k, pass_at_1
from r1jax.sampling.sampler import Rollout
from r1jax.sampling.text import decode_completions


@dataclasses.dataclass(frozen=True)
class Scorer:
    """How completions are judged: a correctness reward, the answer that a vote counts, and the format reward."""

    correct: Callable[..., list[float | None]]
    answer: Callable[[str], str | None]
    well_formed: Callable[..., list[float | None]]


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
    correct = np.array([score or 0.0 for score in scores]).reshape(-1, k)
    answers = [[scorer.answer(text) for text in group] for group in texts]
    formatted = scorer.well_formed(repeated, flat, **per_sample)
    metrics = {
        "eval/pass@1": pass_at_1(correct),
        f"eval/cons@{k}": cons_at_k(answers, columns["answer"]),
        "eval/mean_length": float(np.mean(rollout.lengths)),
        "eval/format": float(np.mean([score or 0.0 for score in formatted])),
        "eval/truncated": float(np.mean(rollout.truncated)),
        "eval/unscored": float(np.mean([score is None for score in scores])),
    }
    if "level" in columns:
        levels = np.asarray(columns["level"])
        metrics |= {f"eval/level_{n}/pass@1": float(correct[levels == n].mean()) for n in sorted(set(levels.tolist()))}
    rows = [
        {"prompt": columns["question"][i], "completion": texts[i][0], "reward": float(correct[i, 0]),
         "answer": columns["answer"][i]}
        for i in range(len(texts))
    ]  # fmt: skip
    return metrics, rows
