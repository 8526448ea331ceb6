"""What reward models learn from: pairs of responses of which one was preferred, and single ones with a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from r1jax.data.conversations import Encoder
from r1jax.data.iterators import check_step, epoch_orders
from r1jax.data.templates import THINK_CLOSE, THINK_OPEN
from r1jax.errors import DataError, check_field

Kind = Literal["pairs", "pointwise"]

_MULTIPLE = 8  # tokens; what rows of training are padded to, so that they divide over devices
_SHORTEST = 16  # tokens; rows to be scored are padded to this times a power of two, so that few programs are compiled


@dataclass(frozen=True)
class PreferenceExample:
    """The token ids of a pair, (chosen, rejected), with the margin it asks for, or of one response with its label."""

    sequences: tuple[list[int], ...]
    target: float

    def __len__(self) -> int:
        """Tokens of the longest sequence."""
        return max(map(len, self.sequences))


class PreferenceEncoder:
    """Turns rows into examples, each sequence a prompt with a response, from bos to eos.

    A row of pairs is in TRL's preference format: "prompt", "chosen" and "rejected" as texts; the same as lists of
    messages; or "chosen" and "rejected" alone as whole conversations, which share all but their last message. It may
    have a "margin" (`r1jax.losses.preference`). A pointwise row has "prompt", "completion" (texts or lists of messages)
    and "label": true or 1 for a safe response, false or 0 (as texts too).

    Args:
      encoder: of conversations: it renders messages, and encodes prompt and response apart. With turns="last".
      kind: which rows are read.
      summary_only: the response without its thinking, and the prompt without an opened <think>: R1's helpfulness model
        sees the final summary only, its safety model the whole response (arXiv 2501.12948, section 3.1).
    """

    def __init__(self, encoder: Encoder, kind: Kind, summary_only: bool = False):
        self._encoder, self._kind, self._summary_only = encoder, kind, summary_only

    def __call__(self, row: Mapping[str, Any]) -> list[PreferenceExample]:
        """The example of a row, in a list. Raises `DataError` for a row of another form, or an empty response."""
        if self._kind == "pairs":
            chosen, rejected = self._pair(row)
            sequences = self._sequence(chosen), self._sequence(rejected)
            if sequences[0] == sequences[1]:
                raise DataError("its chosen and its rejected response are the same: there is nothing to prefer")
            return [PreferenceExample(sequences, _number(row, "margin", 0.0))]
        if not {"prompt", "completion", "label"} <= row.keys():
            raise _other_form(row, '"prompt", "completion" and "label"')
        label = row["label"]
        if isinstance(label, str):  # as a csv file has it
            label = {"true": 1, "1": 1, "false": 0, "0": 0}.get(label.strip().lower(), label)
        if not isinstance(label, bool | int) or label not in (0, 1):
            raise DataError(f"its label is {label!r}: give true or 1 for a safe response, false or 0 for an unsafe one")
        return [PreferenceExample((self._sequence(row),), float(label))]

    def encode(self, prompt: str, completion: str) -> list[int] | None:
        """The token ids of a prompt's response as in training; None where there is nothing to see of it."""
        if self._summary_only:
            prompt, completion = without_thinking(prompt, completion)
        if not completion.strip():
            return None
        return self._encoder.example(prompt, completion).tokens

    def _sequence(self, row: Mapping[str, Any]) -> list[int]:
        *_, (prompt, completion) = self._encoder.texts(row)
        tokens = self.encode(prompt, completion)
        if tokens is None:
            part = "summary" if self._summary_only else "response"
            raise DataError(f"its {part} is empty ({completion[-40:]!r}): there is nothing to judge")
        return tokens

    def _pair(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The chosen and the rejected response as rows that the encoder of conversations takes."""
        chosen, rejected, prompt = row.get("chosen"), row.get("rejected"), row.get("prompt")
        if prompt is not None and chosen is not None and rejected is not None:
            return {"prompt": prompt, "completion": chosen}, {"prompt": prompt, "completion": rejected}
        if not (_is_list(chosen) and _is_list(rejected)):
            raise _other_form(row, '"prompt", "chosen" and "rejected", or the last two as whole conversations')
        if list(chosen[:-1]) != list(rejected[:-1]):
            raise DataError(
                "its chosen and its rejected conversation differ before their last message: give one prompt"
            )
        return {"messages": chosen}, {"messages": rejected}


def without_thinking(prompt: str, completion: str) -> tuple[str, str]:
    """The prompt without an opened <think> at its end, and what follows the last </think> of the completion.

    Where the thinking was begun and does not end, nothing follows it.
    """
    opened = prompt.rstrip().endswith(THINK_OPEN)
    if opened:
        prompt = prompt.rstrip().removesuffix(THINK_OPEN)
    _, closed, summary = completion.rpartition(THINK_CLOSE)
    if THINK_OPEN in summary or (opened and not closed):
        return prompt, ""
    return prompt, summary.lstrip("\n") if closed else completion


class PreferenceBatches:
    """Batches of `epochs` passes over the examples, each in an order of its own, by `seed`; by number, as `SFTBatches`.

    A batch holds `rows` examples: tokens int32 [rows, S, T], right-padded with 0, and lengths int32 [rows, S], of S = 2
    sequences a pair (chosen, rejected) or 1; targets float32 [rows]; counted bool [rows], False for the rows that fill
    up the last batch. T is the longest example's length, rounded up to a multiple of 8.
    """

    def __init__(self, examples: Sequence[PreferenceExample], rows: int, epochs: int, seed: int):
        for name, value in (("rows", rows), ("epochs", epochs), ("len(examples)", len(examples))):
            check_field(value >= 1, name, value, "an integer >= 1")
        self._examples, self._rows = examples, rows
        self._order = epoch_orders(len(examples), epochs, seed)
        self.length = -(-max(map(len, examples)) // _MULTIPLE) * _MULTIPLE

    def __len__(self) -> int:
        return -(-len(self._order) // self._rows)

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        check_step(step, len(self))
        chosen = self._order[step * self._rows : (step + 1) * self._rows]
        examples = [self._examples[chosen[min(i, len(chosen) - 1)]] for i in range(self._rows)]
        tokens, lengths = pad([ids for example in examples for ids in example.sequences], self.length)
        shape = (self._rows, len(examples[0].sequences))
        return {
            "tokens": tokens.reshape(*shape, -1),
            "lengths": lengths.reshape(shape),
            "targets": np.array([example.target for example in examples], np.float32),
            "counted": np.arange(self._rows) < len(chosen),
        }


def padded_length(longest: int, most: int | None = None) -> int:
    """The least power of two, times 16, that is no less than `longest`; but not more than `most`."""
    length = _SHORTEST
    while length < longest:
        length *= 2
    return length if most is None else min(length, most)


def pad(sequences: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens int32 [B, length], zeros behind each sequence; lengths int32 [B])."""
    tokens, lengths = np.zeros((len(sequences), length), np.int32), np.zeros(len(sequences), np.int32)
    for row, ids in enumerate(sequences):
        tokens[row, : len(ids)], lengths[row] = ids, len(ids)
    return tokens, lengths


def _number(row: Mapping[str, Any], name: str, otherwise: float) -> float:
    value = otherwise if row.get(name) is None else row[name]
    if not isinstance(value, int | float) or isinstance(value, bool) or not np.isfinite(value):
        raise DataError(f"its {name} is {value!r}: give a finite number")
    return float(value)


def _other_form(row: Mapping[str, Any], wanted: str) -> DataError:
    return DataError(f"its fields are {', '.join(row) or 'none'}: give {wanted}")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
