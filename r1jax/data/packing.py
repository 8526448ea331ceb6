"""Packs whole documents into rows of a fixed length, so that little of a batch is padding."""

from collections.abc import Sequence

import numpy as np

from r1jax.errors import DataError


def first_fit(lengths: Sequence[int], length: int, rows: int | None = None) -> list[tuple[int, int]]:
    """(row, offset) of each document by first fit, in order; with `rows` given, stops at the first that fits nowhere.

    Stopping there, rather than skipping to shorter documents, keeps the mix of lengths that the corpus has.
    """
    room = np.full(len(lengths) if rows is None else rows, length)
    placed = []
    for n in lengths:
        row = int(np.argmax(room >= n)) if len(room) else 0
        if not len(room) or room[row] < n:
            break
        placed.append((row, int(length - room[row])))
        room[row] -= n
    return placed


def pack(
    documents: Sequence[Sequence[int]],
    length: int,
    rows: int | None = None,
    loss_masks: Sequence[Sequence[bool]] | None = None,
) -> dict[str, np.ndarray]:
    """Packs token ids into rows, first fit, never splitting a document.

    Returns `tokens`, `segment_ids` (1.. within a row, 0 is padding) and `positions` (0.. within a document), int32
    [R, length], and `loss_mask`, bool [R, length]: True where the token is one to predict from the tokens before it in
    its own document, so never a document's first. `loss_masks`, one per document, narrows it further (to responses, in
    SFT). R is `rows`, or as many as the documents need; with `rows`, documents from the first misfit on are left out.

    Raises `DataError` for an empty document, one longer than `length`, or a loss mask of another length.
    """
    lengths = [len(document) for document in documents]
    for i, n in enumerate(lengths):
        if not 0 < n <= length:
            raise DataError(f"document {i} has {n} tokens: a packed row takes 1 to {length}; raise its length")
        if loss_masks is not None and len(loss_masks[i]) != n:
            raise DataError(f"document {i} has {n} tokens but a loss mask of {len(loss_masks[i])}: they must agree")
    placed = first_fit(lengths, length, rows)
    if rows is None:
        rows = 1 + max((row for row, _ in placed), default=-1)
    tokens, segment_ids, positions = (np.zeros((rows, length), np.int32) for _ in range(3))
    loss_mask = np.zeros((rows, length), bool)
    segments = np.zeros(rows, np.int32)
    for i, (row, offset) in enumerate(placed):
        segments[row] += 1
        span = slice(offset, offset + lengths[i])
        tokens[row, span] = documents[i]
        segment_ids[row, span] = segments[row]
        positions[row, span] = np.arange(lengths[i])
        loss_mask[row, span] = True if loss_masks is None else loss_masks[i]
        loss_mask[row, offset] = False
    return {"tokens": tokens, "segment_ids": segment_ids, "positions": positions, "loss_mask": loss_mask}


def fill_ratio(batch: dict[str, np.ndarray]) -> float:
    """Share of a packed batch that is not padding."""
    return float((batch["segment_ids"] > 0).mean())
