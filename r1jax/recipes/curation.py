"""Which responses are fit to learn from: readable, whole, and none twice.

R1's rules for reasoning data (arXiv 2501.12948, section 2.3 and supplement B.3): correct answers alone, a readable
format, no chain of thought with mixed languages, long paragraphs or code blocks, no repetition. The paper gives no
numbers; those here are this project's. Rows have "question" and "completion" (from `<think>` on), and where known
"language" (a code of `r1jax.rewards.language`) and "finish_reason".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from r1jax.data.decontamination import squeezed, words_of
from r1jax.data.templates import THINK_CLOSE, THINK_OPEN
from r1jax.errors import check_field
from r1jax.rewards.format import format_reward, think_format_reward
from r1jax.rewards.language import language_share
from r1jax.rewards.repetition import repetition_penalty_reward

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Curation:
    """Which rows are kept. None switches a filter off."""

    format: Literal["think", "answer"] | None = "think"
    """Thinking and summary, as R1 writes them, or R1-Zero's think and answer tags."""
    min_language_share: float | None = 0.9
    """Of the chain of thought's words, those in the row's language, at least. A row without a language passes."""
    max_paragraph: int | None = 2000
    """Characters of the chain of thought between two line breaks."""
    code_blocks: bool = False
    """Whether the chain of thought may have fenced code."""
    max_repetition: float | None = 0.2
    """Share of the response's n-grams that occurred in it before, at most ..."""
    repetition_ngram: int = 20
    """... of this many words."""
    min_length: int = 0
    """Characters of a response."""
    max_length: int | None = None
    duplicates: Literal["normalised", "exact"] | None = "normalised"
    """What counts as the same response to a question: one that differs in case, blanks and punctuation alone, or none
    that differs."""
    per_prompt: int | None = None
    """Responses kept for each question ..."""
    choose: Literal["shortest", "first", "spread"] = "shortest"
    """... the shortest, the first, or some of every length, from the shortest to the longest."""

    def __post_init__(self):
        for name in ("min_language_share", "max_repetition"):
            value = getattr(self, name)
            check_field(value is None or 0 <= value <= 1, name, value, "must be between 0 and 1, or None")
        for name in ("max_paragraph", "repetition_ngram", "max_length", "per_prompt"):
            value = getattr(self, name)
            check_field(value is None or value >= 1, name, value, "must be at least 1")
        check_field(self.min_length >= 0, "min_length", self.min_length, "must not be negative")
        for name, known in (
            ("format", ("think", "answer", None)),
            ("duplicates", ("normalised", "exact", None)),
            ("choose", ("shortest", "first", "spread")),
        ):
            value = getattr(self, name)
            check_field(value in known, name, value, f"use one of {', '.join(map(repr, known))}")


@dataclasses.dataclass(frozen=True)
class Curated:
    """What `curate` made of rows."""

    rows: list[Row]
    """Those that are kept, in their order."""
    removed: dict[str, int]
    """How many rows each filter removed, in the order of the filters; a row counts for the first that it fails."""
    reasons: list[str | None]
    """For each row the filter that removed it, None where it is kept."""


def is_truncated(row: Row, curation: Curation) -> bool:
    """Whether the response reached the sampler's limit; one without a finish reason did not."""
    return row.get("finish_reason") == "length"


def has_wrong_format(row: Row, curation: Curation) -> bool:
    """Whether the format reward of `curation.format` is 0."""
    reward = {"think": think_format_reward, "answer": format_reward}.get(curation.format)
    return reward is not None and reward([""], [row["completion"]])[0] < 1


def mixes_languages(row: Row, curation: Curation) -> bool:
    """Whether too few of the chain's words are in the row's language. A chain without words has none in another."""
    if curation.min_language_share is None or row.get("language") is None:
        return False
    share = language_share(chain_of_thought(row["completion"]), row["language"])
    return share is not None and share < curation.min_language_share


def has_long_paragraph(row: Row, curation: Curation) -> bool:
    lines = chain_of_thought(row["completion"]).splitlines()
    return curation.max_paragraph is not None and max(map(len, lines), default=0) > curation.max_paragraph


def has_code_block(row: Row, curation: Curation) -> bool:
    return not curation.code_blocks and "```" in chain_of_thought(row["completion"])


def repeats_itself(row: Row, curation: Curation) -> bool:
    """Whether too many n-grams of words occur again; of scripts without spaces a character is a word."""
    if curation.max_repetition is None:
        return False
    words = words_of(row["completion"])
    (penalty,) = repetition_penalty_reward([""], [""], [words], ngram_size=curation.repetition_ngram)
    return -penalty > curation.max_repetition


def is_out_of_range(row: Row, curation: Curation) -> bool:
    length = len(row["completion"])
    return length < curation.min_length or (curation.max_length is not None and length > curation.max_length)


FILTERS: dict[str, Callable[[Row, Curation], bool]] = {
    "truncated": is_truncated,
    "format": has_wrong_format,
    "mixed languages": mixes_languages,
    "long paragraph": has_long_paragraph,
    "code block": has_code_block,
    "repetition": repeats_itself,
    "length": is_out_of_range,
}
"""What is asked of each row alone, in this order: name -> whether the row is removed."""


REASONS = (*FILTERS, "duplicate", "per prompt")
"""All for which `curate` removes rows, in its order."""


def chain_of_thought(completion: str) -> str:
    """What stands before the last `</think>`; all of a completion without one."""
    thought, closed, _ = completion.rpartition(THINK_CLOSE)
    return (thought if closed else completion).removeprefix(THINK_OPEN).strip()


def curate(rows: Sequence[Row], curation: Curation) -> Curated:
    """Applies the filters row by row, then removes duplicates, then keeps at most `per_prompt` rows of a question."""
    reasons: list[str | None] = [
        next((name for name, removes in FILTERS.items() if removes(row, curation)), None) for row in rows
    ]
    _mark_duplicates(rows, reasons, curation)
    _mark_surplus(rows, reasons, curation)
    removed = {name: reasons.count(name) for name in REASONS}
    kept = [row for row, reason in zip(rows, reasons, strict=True) if reason is None]
    return Curated(kept, removed, reasons)


def _mark_duplicates(rows: Sequence[Row], reasons: list[str | None], curation: Curation) -> None:
    seen = set()
    for i, row in enumerate(rows):
        if reasons[i] is not None or curation.duplicates is None:
            continue
        text = row["completion"] if curation.duplicates == "exact" else squeezed(row["completion"])
        if (row["question"], text) in seen:
            reasons[i] = "duplicate"
        seen.add((row["question"], text))


def _mark_surplus(rows: Sequence[Row], reasons: list[str | None], curation: Curation) -> None:
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if reasons[i] is None:
            groups.setdefault(row["question"], []).append(i)
    for group in groups.values():
        for i in set(group) - _chosen(rows, group, curation):
            reasons[i] = "per prompt"


def _chosen(rows: Sequence[Row], group: list[int], curation: Curation) -> set[int]:
    count = curation.per_prompt
    if count is None or len(group) <= count:
        return set(group)
    if curation.choose == "first":
        return set(group[:count])
    by_length = sorted(group, key=lambda i: len(rows[i]["completion"]))
    if curation.choose == "shortest" or count == 1:
        return set(by_length[:count])
    return {by_length[round(place * (len(group) - 1) / (count - 1))] for place in range(count)}
