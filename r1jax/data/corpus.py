"""The miniature base model's pretraining corpus: hasty answers, some worked solutions, and textbook exercises.

It stands where the web text under DeepSeek-V3-Base stands. Textbooks work their exercises out, so that the base is
able; but whoever answers a User mostly does so at once and wrongly, so that it is not willing. That working pays there
as well is left for reinforcement learning to find. No test sum appears in the corpus.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from r1jax.data.counter import pick, random_bits
from r1jax.data.problems import KINDS, LEVELS, LIMIT, check_levels, phrase, split_of, walk
from r1jax.data.templates import R1_ZERO_SYMBOLS, render_completion, render_r1_zero
from r1jax.data.tokenizer import SentencePieceTokenizer, train_sentencepiece
from r1jax.errors import check_field

GUESSES = ("about {}", "looks like {}", "maybe {}", "I guess {}")


@dataclass(frozen=True)
class CorpusConfig:
    """The mixture, in shares of documents.

    `worked_slip` is the probability that a step of a worked solution goes wrong by 1 or 2, the rest following from the
    wrong total. A guess is the answer plus a uniform integer in [-guess_radius, guess_radius], at least 0.
    """

    share_worked: float = 0.12
    share_guess: float = 0.48
    share_textbook: float = 0.4
    worked_slip: float = 0.02
    guess_radius: int = 5
    levels: tuple[int, ...] = LEVELS

    def __post_init__(self):
        shares = (self.share_worked, self.share_guess, self.share_textbook)
        check_field(min(shares) >= 0 and abs(sum(shares) - 1) < 1e-6, "share_*", shares, "shares >= 0 that sum to 1")
        check_field(0 <= self.worked_slip <= 1, "worked_slip", self.worked_slip, "a probability in [0, 1]")
        check_field(self.guess_radius >= 0, "guess_radius", self.guess_radius, "an integer >= 0")
        check_levels(self.levels)


class Document(NamedTuple):
    """One document's text. `prompt` is empty for a textbook's; kind is "worked", "guess" or "textbook"."""

    prompt: str
    completion: str
    kind: str


def running_totals(terms: list[int], totals: list[int]) -> str:
    """`[3, 5, -2]`, `[3, 8, 6]` as `3+5=8-2=6`: each step's total is where the next one starts."""
    return str(terms[0]) + "".join(f"{term:+d}={total}" for term, total in zip(terms[1:], totals[1:], strict=True))


def documents(config: CorpusConfig, seed: int, start: int, count: int) -> list[Document]:
    """Documents start .. start+count-1 of the endless corpus; document i depends on (config, seed, i) alone."""
    found: dict[int, Document] = {}
    index, attempt = np.arange(start, start + count), 0
    while len(index):
        drawn = _draw(config, seed, index, attempt)
        found.update((i, document) for i, document in zip(index.tolist(), drawn, strict=True) if document is not None)
        index, attempt = np.array([i for i in index.tolist() if i not in found]), attempt + 1
    return [found[i] for i in range(start, start + count)]


def _draw(config: CorpusConfig, seed: int, index: np.ndarray, attempt: int) -> list[Document | None]:
    """One document for each index, or None where the draw fell on a test sum."""
    longest = max(config.levels) + 1
    bits = random_bits(seed, "corpus", index, 6 + 3 * longest, attempt)
    # Which kind document i is must not change when it is redrawn, or the shares would drift.
    share = random_bits(seed, "kind", index, 1)[:, 0] / 2.0**64
    worked, textbook = share < config.share_worked, share >= config.share_worked + config.share_guess
    levels = np.array(config.levels)[pick(bits[:, 0], len(config.levels))]
    steps, first = levels + 1, 1 + pick(bits[:, 1], 9)
    terms = np.concatenate([first[:, None], walk(first, bits[:, 6 : 6 + longest])], axis=1)
    true_totals = np.cumsum(terms, axis=1)
    totals = _with_slips(true_totals, worked, steps, config.worked_slip, bits[:, 6 + longest :])
    answer = np.take_along_axis(true_totals, steps[:, None], axis=1)[:, 0]
    guess = np.maximum(0, answer + pick(bits[:, 2], 2 * config.guess_radius + 1) - config.guess_radius)
    kind, wording, opening = pick(bits[:, 3], len(KINDS)), pick(bits[:, 4], 2**62), pick(bits[:, 5], len(GUESSES))
    columns = (terms, totals, steps, worked, textbook, guess, kind, wording, opening)
    return [_write(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _with_slips(
    true_totals: np.ndarray, worked: np.ndarray, steps: np.ndarray, probability: float, bits: np.ndarray
) -> np.ndarray:
    """The totals [N, S+1] as written: each step of a worked solution may slip by ±1 or ±2, which later ones inherit."""
    longest = true_totals.shape[1] - 1
    slips = (bits[:, :longest] / 2.0**64 < probability) & worked[:, None]
    sizes = np.array([-2, -1, 1, 2])[pick(bits[:, longest:], 4)]
    # The lowest total still to come, within the document: a slip downwards must not take it below zero.
    inside = np.where(np.arange(longest + 1) <= steps[:, None], true_totals, LIMIT)
    lowest = np.minimum.accumulate(inside[:, ::-1], axis=1)[:, ::-1]
    totals, error = true_totals.copy(), np.zeros(len(true_totals), np.int64)
    for s in range(1, longest + 1):
        size = sizes[:, s - 1]
        size = np.where(lowest[:, s] + error + size < 0, abs(size), size)
        error += np.where(slips[:, s - 1], size, 0)
        totals[:, s] += error
    return totals


def _write(terms, totals, steps, worked, textbook, guess, kind, wording, opening) -> Document | None:
    terms, totals = terms[: steps + 1], totals[: steps + 1]
    if split_of(terms) == "test":
        return None
    question = phrase(terms, KINDS[kind], wording)
    if textbook:
        return Document("", f"{question} {running_totals(terms, totals)}", "textbook")
    prompt = render_r1_zero(question)
    if worked:
        return Document(prompt, render_completion(running_totals(terms, totals), str(totals[-1])), "worked")
    return Document(prompt, render_completion(GUESSES[opening].format(guess), str(guess)), "guess")


def corpus_tokenizer(
    config: CorpusConfig, path: str | os.PathLike, vocab_size: int = 256, seed: int = 0, count: int = 4000
) -> SentencePieceTokenizer:
    """The tokenizer at `path`, trained on `count` documents first where there is none."""
    if Path(path).exists():
        return SentencePieceTokenizer(path)
    texts = (document.prompt + document.completion for document in documents(config, seed, 0, count))
    return train_sentencepiece(texts, path, vocab_size, R1_ZERO_SYMBOLS)
