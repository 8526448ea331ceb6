"""Choices from random bits: what the generators of the world draw from."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Literal, TypeVar

import numpy as np

from r1jax.data.counter import random_bits

T = TypeVar("T")
Split = Literal["train", "test"]
Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")

_MASK = 2**64 - 1


class Draws:
    """Choices for one row, from 64 random bits; as many as are asked for (SplitMix64, as in `data.counter`)."""

    def __init__(self, bits: int):
        self._state = bits

    def _next(self) -> int:
        self._state = x = (self._state + 0x9E3779B97F4A7C15) & _MASK
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
        return x ^ (x >> 31)

    def below(self, n: int) -> int:
        """Uniform in 0..n-1."""
        return self._next() % n

    def within(self, low: int, high: int) -> int:
        """Uniform in low..high, both included."""
        return low + self.below(high - low + 1)

    def chance(self, probability: float) -> bool:
        return self._next() < probability * 2.0**64

    def choice(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different ones, in random order."""
        left = list(options)
        return [left.pop(self.below(len(left))) for _ in range(count)]


def rows(seed: int, stream: str, start: int, count: int) -> Iterator[Draws]:
    """`Draws` for rows start .. start+count-1 of a stream; row i depends on (seed, stream, i) alone."""
    bits = random_bits(seed, stream, np.arange(start, start + count), 1)
    return map(Draws, bits[:, 0].tolist())


def split_of(key: str) -> Split:
    """The split that owns what `key` names: one in ten is test. What has no key is training's.

    The key leaves out wording and language: what a test question asks, no training question asks in other words. Parts
    of it may be met, as a short sum is where a longer one begins.
    """
    if not key:
        return "train"
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "little") % 10 == 0 else "train"
