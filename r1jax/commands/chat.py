"""`r1jax chat`: a conversation in the terminal, the thinking dimmed, tokens shown as they are drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style

from r1jax.configs.training import SamplingConfig
from r1jax.data.templates import THINK_CLOSE, THINK_OPEN
from r1jax.errors import DataError, check_field

HELP = "An empty line or /exit ends, /clear forgets the conversation."


@dataclasses.dataclass(frozen=True)
class ChatConfig:
    """Talks to a model."""

    checkpoint: Path
    """A published checkpoint with a chat template, or one converted from it."""
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 0
    max_tokens: int | None = None
    """Of an answer, thinking included; unless given, 1024, or half of the model's positions if that is less."""
    system: str | None = None
    """A system prompt. DeepSeek advises against one for R1."""
    think: bool = False
    """Make each answer begin with <think>, as DeepSeek asks for R1."""
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] | None = None

    def __post_init__(self):
        check_field(
            self.max_tokens is None or self.max_tokens >= 1, "max_tokens", self.max_tokens, "must be at least 1"
        )
        check_field(self.seed >= 0, "seed", self.seed, "must not be negative")
        self.sampling  # noqa: B018 - checks temperature, top_p and top_k

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(self.temperature, self.top_p, self.top_k, 1, self.max_tokens or 1024)


def chat(config: ChatConfig) -> None:
    """Reads lines until the input ends, and answers each."""
    from r1jax.checkpoints.model import open_model
    from r1jax.data.chat import ChatTemplate
    from r1jax.data.hf_tokenizer import load_tokenizer
    from r1jax.data.tokenizer import check_fits, decode_stream, from_bos
    from r1jax.sampling.generator import Generator

    console = Console()
    model, shape, assets = open_model(config.checkpoint, config.dtype, show_progress=True)
    tokenizer, template = load_tokenizer(assets), ChatTemplate.from_folder(assets)
    check_fits(tokenizer, shape.vocab_size, assets)
    if config.max_tokens is None:
        config = dataclasses.replace(config, max_tokens=min(1024, shape.max_position_embeddings // 2))
    generator = Generator(model, shape, tokenizer, config.sampling, batch_size=1, seed=config.seed)
    console.print(HELP, style="dim", highlight=False)
    first = [] if config.system is None else [{"role": "system", "content": config.system}]
    messages, turn = list(first), 0
    while (text := _ask(console)) not in ("", "/exit"):
        if text == "/clear":
            messages = list(first)
            continue
        asked = [*messages, {"role": "user", "content": text}]
        try:
            prompt = template.render(asked, think=config.think)
            ids = from_bos(tokenizer.encode(prompt), tokenizer)
            tokens = (token for some in generator.stream(ids, turn) for token in some)
            thinking = prompt.rstrip().endswith(THINK_OPEN)
            answer = show(console, decode_stream(tokenizer, tokens), thinking)
        except DataError as error:  # too long a conversation, a character without a piece, a template that refuses
            console.print(f"{error} (/clear forgets the conversation)", style="red", markup=False, highlight=False)
            continue
        except KeyboardInterrupt:
            console.print("\n(stopped)", style="dim", highlight=False)
            continue
        messages = [*asked, {"role": "assistant", "content": answer}]
        turn += 1


def _ask(console: Console) -> str:
    try:
        return console.input("[bold cyan]>>> [/]").strip()
    except (EOFError, KeyboardInterrupt):
        return ""


def show(console: Console, pieces: Iterable[str], thinking: bool) -> str:
    """Prints an answer as it comes, its thinking dimmed, and returns what follows the thinking: "" if it never ended.

    `thinking`: the prompt has opened it already.
    """

    def put(text: str) -> None:
        segment = Segment(text, Style(dim=thinking))  # as it is: a string would lose tabs and gain :emoji:
        console.print(Segments([segment]), end="", soft_wrap=True)

    text = held = ""
    tags = [THINK_CLOSE] if thinking else [THINK_OPEN, THINK_CLOSE]  # still to come, in this order
    for piece in pieces:
        text, held = text + piece, held + piece
        while tags and (at := held.find(tags[0])) >= 0:
            end = at if tags[0] == THINK_OPEN else at + len(THINK_CLOSE)  # both tags are dimmed
            put(held[:end])
            held, thinking = held[end:], tags.pop(0) == THINK_OPEN
        # An end that may yet become a tag waits for the next piece.
        whole = next((n for n in range(len(held)) if tags and tags[0].startswith(held[n:])), len(held))
        put(held[:whole])
        held = held[whole:]
    put(held)
    console.print()
    return "" if thinking else text.rpartition(THINK_CLOSE)[2].strip()
