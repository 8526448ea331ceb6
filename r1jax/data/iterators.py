"""Batches by number: `batches[step]` is the same on every call, so a resumed run needs its step and nothing else."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

import grain
import numpy as np

from r1jax.data.conversations import Example
from r1jax.data.corpus import Document
from r1jax.data.packing import first_fit, pack
from r1jax.data.problems import Problem
from r1jax.data.templates import render_r1_zero
from r1jax.data.tokenizer import Tokenizer, from_bos
from r1jax.errors import DataError, check_field

T = TypeVar("T", covariant=True)
Row = Problem | dict[str, Any]


class Indexable(Protocol[T]):
    """Anything with `[step]`."""

    def __getitem__(self, step: int) -> T: ...


@dataclass(frozen=True)
class PromptBatch:
    """P prompts: `tokens` int32 [P, Tp], bos first where there is one, padded on the right; `lengths` [P] counts bos.

    `columns` holds every field of the problems, each a list [P], None where a problem lacks it: what reward functions
    receive by name.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    prompts: list[str]
    columns: dict[str, list[Any]]


def r1_zero_prompt(row: dict[str, Any]) -> str:
    """R1-Zero's prompt for the row's question."""
    return render_r1_zero(row["question"])


def encode_prompts(
    problems: Sequence[Row],
    tokenizer: Tokenizer,
    max_prompt_length: int,
    render: Callable[[dict[str, Any]], str] = r1_zero_prompt,
) -> PromptBatch:
    """A `PromptBatch` of the problems in their order, with Tp = `max_prompt_length`; `render` makes a row's prompt.

    Raises `DataError` for a prompt of more than `max_prompt_length` tokens: a prompt cut short asks something else.
    """
    rows = [asdict(problem) if isinstance(problem, Problem) else problem for problem in problems]
    prompts = [render(row) for row in rows]
    tokens = np.full((len(rows), max_prompt_length), tokenizer.pad_id, np.int32)
    lengths = np.zeros(len(rows), np.int32)
    for i, ids in enumerate(tokenizer.encode_batch(prompts)):
        ids = from_bos(ids, tokenizer)
        if len(ids) > max_prompt_length:
            raise DataError(
                f"question {rows[i].get('question', prompts[i])!r:.200} makes a prompt of {len(ids)} tokens: "
                f"raise max_prompt_length={max_prompt_length} or leave the question out"
            )
        tokens[i, : len(ids)], lengths[i] = ids, len(ids)
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return PromptBatch(tokens, lengths, prompts, columns)


class PromptBatches:
    """Endless batches of `batch_size` prompts: epochs over `problems`, each in an order of its own that `seed` decides.

    `problems` is random-access, of `Problem`s or dicts with a "question". A batch may straddle two epochs. The order
    is computed index by index (Grain's index shuffle), so a step costs the same wherever it lies.
    """

    def __init__(
        self,
        problems: Sequence[Row],
        tokenizer: Tokenizer,
        batch_size: int,
        max_prompt_length: int,
        seed: int,
        render: Callable[[dict[str, Any]], str] = r1_zero_prompt,
    ):
        check_field(len(problems) >= 1, "len(problems)", len(problems), "give at least one problem")
        check_field(batch_size >= 1, "batch_size", batch_size, "an integer >= 1")
        check_field(max_prompt_length >= 1, "max_prompt_length", max_prompt_length, "an integer >= 1")
        self._encode = lambda rows: encode_prompts(rows, tokenizer, max_prompt_length, render)
        self._batch_size = batch_size
        self._stream = grain.MapDataset.source(problems).seed(seed).shuffle().repeat()

    def __getitem__(self, step: int) -> PromptBatch:
        """Batch `step`. Raises `DataError` for a prompt that is too long."""
        check_step(step)
        start = step * self._batch_size
        return self._encode([self._stream[i] for i in range(start, start + self._batch_size)])


class MixedPrompts:
    """Batches of one stream of prompts and, from step `start` on, of two side by side.

    Before `start` a batch holds `count` prompts of the first stream, from then on `count` - `others` of it, which go on
    where it was, and `others` of the second (R1's last stage meets general prompts only towards its end: arXiv
    2501.12948, section 3.2.2). A stream is made for a batch size: `first(8)[step]`.
    """

    def __init__(
        self,
        first: Callable[[int], Indexable[PromptBatch]],
        second: Callable[[int], Indexable[PromptBatch]],
        count: int,
        others: int,
        start: int,
    ):
        self._alone, self._first, self._second, self._start = first(count), first(count - others), second(others), start
        self._skip = -(-start * count // (count - others))  # batches of the smaller size that hold all that was asked

    def __getitem__(self, step: int) -> PromptBatch:
        if step < self._start:
            return self._alone[step]
        parts = [self._first[self._skip + step - self._start], self._second[step - self._start]]
        names = dict.fromkeys(name for part in parts for name in part.columns)
        return PromptBatch(
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.lengths for part in parts]),
            [prompt for part in parts for prompt in part.prompts],
            {name: [v for part in parts for v in part.columns.get(name, [None] * len(part.prompts))] for name in names},
        )


def encode_documents(docs: Sequence[Document], tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids of each document, from bos (where the tokenizer has one) to eos.

    Prompt and completion are encoded apart, as they are when a completion is sampled: no piece spans the two.
    """
    prompts = tokenizer.encode_batch([doc.prompt for doc in docs])
    completions = tokenizer.encode_batch([doc.completion for doc in docs])
    eos = tokenizer.eos_ids[0]
    return [from_bos([*p, *c, eos], tokenizer) for p, c in zip(prompts, completions, strict=True)]


class PretrainBatches:
    """Endless packed batches [rows, length] of a corpus, in the form of `packing.pack`.

    `documents(start, count)` are documents start .. start+count-1 of the corpus. Step s packs documents of s's own
    range, in order, until one fits no row; the few that are left over are never seen. Raises `DataError` where a
    document is longer than `length` tokens.
    """

    def __init__(
        self, documents: Callable[[int, int], Sequence[Document]], tokenizer: Tokenizer, rows: int, length: int
    ):
        check_field(rows >= 1, "rows", rows, "an integer >= 1")
        check_field(length >= 2, "length", length, "an integer >= 2")
        self._documents, self._tokenizer, self._rows, self._length = documents, tokenizer, rows, length
        sample = encode_documents(documents(0, 1000), tokenizer)
        mean = sum(map(len, sample)) / len(sample)
        # A tenth more than fills a batch on average, and some for small batches, whose need varies more.
        self.documents_per_step = int(1.1 * rows * length / mean) + 16

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        check_step(step)
        docs = self._documents(step * self.documents_per_step, self.documents_per_step)
        return pack(encode_documents(docs, self._tokenizer), self._length, rows=self._rows)


class SFTBatches:
    """Packed batches [rows, length] of `epochs` passes over the examples, each in an order of its own, by `seed`.

    A batch takes examples in order until one fits no row; that one begins the next, so that every example is learned
    once an epoch. Batches straddle epochs; only the last may be far from full. All of this is known beforehand:
    `len()` is the number of batches, and any of them is made at once.
    """

    def __init__(self, examples: Sequence[Example], rows: int, length: int, epochs: int, seed: int):
        for name, value, least in (("rows", rows, 1), ("length", length, 2), ("epochs", epochs, 1)):
            check_field(value >= least, name, value, f"an integer >= {least}")
        lengths = np.array([len(example.tokens) for example in examples])
        check_field(bool(len(examples)), "len(examples)", len(examples), "give at least one example")
        check_field(lengths.max() <= length, "length", length, f"the longest example has {lengths.max()} tokens")
        self._examples, self._rows, self._length = examples, rows, length
        self._order = epoch_orders(len(examples), epochs, seed)
        self._starts = [0]
        while self._starts[-1] < len(self._order):
            # No batch can take more examples than it has tokens.
            window = self._order[self._starts[-1] : self._starts[-1] + rows * length]
            self._starts.append(self._starts[-1] + len(first_fit(lengths[window], length, rows)))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        check_step(step, len(self))
        chosen = [self._examples[i] for i in self._order[self._starts[step] : self._starts[step + 1]]]
        tokens, masks = [example.tokens for example in chosen], [example.mask for example in chosen]
        return pack(tokens, self._length, self._rows, masks)


def prefetch(batches: Indexable[T], start: int, stop: int | None = None, depth: int = 2) -> Iterator[T]:
    """Yields `batches[start]`, `batches[start + 1]` .. up to `stop`, made `depth` ahead in a background thread.

    An exception in the thread is raised here, at its step. Closing the iterator, or dropping it, ends the thread.
    """
    check_field(depth >= 1, "depth", depth, "an integer >= 1")
    ready: queue.Queue = queue.Queue(depth)
    closed = threading.Event()

    def put(item) -> bool:
        while not closed.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                pass
        return False

    def produce():
        step = start
        try:
            while (stop is None or step < stop) and put((batches[step], None)):
                step += 1
            put((None, StopIteration()))
        except BaseException as error:
            put((None, error))

    threading.Thread(target=produce, name="prefetch", daemon=True).start()
    try:
        while True:
            batch, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield batch
    finally:
        closed.set()


def epoch_orders(count: int, epochs: int, seed: int) -> np.ndarray:
    """The numbers of `count` examples, int64 [epochs * count]: epoch after epoch, each in an order of its own."""
    orders = [np.random.default_rng([seed, epoch]).permutation(count) for epoch in range(epochs)]
    return np.concatenate(orders)


def check_step(step: int, steps: int | None = None) -> None:
    """Raises `DataError` for a step below 0, and `IndexError` for one beyond the last of `steps`."""
    # A sequence would count from the end; an endless stream has none, and a silent wrap would hide an off-by-one.
    if step < 0:
        raise DataError(f"step {step}: steps count from 0")
    if steps is not None and step >= steps:
        raise IndexError(f"step {step}: there are {steps}")
