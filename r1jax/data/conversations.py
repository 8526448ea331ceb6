"""What supervised fine-tuning learns from: rows of chat messages or of prompt and completion, as examples of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from r1jax.data.chat import ChatTemplate
from r1jax.data.sources import parse_rows
from r1jax.data.templates import THINK_OPEN
from r1jax.data.tokenizer import Tokenizer, from_bos
from r1jax.errors import DataError

AnyExample = TypeVar("AnyExample", bound=Sized)

_FORMS = '"messages", "prompt" with "completion", or "text"'


@dataclass(frozen=True)
class Example:
    """One sequence, from bos to eos; `mask` tells which of its tokens are learned."""

    tokens: list[int]
    mask: list[bool]

    def __len__(self) -> int:
        return len(self.tokens)


class Encoder:
    """Turns rows into examples.

    A row has "messages" (a list of role and content), "prompt" and "completion" (texts, or lists of messages), or
    "text", all of which is learned. Of a conversation each of the assistant's messages makes an example of its own,
    whose prompt is what the chat template gives for the messages before it, exactly as when it is sampled: templates of
    reasoning models take the thinking out of earlier turns, so that one rendering of the whole conversation would be
    neither what the model sees nor, where the last turn's thinking goes too, what it should learn.

    Prompt and completion are encoded apart, as they are when a completion is sampled: no piece spans the two.

    Args:
      turns: which of the assistant's messages are learned, "all" or only the "last".
      think: prompts end with an opened <think>, which a completion then does not repeat.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None = None,
        turns: Literal["all", "last"] = "all",
        think: bool = False,
    ):
        self._tokenizer, self._template, self._turns, self._think = tokenizer, template, turns, think
        self._eos = tokenizer.eos_ids[0] if template is None else _end_of_turn(tokenizer, template)

    def __call__(self, row: Mapping[str, Any]) -> list[Example]:
        """The examples of a row, one at least. Raises `DataError` for a row of another form, or an empty completion."""
        return [self.example(prompt, completion) for prompt, completion in self.texts(row)]

    def example(self, prompt: str, completion: str) -> Example:
        """The example of a prompt and a completion. Raises `DataError` for an empty completion."""
        if not completion.strip():
            raise DataError(f"its completion is {completion!r}: there is nothing to learn")
        p, c = self._tokenizer.encode_batch([prompt, completion])
        tokens = from_bos([*p, *c, self._eos], self._tokenizer)
        learned = len(c) + 1
        return Example(tokens, [False] * (len(tokens) - learned) + [True] * learned)

    def texts(self, row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """(prompt, completion) of each example of a row. Raises `DataError` for a row of another form."""
        messages = _listed(row.get("messages"))
        if isinstance(messages, Sequence) and not isinstance(messages, str):
            yield from self._turn_pairs(messages)
        elif isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str):
            yield row["prompt"], row["completion"]
        elif isinstance(row.get("prompt"), Sequence) and isinstance(row.get("completion"), Sequence):
            yield from list(self._turn_pairs([*row["prompt"], *row["completion"]]))[-1:]
        elif isinstance(row.get("text"), str):
            yield "", row["text"]
        else:
            raise DataError(f"its fields are {', '.join(row) or 'none'}: give {_FORMS}")

    def _turn_pairs(self, messages: Sequence[Any]) -> Iterator[tuple[str, str]]:
        if self._template is None:
            raise DataError("it has chat messages, and the model has no chat template: give prompt and completion")
        turns = [i for i, message in enumerate(messages) if _role(message) == "assistant"]
        if not turns or turns[0] == 0 or turns[-1] != len(messages) - 1:
            roles = ", ".join(map(str, map(_role, messages)))
            raise DataError(f"its messages' roles are {roles or 'none'}: a conversation must end with the assistant's")
        for i in turns if self._turns == "all" else turns[-1:]:
            content = messages[i].get("content")
            if not isinstance(content, str):
                raise DataError(f"message {i}'s content is {str(content)[:40]!r}: it must be text")
            prompt = self._template.render(messages[:i], think=self._think)
            if i > 1 and prompt == self._template.render(messages[i - 1 : i], think=self._think):
                raise DataError(
                    f"its chat template shows nothing of what was said before message {i - 1}: give conversations of "
                    "one question and one answer, or a chat template that shows all of it"
                )
            if prompt.rstrip().endswith(THINK_OPEN):
                content = content.lstrip().removeprefix(THINK_OPEN).lstrip("\n")
            yield prompt, content


def encode_rows(
    rows: Iterable[Mapping[str, Any] | DataError],
    encoder: Callable[[Mapping[str, Any]], list[AnyExample]],
    source: str,
    max_length: int,
    skip_malformed: bool = False,
) -> tuple[list[AnyExample], dict[str, int]]:
    """All rows' examples, and counts of "rows", "examples", "malformed" and "too_long".

    An example of more than `max_length` tokens is left out and counted: cut short, it would teach not to end.

    Raises `DataError` for a malformed row as `r1jax.data.sources.parse_rows` does, which takes rows of
    `iterate_all_rows` or any others, unless `skip_malformed` (it is then counted); and where no example is left.
    """
    examples, counts = [], dict.fromkeys(("rows", "examples", "malformed", "too_long"), 0)
    for found in parse_rows(rows, encoder, source, counts, skip_malformed):
        fitting = [example for example in found if len(example) <= max_length]
        counts["too_long"] += len(found) - len(fitting)
        examples += fitting
    counts["examples"] = len(examples)
    if not examples:
        raise DataError(
            f"{source}: none of its {counts['rows']} rows can be learned ({counts['malformed']} malformed, "
            f"{counts['too_long']} of more than {max_length} tokens); give other data or a larger maximum length"
        )
    return examples, counts


def _end_of_turn(tokenizer: Tokenizer, template: ChatTemplate) -> int:
    """The stop id that the template writes after the assistant's message; the first where it writes none.

    Llama 3 has several: texts end with the first, turns with another.
    """
    said = "ok"
    turns = [{"role": "user", "content": said}, {"role": "assistant", "content": said}]
    rendered = template.render(turns, add_generation_prompt=False).rpartition(said)[2]
    stops = [i for i in tokenizer.encode(rendered) if i in tokenizer.eos_ids]
    return (stops or tokenizer.eos_ids)[0]


def _listed(messages: Any) -> Any:
    """Messages as a list: TFDS gives a sequence of objects as one object of lists."""
    if not isinstance(messages, Mapping) or not all(isinstance(values, list) for values in messages.values()):
        return messages
    if len({len(values) for values in messages.values()}) != 1:
        return messages
    return [dict(zip(messages, values, strict=True)) for values in zip(*messages.values(), strict=True)]


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, Mapping) else type(message).__name__
