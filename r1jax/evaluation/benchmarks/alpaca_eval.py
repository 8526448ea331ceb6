"""AlpacaEval 2: outputs for a judge, and length-controlled win rates from its verdicts (arXiv 2404.04475)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from r1jax.errors import DataError
from r1jax.evaluation.benchmarks.base import Benchmark, Problem, Protocol
from r1jax.evaluation.benchmarks.rows import Row, final_response, read_problems

_GAMED_WEIGHT = 0.2 / 2  # of each gamed verdict: AlpacaEval's regularisation of 0.2, shared by its two gamed models


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A judge's verdict on one instruction, between a baseline's output and the model's."""

    index: int
    """The instruction's place in the data set, from 0."""
    preference: float
    """In [0, 1]: how much the judge prefers the model's output."""
    length_difference: int
    """Characters of the baseline's output less those of the model's."""


@dataclasses.dataclass(frozen=True)
class WinRates:
    """Percentages, with standard errors over instructions."""

    win_rate: float
    standard_error: float
    length_controlled: float
    length_controlled_standard_error: float
    verdicts: int
    coefficients: Mapping[str, float]
    """Of the regression: "length", "difficulty", "model"."""


def read_verdicts(source: str) -> list[Verdict]:
    """Verdicts from AlpacaEval's annotations.json, or any rows with its fields, in the order of its instructions.

    These are output_1 (the baseline's), output_2 (the model's) and preference, from 1 (for the baseline's) to 2 (for
    the model's); 0 is a draw. Where the preference is null the judge failed: such rows are left out. Raises
    `DataError`.
    """
    from r1jax.data.sources import iterate_rows

    verdicts = []
    for number, fields in enumerate(iterate_rows(source)):
        row = Row(fields, f"{source}, row {number + 1}", number)
        preference = row.fields.get("preference")
        if preference is None and "preference" in row.fields:
            continue
        known = isinstance(preference, int | float) and not isinstance(preference, bool)
        if not known or not (preference == 0 or 1 <= preference <= 2):
            raise row.wrong(f"preference={preference!r}", "give a number from 1 to 2, or 0 for a draw")
        lengths = len(row.get("output_1")), len(row.get("output_2"))
        verdicts.append(Verdict(number, (preference or 1.5) - 1, lengths[0] - lengths[1]))
    if not verdicts:
        raise DataError(f"source={source!r}: it holds no verdict; give the judge's annotations.json")
    return verdicts


def read_difficulties(source: str) -> dict[int, float]:
    """Difficulties by the instruction's place, from the published instruction_difficulty.csv. Raises `DataError`."""
    from r1jax.data.sources import iterate_rows

    difficulties = {}
    for number, fields in enumerate(iterate_rows(source)):
        row = Row(fields, f"{source}, row {number + 1}", number)
        try:
            difficulties[int(next(iter(fields.values())))] = float(row.get("instruction_difficulty"))
        except ValueError as error:
            raise row.wrong(f"{error}", "give a place, and instruction_difficulty, in numbers") from None
    return difficulties


def win_rates(
    verdicts: Sequence[Verdict],
    difficulty: Mapping[int, float] | None = None,
    gamed: Sequence[Mapping[str, Any]] = (),
) -> WinRates:
    """The win rate, and the one the model would have with outputs as long as the baseline's.

    The preference is fitted by a logistic regression (equation 1, for one model against the baseline): a model term,
    the instruction's difficulty times a coefficient, and a coefficient times tanh of the difference in length over its
    standard deviation. The length-controlled win rate is the mean of what it predicts without the last.

    Args:
      difficulty: of each instruction by its place. The published ones were fitted over the leaderboard's models, and
        are on the hub (tatsu-lab/alpaca_eval, instruction_difficulty.csv, for `read_difficulties`). None leaves the
        term out, as AlpacaEval's "minimal" variant does.
      gamed: the published verdicts on outputs made to game length (df_gamed.csv there): rows with preference in [0, 1],
        std_delta_len and instruction_difficulty. They enter the fit with a weight of 0.1 each, which keeps the
        coefficients from moving far where a model's lengths hardly differ from the baseline's.

    Raises `DataError` for an instruction without difficulty, and fewer than two verdicts.
    """
    if len(verdicts) < 2:
        raise DataError(f"{len(verdicts)} verdicts: a regression needs at least 2")
    preference = np.array([verdict.preference for verdict in verdicts])
    lengths = np.array([verdict.length_difference for verdict in verdicts], np.float64)
    spread = lengths.std(ddof=1)
    length = np.tanh(lengths / spread) if spread > 0 else np.zeros_like(lengths)
    hard = _difficulties(verdicts, difficulty)
    features = np.stack([length, hard, np.ones_like(hard)], axis=1)
    weights = np.ones(len(verdicts))
    targets = preference
    if gamed:
        rows = [(np.tanh(float(r["std_delta_len"])), float(r["instruction_difficulty"]), 0.0) for r in gamed]
        features = np.concatenate([features, rows])
        targets = np.concatenate([targets, [float(row["preference"]) for row in gamed]])
        weights = np.concatenate([weights, np.full(len(gamed), _GAMED_WEIGHT)])
    coefficients = fit_logistic(features, targets, weights)
    fair = 1 / (1 + np.exp(-(hard * coefficients[1] + coefficients[2])))
    return WinRates(
        *_percent(preference),
        *_percent(fair),
        len(verdicts),
        dict(zip(("length", "difficulty", "model"), map(float, coefficients), strict=True)),
    )


def _difficulties(verdicts: Sequence[Verdict], difficulty: Mapping[int, float] | None) -> np.ndarray:
    if difficulty is None:
        return np.zeros(len(verdicts))
    missing = [verdict.index for verdict in verdicts if verdict.index not in difficulty]
    if missing:
        raise DataError(f"difficulty: instruction {missing[0]} has none; give one for each of the instructions")
    return np.array([difficulty[verdict.index] for verdict in verdicts])


def _percent(values: np.ndarray) -> tuple[float, float]:
    return 100 * float(values.mean()), 100 * float(values.std(ddof=1) / np.sqrt(len(values)))


def fit_logistic(features: np.ndarray, targets: np.ndarray, weights: np.ndarray, ridge: float = 1e-3) -> np.ndarray:
    """Coefficients [F] of logistic(features @ coefficients) for `targets` [N] in [0, 1], features [N, F], by Newton.

    `weights` [N] multiply the log-losses; `ridge` times half the squared coefficients is added, so that they stay
    finite where the data can be parted without error. A step that would not improve is halved.
    """
    coefficients = np.zeros(features.shape[1])

    def loss(at: np.ndarray) -> float:
        logits = features @ at
        return float(weights @ (np.logaddexp(0, logits) - targets * logits) + ridge * (at @ at) / 2)

    for _ in range(100):
        logits = features @ coefficients
        probability = 1 / (1 + np.exp(-logits))
        gradient = features.T @ (weights * (probability - targets)) + ridge * coefficients
        curvature = (features.T * (weights * probability * (1 - probability))) @ features
        step = np.linalg.solve(curvature + ridge * np.eye(len(coefficients)), gradient)
        now = loss(coefficients)
        while loss(coefficients - step) > now and np.abs(step).max() > 1e-12:
            step /= 2
        coefficients = coefficients - step
        if np.abs(step).max() < 1e-10:
            break
    return coefficients


def load(source: str, seed: int) -> list[Problem]:
    """AlpacaEval's instructions, asked as they are. Column: `dataset`, which the exported outputs name."""
    del seed

    def build(row: Row) -> Problem:
        return Problem(
            id=f"alpaca_eval/{row.number}",
            prompt=row.get("instruction"),  # to the letter: verdicts are joined by it
            columns={"dataset": row.find("dataset") or "alpaca_eval"},
        )

    return read_problems(source, build)


def export(problems: Sequence[Problem], completions: Sequence[Sequence[str]], model: str) -> list[dict[str, str]]:
    """AlpacaEval's model outputs: of each first completion the response alone, as the paper gives it to the judge."""
    return [
        {
            "instruction": problem.prompt,
            "output": final_response(texts[0]),
            "generator": model,
            "dataset": problem.columns["dataset"],
        }
        for problem, texts in zip(problems, completions, strict=True)
    ]


ALPACA_EVAL = Benchmark(
    name="alpaca_eval",
    title="AlpacaEval 2",
    source="hf:tatsu-lab/alpaca_eval:alpaca_eval_gpt4_baseline",
    load=load,
    score=None,
    protocol=Protocol(k=1),  # its judge compares one output an instruction
    export=export,
)
