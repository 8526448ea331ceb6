"""Rejection sampling: a model's own correct and readable responses, mixed with other data, to learn from.

arXiv 2501.12948, section 2.3 and supplement B.3: several responses to each prompt from the checkpoint of reasoning RL,
of which the correct ones are kept, judged by rule or by a model that sees the reference answer; about 600,000 examples,
and 200,000 others (writing, factual questions, self-cognition, translation).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from r1jax.data.cards import Card, write_data_set
from r1jax.errors import DataError, check_field
from r1jax.recipes.collect import (
    Row,
    Rules,
    Verify,
    as_example,
    candidates,
    counted,
    judge,
    languages_of,
    removed,
    sift,
)
from r1jax.recipes.curation import Curation
from r1jax.sampling.completions import Sample


@dataclasses.dataclass(frozen=True)
class RejectionConfig:
    """How responses are drawn, judged, chosen and mixed."""

    n: int = 16
    """Responses drawn for each prompt."""
    curation: Curation = dataclasses.field(default_factory=Curation)
    general_per_reasoning: float | None = 1 / 3
    """Other examples for each one of reasoning; all there are if None, or if there are fewer."""
    seed: int = 0
    """Of the choice of other examples, and of the order."""
    workers: int = 1
    """Processes that judge by rule."""
    timeout: float = 20.0
    """Seconds for judging one response."""

    def __post_init__(self):
        for name in ("n", "workers"):
            check_field(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        ratio = self.general_per_reasoning
        check_field(ratio is None or ratio >= 0, "general_per_reasoning", ratio, "must not be negative")
        check_field(self.seed >= 0, "seed", self.seed, "must not be negative")
        check_field(self.timeout > 0, "timeout", self.timeout, "seconds, more than 0")


def rejection_sampling(
    problems: Sequence[Row],
    sample: Sample,
    render: Callable[[Row], str],
    rules: Rules,
    path: Path,
    config: RejectionConfig = RejectionConfig(),
    *,
    verify: Verify | None = None,
    general: Iterable[Row] = (),
    settings: Mapping[str, Any] | None = None,
    sources: Mapping[str, str] | None = None,
    console: Console | None = None,
) -> Card:
    """Makes the data set `path` (jsonl) and its card, or does what is left of it.

    A row is {"id", "messages": [user, assistant], "domain", "language", "kind", "source"}, shuffled. Beside it,
    `NAME.drawn.jsonl` holds every completion and `NAME.judged.jsonl` every verdict as they came; killed anywhere and
    called again, it ends with the same bytes, and draws and judges nothing twice.

    Args:
      problems: rows with "question", and where known "answer", "kind", "language", and what the rules need.
      sample: draws from the policy, at the temperature that is to be.
      render: a problem's prompt, as the policy sees it.
      rules, verify: as `r1jax.recipes.collect.judge` takes them.
      general: further examples with "messages", which nothing filters.
      settings: what else decides the completions, as `r1jax.recipes.collect.candidates` takes it.
      sources: what the card names as sources: name -> SHA-256.

    Raises `DataError` where no response is kept, and whatever the two raise.
    """
    general = [_general_example(row, number) for number, row in enumerate(general, 1)]
    parts = {name: path.with_name(f"{path.stem}.{name}.jsonl") for name in ("drawn", "judged")}
    rows = candidates(
        problems, render, sample, config.n, parts["drawn"], way="rejection", settings=settings, console=console
    )
    verdicts = judge(
        rows, rules, parts["judged"], verify=verify, workers=config.workers, timeout=config.timeout, console=console
    )
    reasons = sift(rows, verdicts, config.curation)
    kept = [row for row, reason in zip(rows, reasons, strict=True) if reason is None]
    counts = counted(rows, reasons, by="kind")
    if not kept:
        raise DataError(
            f"{path.name}: no response is kept of {len(rows):,}, of which "
            f"{counts.get('correct responses', 0):,} are correct; draw more, or loosen config.curation"
        )
    reasoning = [as_example(row, "rejection sampling") for row in kept]
    mixed = mix(reasoning, general, config.general_per_reasoning, config.seed)
    counts |= {
        "judged by a model": sum(verdict.by == "judge" for verdict in verdicts),
        "tokens of kept responses": sum(row["tokens"] for row in kept),
        "other rows": len(mixed) - len(kept),
    }
    return write_data_set(
        path,
        mixed,
        title="Rejection-sampled examples",
        description=(
            f"{config.n} responses to each of {len(problems):,} prompts, of which correct and readable ones are kept, "
            f"with {len(mixed) - len(kept):,} rows of other data."
        ),
        sources=sources,
        removed=removed(reasons),
        counts=counts,
        settings={
            "n": config.n,
            "general_per_reasoning": config.general_per_reasoning,
            "seed": config.seed,
            "curation": dataclasses.asdict(config.curation),
        },
        languages=languages_of(mixed),
    )


def mix(reasoning: Sequence[Row], general: Sequence[Row], ratio: float | None, seed: int) -> list[Row]:
    """All of `reasoning` with `ratio` times as many of `general` (all if None, or too few), in an order by `seed`."""
    wanted = len(general) if ratio is None else round(ratio * len(reasoning))
    chosen = np.random.default_rng([seed, 0]).permutation(len(general))[:wanted]
    rows = [*reasoning, *(general[i] for i in sorted(chosen))]
    return [rows[i] for i in np.random.default_rng([seed, 1]).permutation(len(rows))]


def _general_example(row: Row, number: int) -> dict[str, Any]:
    messages = row.get("messages")
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        where = getattr(row, "where", f"general, row {number}")
        raise DataError(
            f"{where}: its fields are {', '.join(row) or 'none'}; give messages, a list of role and content"
        )
    return {"domain": "general", **row}
