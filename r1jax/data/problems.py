"""The miniature's world: arithmetic problems whose answer is a running total, in symbols or in words.

A problem is a first term of 1..9 and further terms of ±1..9 whose running total never leaves 0..LIMIT. A model that
writes the running totals down solves any length; a model that answers at once has to add everything in its head.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from r1jax.data.counter import pick, random_bits
from r1jax.errors import DataError, check_field

LIMIT = 20
LEVELS = (1, 2, 3, 4)
KINDS = ("sum", "word")
NAMES = ("Tom", "Ann", "Ben", "Mia", "Sam", "Eva")
OBJECTS = ("apples", "pens", "coins", "eggs", "cards")
GAINS = ("gets", "finds", "buys")
LOSSES = ("loses", "sells", "drops")

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Problem:
    """One problem. `terms` are signed; `level` is the number of terms less two; `answer` is their sum, in digits."""

    question: str
    answer: str
    terms: tuple[int, ...]
    level: int
    kind: str


def split_of(terms: Sequence[int]) -> Split:
    """The split that owns a list of terms: one in ten is test.

    It hashes the terms alone, so that no wording, seed or corpus can carry a test sum into training.
    """
    key = ",".join(map(str, terms)).encode()
    return "test" if int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") % 10 == 0 else "train"


def walk(start: np.ndarray, bits: np.ndarray, limit: int = LIMIT) -> np.ndarray:
    """Steps of ±1..9 whose running total from `start` stays in 0..limit: int64 [N, S] for start [N], bits [N, S].

    Each step is uniform over the steps that are allowed where it starts.
    """
    total, steps = start.copy(), np.empty(bits.shape, np.int64)
    for s in range(bits.shape[1]):
        down, up = np.minimum(9, total), np.minimum(9, limit - total)
        choice = pick(bits[:, s], down + up) - down
        steps[:, s] = choice + (choice >= 0)  # zero is not a step
        total += steps[:, s]
    return steps


def expression(terms: Sequence[int]) -> str:
    """`(3, 5, -2)` as `3+5-2`."""
    return str(terms[0]) + "".join(f"{term:+d}" for term in terms[1:])


def phrase(terms: Sequence[int], kind: str, wording: int) -> str:
    """The question that asks for the total of `terms`. `wording` (>= 0) chooses names, things and verbs."""
    if kind == "sum":
        return f"What is {expression(terms)}?"
    wording, name = divmod(wording, len(NAMES))
    wording, thing = divmod(wording, len(OBJECTS))
    parts = [f"{NAMES[name]} has {terms[0]} {OBJECTS[thing]}"]
    for term in terms[1:]:
        wording, verb = divmod(wording, 3)
        parts.append(f"{(GAINS if term > 0 else LOSSES)[verb]} {abs(term)}")
    return ", ".join(parts) + ". How many?"


def generate(seed: int, count: int, split: Split, levels: Sequence[int] = LEVELS) -> list[Problem]:
    """`count` problems of a split, the levels taking turns; a shorter list is a prefix of a longer one.

    Test problems are all different sums; training problems may recur, most often at level 1, which has about 1,600.
    Raises `DataError` when a level has too few different test sums.
    """
    check_levels(levels)
    check_field(split in ("train", "test"), "split", split, "use 'train' or 'test'")
    shares = [range(i, count, len(levels)) for i in range(len(levels))]
    problems: list[Problem | None] = [None] * count
    for level, share in zip(levels, shares, strict=True):
        for slot, problem in zip(share, _of_level(seed, len(share), split, level), strict=True):
            problems[slot] = problem
    return problems


def check_levels(levels: Sequence[int]) -> None:
    """Raises `ConfigError` unless `levels` holds levels of at least 1."""
    check_field(bool(levels) and min(levels) >= 1, "levels", levels, "give one or more levels, each at least 1")


def _of_level(seed: int, count: int, split: Split, level: int, chunk: int = 4096) -> list[Problem]:
    problems, seen, idle, at = [], set(), 0, 0
    while len(problems) < count:
        if idle >= 10:  # some 4,000 draws from this split without a new sum
            raise DataError(
                f"count={count} of level {level}: the {split} split has only {len(seen)} different sums of it; "
                "ask for fewer or add a higher level"
            )
        index = np.arange(at, at + chunk)
        bits = random_bits(seed, f"{split}{level}", index, level + 4)
        start, at, found = 1 + pick(bits[:, 0], 9), at + chunk, len(problems)
        rows = np.concatenate([start[:, None], walk(start, bits[:, 1 : level + 2])], axis=1).tolist()
        kinds, wordings = pick(bits[:, -2], len(KINDS)).tolist(), pick(bits[:, -1], 2**62).tolist()
        for terms, kind, wording in zip(map(tuple, rows), kinds, wordings, strict=True):
            if split_of(terms) != split or (split == "test" and terms in seen):
                continue
            seen.add(terms)
            question = phrase(terms, KINDS[kind], wording)
            problems.append(Problem(question, str(sum(terms)), terms, level, KINDS[kind]))
        idle = idle + 1 if len(problems) == found else 0
    return problems[:count]
