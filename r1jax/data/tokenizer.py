"""Tokenizers: what the rest of r1jax asks of one, and a SentencePiece model trained on the spot."""

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece

from r1jax.errors import DataError

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes a space inside its pieces
_ASCII = "\n" + "".join(map(chr, range(0x21, 0x7F)))


class Tokenizer(Protocol):
    """What data, sampling and evaluation ask of a tokenizer. Encoding adds no special tokens.

    `vocab_size` is the largest id + 1. `eos_ids` has at least one id, and a text that is learned ends with the first;
    sampling stops at any. `pad_id` may be one of them: what counts is told by lengths and never by ids.
    """

    vocab_size: int
    pad_id: int
    bos_id: int | None
    eos_ids: tuple[int, ...]

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def valid_ids(self, size: int) -> np.ndarray: ...


def from_bos(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """Bos first where the tokenizer has one, and once: a chat template writes it itself, and no model has seen two."""
    return ids if tokenizer.bos_id is None or ids[:1] == [tokenizer.bos_id] else [tokenizer.bos_id, *ids]


def decode_stream(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """Yields the text of `ids` as it becomes whole, one id drawn at a time: joined, it is `tokenizer.decode(ids)`.

    A character whose bytes are spread over ids is held back until it is complete, or the ids end. Only bytes that make
    no character may read otherwise: a byte-fallback `decode` takes back the characters beside them.
    """
    # tokenizers.DecodeStream raises there, in the middle of a chat; and this serves SentencePiece too.
    told: list[int] = []  # the latest ids with text: a space after nothing but spaces may decode to nothing
    pending: list[int] = []
    for i in ids:
        pending.append(int(i))
        head, text = tokenizer.decode(told), tokenizer.decode(told + pending)
        if len(text) > len(head) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[len(head) :]
            told, pending = (pending if tokenizer.decode(pending).strip() else told + pending), []
    if rest := tokenizer.decode(told + pending)[len(tokenizer.decode(told)) :]:
        yield rest


def check_fits(tokenizer: Tokenizer, vocab_size: int, path: str | os.PathLike) -> None:
    """Raises `DataError` where the tokenizer read from `path` has ids that an embedding of `vocab_size` rows lacks."""
    if tokenizer.vocab_size > vocab_size:
        raise DataError(
            f"tokenizer {os.fspath(path)!r} has ids up to {tokenizer.vocab_size - 1}, but the model's embedding holds "
            f"vocab_size={vocab_size}: use the tokenizer that was published with the model"
        )


class SentencePieceTokenizer:
    """A SentencePiece model file as a `Tokenizer`. `pad_id` falls back on eos: published models have none.

    `encode` raises `DataError` for a character without a piece, because `<unk>` would not decode back to the text.
    Special tokens written in a text are text like any other.
    """

    def __init__(self, model_path: str | os.PathLike):
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=Path(model_path).read_bytes())
        except (OSError, RuntimeError) as error:
            raise DataError(f"tokenizer {os.fspath(model_path)!r} cannot be read ({error}): train or copy it") from None
        self.vocab_size = self._model.vocab_size()
        self.unk_id = self._model.unk_id()
        bos, eos, pad = self._model.bos_id(), self._model.eos_id(), self._model.pad_id()  # -1 where there is none
        if eos < 0:
            raise DataError(f"tokenizer {os.fspath(model_path)!r} has no eos id: use one that has")
        self.eos_ids: tuple[int, ...] = (eos,)
        self.bos_id = bos if bos >= 0 else None
        self.pad_id = pad if pad >= 0 else eos

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        batch = self._model.encode(list(texts), num_threads=1)
        for text, ids in zip(texts, batch, strict=True):
            if self.unk_id in ids:
                unknown = {c for c in text if self.unk_id in self._model.encode(c)}
                raise DataError(f"text {text[-60:]!r}: the tokenizer has no piece for {''.join(sorted(unknown))!r}")
        return batch

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; pad, bos and eos decode to nothing."""
        return self._model.decode([int(i) for i in ids])

    def valid_ids(self, size: int) -> np.ndarray:
        """bool [size]: ids that a sampler may draw from `size` logits. Not pad, unk or bos, nor what has no piece."""
        never = {self.pad_id, self.unk_id, self.bos_id} - set(self.eos_ids)
        return np.array([i < self.vocab_size and i not in never for i in range(size)], bool)


def train_sentencepiece(
    texts: Iterable[str],
    path: str | os.PathLike,
    vocab_size: int,
    user_defined_symbols: Sequence[str] = (),
    byte_fallback: bool = False,
) -> SentencePieceTokenizer:
    """Trains a byte-pair model on `texts`, the same file for the same texts, and writes it to `path` atomically.

    `vocab_size` is an upper bound. Each digit is a piece of its own, and a symbol may contain spaces. Nothing is
    normalised and printable ASCII is always covered, so that `decode(encode(text)) == text`. Ids: pad 0, unk 1, bos 2,
    eos 3, then the symbols in order.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",  # unigram finds its candidates among distinct words, of which a small corpus has too few
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        user_defined_symbols=[symbol.replace(" ", _SPACE) for symbol in user_defined_symbols],
        byte_fallback=byte_fallback,
        character_coverage=1.0,
        required_chars=_ASCII,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        split_by_whitespace=False,  # "What is" may be one piece
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        num_threads=1,  # threads change the order of float sums, and with it the pieces
        max_sentence_length=1 << 16,
        minloglevel=2,
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(model.getvalue())
    os.replace(partial, path)
    return SentencePieceTokenizer(path)
