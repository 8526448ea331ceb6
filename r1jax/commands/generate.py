"""`r1jax generate`: completions of prompts from any checkpoint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from r1jax.commands.results import Drawn, draw, read_rows
from r1jax.configs.training import MeshConfig, SamplingConfig
from r1jax.errors import ConfigError, DataError, check_field
from r1jax.files import PartialRows


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """Draws completions of one prompt, or of a file of them."""

    checkpoint: Path
    """A published checkpoint, a converted one, or the folder of a run."""
    prompts: Path | None = None
    """A jsonl file: each line has a "prompt", "messages" for the chat template, or "tokens"; other fields are kept."""
    prompt: str | None = None
    """One prompt, instead of a file."""
    out: Path | None = None
    """A jsonl file with one line a prompt, in their order; unless given, completions are printed."""
    n: int = 1
    """Completions of each prompt."""
    temperature: float = 0.6
    """0 is greedy."""
    top_p: float = 0.95
    top_k: int = 0
    """0 keeps all."""
    max_tokens: int | None = None
    """Of a completion, the stop token included; unless given, 512, or half of the model's positions if that is less."""
    seed: int = 0
    batch_size: int = 16
    """Prompts at a time."""
    chat: bool = False
    """Put each "prompt" into the chat template, as a user's message."""
    think: bool = False
    """Make chat prompts end with <think>, as DeepSeek asks for R1."""
    speculative: bool = False
    """Draft with the prediction module: the same distribution in fewer passes."""
    logps: bool = False
    """Also write each token's log-probability under the distribution that it was drawn from."""
    dtype: Literal["float32", "bfloat16"] | None = None
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self):
        given = (self.prompts is not None) + (self.prompt is not None)
        if given != 1:
            raise ConfigError("give either --prompts FILE.jsonl or --prompt TEXT")
        check_field(self.n >= 1, "n", self.n, "must be at least 1")
        check_field(
            self.max_tokens is None or self.max_tokens >= 1, "max_tokens", self.max_tokens, "must be at least 1"
        )
        check_field(self.batch_size >= 1, "batch_size", self.batch_size, "must be at least 1")
        check_field(self.seed >= 0, "seed", self.seed, "must not be negative")
        self.sampling  # noqa: B018 - checks temperature, top_p and top_k

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(self.temperature, self.top_p, self.top_k, self.n, self.max_tokens or 512)


def generate(config: GenerateConfig) -> None:
    """Runs the command. An interrupted one goes on where it was: finished prompts are in `<out>.partial`."""
    from r1jax import sharding
    from r1jax.checkpoints.model import describe, open_model
    from r1jax.data.hf_tokenizer import load_tokenizer
    from r1jax.data.tokenizer import check_fits
    from r1jax.sampling.generator import Generator, check_prompt, check_sampling

    console = Console()
    named = {"--prompt": {"prompt": config.prompt}} if config.prompts is None else read_prompts(config)
    rows = list(named.values())
    if config.out is not None and config.out.exists():
        raise ConfigError(f"--out {config.out} is already there: choose another file, or remove it")
    if config.out is not None and not config.out.absolute().parent.is_dir():
        raise ConfigError(f"--out {config.out}: the folder {config.out.parent} is not there; make it first")
    mesh = sharding.make_mesh(dataclasses.asdict(config.mesh))
    _, shape, assets = describe(config.checkpoint)
    tokenizer = load_tokenizer(assets)
    check_fits(tokenizer, shape.vocab_size, assets)
    if config.max_tokens is None:
        config = dataclasses.replace(config, max_tokens=min(512, shape.max_position_embeddings // 2))
    devices = sharding.Layout(mesh, "sample").size("prompt")
    batch_size = min(config.batch_size, -(-len(rows) // devices) * devices)
    check_sampling(shape, config.sampling, mesh, batch_size, config.speculative)
    prompts = encode_rows(named, tokenizer, assets, config)
    for where, prompt in zip(named, prompts, strict=True):
        check_prompt(shape, config.sampling, prompt, where)

    model, shape, _ = open_model(config.checkpoint, config.dtype, mesh, show_progress=config.out is not None)
    generator = Generator(
        model, shape, tokenizer, config.sampling,
        mesh=mesh, batch_size=batch_size, speculative=config.speculative, seed=config.seed,
    )  # fmt: skip
    del model  # the generator has its own, laid out for sampling
    with Results(config, rows, batch_size) as results:
        told = console if config.out else Console(stderr=True)
        drawn = draw(generator, prompts, results, told, logps=config.logps)
        results.put(console)
    if config.out is not None:
        _summarise(console, generator.statistics, drawn)


def read_prompts(config: GenerateConfig) -> dict[str, dict[str, Any]]:
    """The rows of the jsonl file of prompts, each by its file and line. Raises `DataError` naming them."""
    rows = dict(read_rows(config.prompts, "--prompts"))
    written = ["completions", "finish_reasons", *(["logps"] if config.logps else [])]
    for where, row in rows.items():
        kinds = {"prompt": str, "messages": list, "tokens": list}
        found = [k for k in kinds if isinstance(row, dict) and k in row]
        if len(found) != 1 or not isinstance(row[found[0]], kinds[found[0]]):
            raise DataError(
                f'{where}: must be an object with one of "prompt" (text), "messages" (a list of role and content) or '
                f'"tokens" (a list of ids)'
            )
        taken = [k for k in (*written, *(["prompt_tokens"] if "tokens" in row else [])) if k in row]
        if taken:
            raise DataError(f"{where}: its field {taken[0]!r} has a name that the output needs; rename it")
    return rows


def encode_rows(
    named: Mapping[str, dict[str, Any]], tokenizer: Any, assets: Path, config: GenerateConfig
) -> list[list[int]]:
    """Token ids of each row's prompt. Raises `DataError` naming the row."""
    from r1jax.data.chat import ChatTemplate
    from r1jax.data.tokenizer import from_bos

    chat = config.chat or config.think
    template = None
    if chat or any("messages" in row for row in named.values()):
        template = ChatTemplate.from_folder(assets)

    def encode(row: dict[str, Any]) -> list[int]:
        if "tokens" in row:
            if not all(type(i) is int and 0 <= i < tokenizer.vocab_size for i in row["tokens"]):
                raise DataError(f"tokens={str(row['tokens'])[:60]}: each must be an id below {tokenizer.vocab_size}")
            return row["tokens"]
        messages = [{"role": "user", "content": row["prompt"]}] if chat and "prompt" in row else row.get("messages")
        text = row["prompt"] if messages is None else template.render(messages, think=config.think)
        return from_bos(tokenizer.encode(text), tokenizer)

    out = []
    for where, row in named.items():
        try:
            out.append(encode(row))
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
    return out


class Results(PartialRows):
    """The rows of the output: in `<out>.partial` as they come, and put in order and in place at the end."""

    def __init__(self, config: GenerateConfig, rows: Sequence[dict[str, Any]], batch_size: int):
        self.config, self.rows = config, rows
        settings = {k: str(v) for k, v in dataclasses.asdict(config).items() if k not in ("out", "prompts", "prompt")}
        settings |= {"batch_size": batch_size, "rows": hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest()}
        super().__init__(config.out and config.out.with_name(f"{config.out.name}.partial"), settings)

    def put(self, console: Console) -> None:
        """Writes the output file, or prints the completions where none was asked for."""
        if self.path is None:
            for i in sorted(self.done):
                for number, text in enumerate(self.done[i]["completions"], 1):
                    if len(self.rows) * self.config.n > 1:
                        console.rule(f"prompt {i + 1}, completion {number}")
                    print(text)
            return
        # The prompt's own ids would be hidden by the completions'.
        kept = ({("prompt_tokens" if k == "tokens" else k): v for k, v in row.items()} for row in self.rows)
        self.finish(self.config.out, (row | self.done[i] for i, row in enumerate(kept)))
        console.print(f"written: {self.config.out}", soft_wrap=True, highlight=False)


def _summarise(console: Console, statistics: Any, drawn: Drawn) -> None:
    table = Table()
    cells = {
        "completions": f"{drawn.completions}",
        "tokens": f"{statistics.tokens}",
        "mean length": f"{statistics.tokens / max(drawn.completions, 1):.1f}",
        "stopped": f"{drawn.ended / max(drawn.completions, 1):.0%}",
        "tokens/s": f"{statistics.tokens / drawn.seconds:.1f}",
    }
    if statistics.passes != statistics.tokens:
        accepted = statistics.accepted / max(statistics.passes, 1)
        cells |= {"tokens/pass": f"{1 + accepted:.2f}", "accepted": f"{accepted:.0%}"}
    for name in cells:
        table.add_column(name, justify="right")
    table.add_row(*cells.values())
    console.print(table)
