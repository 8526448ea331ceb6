"""What a benchmark is: problems, a protocol for sampling, and how completions are judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem: the user's message, and the columns with which its completions are judged."""

    id: str
    prompt: str
    columns: Mapping[str, Any]
    """Plain JSON values, under the same names in every problem of a benchmark."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How completions are drawn (arXiv 2501.12948, section 3: temperature 0.6, top-p 0.95, 32,768 tokens)."""

    k: int
    """Samples of each problem."""
    max_tokens: int = 32768
    temperature: float = 0.6
    top_p: float = 0.95


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A data set with its protocol and its judges."""

    name: str
    title: str
    source: str
    """Where the rows are unless the user says otherwise: what `r1jax.data.sources.read_rows` takes."""
    load: Callable[[str, int], list[Problem]]
    """(source, seed) -> problems; the seed decides whatever the protocol shuffles. Raises `DataError`."""
    score: Callable[..., list[float | None]] | None
    """A reward function that grades completions from the problems' columns; None where a judge elsewhere does."""
    protocol: Protocol
    answer: Callable[[str], str | None] | None = None
    """The answer that a vote counts; None where there is no voting (programs, essays)."""
    equivalent: Callable[[str, str], bool | None] | None = None
    """Whether two answers are one for the vote; None: as strings."""
    summarise: Callable[..., dict] | None = None
    """Further metrics from (problems, N x k completions, N x k scores): an Elo rating, accuracies by category."""
    export: Callable[[Sequence[Problem], Sequence[Sequence[str]], str], list[dict]] | None = None
    """(problems, completions, model name) -> rows in the format of the benchmark's own harness."""
