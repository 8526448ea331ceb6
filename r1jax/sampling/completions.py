"""Completions as texts: what those who only read them need of a sampler. Importing this does not import JAX."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from r1jax.sampling.generator import Generator


class TextCompletion(NamedTuple):
    """One completion, without its stop token."""

    text: str
    finish_reason: str
    """"stop" or "length"."""
    tokens: int
    """How many were drawn, the stop token included."""


class Sample(Protocol):
    """Draws `n` completions of each prompt text."""

    def __call__(
        self, prompts: Sequence[str], n: int, done: frozenset[int] = frozenset()
    ) -> Iterator[tuple[int, Sequence[TextCompletion]]]:
        """Yields (number of the prompt, its completions) as they come, in any order.

        `done` are prompts to leave out, as when an interrupted call is taken up again: the others' completions do not
        depend on it.
        """


class GeneratorSample:
    """A `Generator` as a `Sample`; how the prompts are batched and drawn is the generator's.

    Its noise is a function of the generator's seed, of `n` and of all the prompts, so that calls with other prompts
    draw other noise. Calling it raises `DataError` for a prompt that is too long, before any is drawn.
    """

    def __init__(self, generator: Generator):
        self._generators = {generator.sampling.num_generations: generator}
        self._first = generator

    def __call__(
        self, prompts: Sequence[str], n: int, done: frozenset[int] = frozenset()
    ) -> Iterator[tuple[int, list[TextCompletion]]]:
        import jax

        from r1jax.data.tokenizer import from_bos

        if n not in self._generators:
            sampling = dataclasses.replace(self._first.sampling, num_generations=n)
            self._generators[n] = self._first.with_sampling(sampling, self._first.batch_size)
        generator = copy.copy(self._generators[n])
        digest = hashlib.sha256(json.dumps([n, *prompts]).encode()).digest()
        generator.key = jax.random.fold_in(generator.key, int.from_bytes(digest[:4], "little"))
        tokenizer = generator.tokenizer
        encoded = [from_bos(tokenizer.encode(prompt), tokenizer) for prompt in prompts]
        for batch in generator(encoded, done):
            for i, drawn in batch:
                yield i, [TextCompletion(tokenizer.decode(c.tokens), c.finish_reason, len(c.tokens)) for c in drawn]
