"""`r1jax decontaminate`: training rows without those that share ten words in sequence with a benchmark."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from r1jax.data.decontamination import NgramIndex
from r1jax.data.sources import iterate_rows
from r1jax.errors import ConfigError, DataError, check_field
from r1jax.files import write_rows


@dataclasses.dataclass(frozen=True)
class DecontaminateConfig:
    """Keeps training rows that share no sequence of words with a benchmark's questions or reference solutions."""

    train: str
    """Training rows: a path, tfds:NAME:SPLIT or hf:OWNER/NAME."""
    against: tuple[str, ...]
    """Benchmarks, each given likewise."""
    out: Path
    """A jsonl file for the rows that are kept, as they are and in their order."""
    removed: Path | None = None
    """A jsonl file for the others, each with its "match": the benchmark, its row and the words."""
    n: int = 10
    """Words in sequence."""
    fields: tuple[str, ...] = ("question", "problem", "prompt", "messages")
    """Where a row's text is: in the first of these that it has."""
    solutions: tuple[str, ...] = ("solution", "canonical_solution", "answer")
    """Where a benchmark row's reference solution is, if it has one: in any of these."""

    def __post_init__(self):
        check_field(self.n >= 1, "n", self.n, "words in sequence, at least 1")
        check_field(bool(self.against), "against", self.against, "give at least one benchmark")
        for name in ("out", "removed"):
            path = getattr(self, name)
            check_field(path is None or path.parent.is_dir(), name, str(path), "its folder does not exist; make it")
            check_field(
                path is None or not path.exists(), name, str(path), "is already there; choose another, remove it"
            )
        check_field(self.out != self.removed, "removed", str(self.removed), "must not be the file of --out")


def decontaminate(config: DecontaminateConfig) -> None:
    """Runs the command. Rows pass through one by one; `out` and `removed` are whole or not there."""
    origins: list[tuple[str, int]] = []  # (benchmark, its row) of each text in the index

    def benchmark_texts() -> Iterator[str]:
        for source in config.against:
            for number, row in enumerate(iterate_rows(source), 1):
                solutions = [row[name] for name in config.solutions if isinstance(row.get(name), str)]
                for text in (_text(row, config.fields, source, number), *solutions):
                    origins.append((source, number))
                    yield text

    index = NgramIndex(benchmark_texts(), config.n)
    matched: list[dict[str, Any]] = []
    kept = 0

    def clean_rows() -> Iterator[Mapping[str, Any]]:
        nonlocal kept
        for number, row in enumerate(iterate_rows(config.train), 1):
            match = index.match(_text(row, config.fields, config.train, number))
            if match is None:
                kept += 1
                yield row
            else:
                source, benchmark_row = origins[match.row]
                matched.append({**row, "match": {"source": source, "row": benchmark_row, "words": match.words}})

    try:
        write_rows(config.out, clean_rows())
        if config.removed is not None:
            write_rows(config.removed, matched)
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be written ({error.strerror}); choose another file") from None
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{kept:,} of {kept + len(matched):,} rows kept: {config.out}")
    for source, count in Counter(row["match"]["source"] for row in matched).most_common():
        console.print(
            f"{count:,} share {config.n} words in sequence, or all of a shorter text, with {source}", markup=False
        )
    for row in matched[:5]:
        console.print(f"  row {row['match']['row']}: {row['match']['words']}", markup=False)
    if matched and config.removed is None:
        console.print("--removed FILE.jsonl lists them all", markup=False)


def _text(row: Mapping[str, Any], fields: tuple[str, ...], source: str, number: int) -> str:
    """A row's text; of a conversation, all that is said."""
    value = next((row[name] for name in fields if row.get(name)), None)
    if isinstance(value, list) and all(isinstance(message, Mapping) for message in value):
        value = "\n".join(str(message.get("content") or "") for message in value)
    if not isinstance(value, str):
        raise DataError(
            f"row {number} of {source} has no text in any of the fields {', '.join(fields)}, only {', '.join(row)}: "
            "name its field with --fields"
        )
    return value
