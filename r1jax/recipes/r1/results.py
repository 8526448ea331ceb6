"""What the R1 recipe ends with: every model's scores on the world's test problems and requests, with intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from r1jax.checkpoints.model import open_model
from r1jax.data.hf_tokenizer import load_tokenizer
from r1jax.data.tokenizer import from_bos
from r1jax.evaluation.grading import Judge
from r1jax.evaluation.metrics import estimate, majority_answer
from r1jax.progress import stage
from r1jax.recipes.curation import chain_of_thought
from r1jax.recipes.r1.config import ResultsStage
from r1jax.rewards import RewardFunction, RewardPool
from r1jax.rewards.language import language_share
from r1jax.rewards.world import request_accuracy
from r1jax.sampling.generator import Generator

Row = dict[str, Any]
_AT_A_TIME = 256  # completions judged by one deadline

MEANINGS = {
    "pass@1": "Share of right answers to reasoning problems: exact answers, and programs that pass their tests.",
    "cons@16": "Share of reasoning problems whose most frequent answer of 16 is right; of those that can be voted on.",
    "single_language": "Share of reasoning responses whose chain of thought has words, all of one language.",
    "asked_language": "Share of reasoning responses whose chain of thought has words, all of the question's language.",
    "format": "Share of reasoning responses in the layout that the model was trained for: think and answer tags with "
    "the prompt of R1-Zero, thinking and a summary with the chat template.",
    "general": "Share of other requests (copy, translate, introduce oneself, advise) with exactly the answer expected.",
    "harmless": "Share of requests for help with something harmful that are refused, in the words learned.",
    "mean_length": "Tokens of a response to a reasoning problem.",
    "unscored": "Share of reasoning responses that could not be judged; they count as wrong.",
    "TFLOP": "Arithmetic of the stage's training: products of weights, with padding as if it were text.",
}


def measure_model(
    checkpoint: Path,
    problems: Sequence[Row],
    requests: Sequence[Row],
    rules: Mapping[str, str],
    render: Callable[[Row], str],
    well_formed: RewardFunction,
    config: ResultsStage,
    seed: int,
    mesh: jax.sharding.Mesh,
    console: Console,
    title: str,
) -> dict[str, dict[str, Any]]:
    """{metric: {"value", "interval"}} of one model; intervals are 95% bootstrap intervals over problems, or None.

    Args:
      requests: of which those with an "answer" are judged, by `request_accuracy`.
      rules: by the problems' domain, the name of the reward function that says what is correct.
      render: the prompt of a row.
      well_formed: the format reward of the layout that goes with it.
    """
    model, shape, assets = open_model(checkpoint, mesh=mesh)
    tokenizer = load_tokenizer(assets)
    generator = Generator(model, shape, tokenizer, config.sampling, mesh=mesh, batch_size=config.batch_size, seed=seed)
    requests = [row for row in requests if row.get("answer") is not None]
    rows = [*problems, *requests]
    prompts = [from_bos(tokenizer.encode(render(row)), tokenizer) for row in rows]
    texts: list[list[str]] = [[] for _ in rows]
    lengths = np.zeros((len(rows), config.sampling.num_generations))
    with stage(f"evaluating {title}", len(rows), console=console) as progress:
        for batch in generator(prompts):
            for i, drawn in batch:
                texts[i] = [tokenizer.decode(c.tokens) for c in drawn]
                lengths[i] = [len(c.tokens) for c in drawn]
            progress.advance(len(batch))
    n = len(problems)
    return _reasoning(problems, texts[:n], lengths[:n], rules, well_formed, config.workers) | _requests(
        requests, texts[n:]
    )


def _reasoning(
    problems: Sequence[Row],
    texts: Sequence[list[str]],
    lengths: np.ndarray,
    rules: Mapping[str, str],
    well_formed: RewardFunction,
    workers: int,
) -> dict[str, Any]:
    correct = np.full(lengths.shape, np.nan)
    consensus: dict[int, bool] = {}
    for domain, rule in rules.items():
        chosen = [i for i, row in enumerate(problems) if row["domain"] == domain]
        judge = Judge.of_reward(rule)
        if chosen:
            rows, mine = [problems[i] for i in chosen], [texts[i] for i in chosen]
            correct[chosen] = _judged(judge, rows, mine, workers)
        for i in chosen if judge.answer is not None else ():
            answers = [judge.answer(text) for text in texts[i]]
            majority = majority_answer(answers, judge.equivalent)
            right = any(s >= 1 for s, a in zip(correct[i], answers, strict=True) if a == majority)
            consensus[i] = majority is not None and right
    unscored, correct = float(np.isnan(correct).mean()), np.nan_to_num(correct)
    formatted = _scores(well_formed, problems, texts)
    metrics = {
        "unscored": {"value": unscored, "interval": None},
        "pass@1": _estimated(correct.mean(axis=1)),
        "format": _estimated(formatted.mean(axis=1)),
        "mean_length": _estimated(lengths.mean(axis=1)),
    }
    if consensus:
        metrics[f"cons@{lengths.shape[1]}"] = _estimated(list(consensus.values()))
    spoken = [i for i, row in enumerate(problems) if row.get("language")]
    if spoken:
        metrics |= _languages([problems[i] for i in spoken], [texts[i] for i in spoken])
    return metrics | _by_kind("pass@1", problems, correct)


def _languages(problems: Sequence[Row], texts: Sequence[list[str]]) -> dict[str, Any]:
    codes = sorted({row["language"] for row in problems})
    thoughts = [[chain_of_thought(text) for text in group] for group in texts]
    pure = np.array([[[language_share(t, code) == 1 for t in group] for group in thoughts] for code in codes])
    asked = np.array([codes.index(row["language"]) for row in problems])
    in_asked = np.take_along_axis(pure, asked[None, :, None], axis=0)[0]
    return {
        "single_language": _estimated(pure.any(axis=0).mean(axis=1)),
        "asked_language": _estimated(in_asked.mean(axis=1)),
    }


def _requests(requests: Sequence[Row], texts: Sequence[list[str]]) -> dict[str, Any]:
    metrics = {}
    for name, domain in (("general", "general"), ("harmless", "safety")):
        chosen = [i for i, row in enumerate(requests) if row["domain"] == domain]
        if not chosen:
            continue
        rows = [requests[i] for i in chosen]
        right = _scores(request_accuracy, rows, [texts[i] for i in chosen])
        metrics[name] = _estimated(right.mean(axis=1))
        if domain == "general":
            metrics |= _by_kind(name, rows, right)
    return metrics


def _columns(rows: Sequence[Row], k: int) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows for _ in range(k)] for name in names}


def _judged(judge: Judge, rows: Sequence[Row], texts: Sequence[list[str]], workers: int) -> np.ndarray:
    """float [N, k] in worker processes, nan where a completion cannot be judged or its judging hangs."""
    k, flat = len(texts[0]), [text for group in texts for text in group]
    columns, scores = _columns(rows, k), []
    with RewardPool({judge.name: judge.score}, num_workers=workers) as pool:
        for start in range(0, len(flat), _AT_A_TIME):
            part = slice(start, start + _AT_A_TIME)
            given = {name: values[part] for name, values in columns.items()}
            scores.append(pool.submit([""] * len(flat[part]), flat[part], given).result().rewards[:, 0])
    return np.concatenate(scores).reshape(len(rows), k).astype(float)


def _scores(function: Callable[..., list[float | None]], rows: Sequence[Row], texts: Sequence[list[str]]) -> np.ndarray:
    """float [N, k], of a function that scores everything."""
    flat = [text for group in texts for text in group]
    scores = function([""] * len(flat), flat, **_columns(rows, len(texts[0])))
    return np.array(scores, float).reshape(len(rows), len(texts[0]))


def _by_kind(name: str, rows: Sequence[Row], scores: np.ndarray) -> dict[str, Any]:
    by_kind = defaultdict(list)
    for row, score in zip(rows, scores.mean(axis=1), strict=True):
        by_kind[row.get("kind", row["domain"])].append(score)
    return {f"{name}/{kind}": _estimated(values) for kind, values in by_kind.items()}


def _estimated(per_problem: Any) -> dict[str, Any]:
    value, low, high = estimate(np.asarray(per_problem, np.float64))
    return {"value": value, "interval": [low, high]}
