"""What the R1 recipe is about: the miniature's world, or the data sets that a person gives.

A scenario says where problems come from, what is correct, how cold-start responses are had, and what other examples the
second SFT learns. Everything else is the same in all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from r1jax.data.cards import write_data_set
from r1jax.data.sources import iterate_rows
from r1jax.data.templates import (
    R1_CHAT_TEMPLATE,
    R1_ZERO_CHAT_TEMPLATE,
    render_completion,
    render_r1_completion,
    render_r1_zero,
)
from r1jax.data.world import general_requests, preference_pairs, reasoning_problems, safety_labels, world_tokenizer
from r1jax.data.world.corpus import DETAIL
from r1jax.data.world.problems import from_textbook, textbook_examples, translated
from r1jax.data.world.requests import good_response
from r1jax.errors import ConfigError, DataError
from r1jax.files import file_hash
from r1jax.recipes import cold_start
from r1jax.recipes.collect import Row
from r1jax.recipes.r1.config import ColdStartStage, WorldStage
from r1jax.sampling.completions import Sample

DATA_SETS = tuple(
    f"{name}_{split}" for name in ("problems", "requests", "pairs", "safety") for split in ("train", "test")
)
EXAMPLES = "examples"
_ASSETS, _TEMPLATE = "zero", "r1_chat_template.jinja"


class Scenario(Protocol):
    """What the stages ask."""

    outputs: tuple[str, ...]
    """What stage world leaves."""
    rules: Mapping[str, str]
    """By the problems' domain, the name of the reward function that says what is correct."""

    def identity(self) -> dict[str, Any]:
        """What decides them."""

    def make(self, folder: Path) -> dict[str, int]:
        """Writes the data sets, {DATA_SETS}.jsonl with their cards, and the rest of `outputs`; rows by data set."""

    def cold_start(
        self, config: ColdStartStage, world: Path, base: Sample, zero: Sample, folder: Path, seed: int, console: Console
    ) -> list[Row]:
        """Candidates of the four ways. `world` is the folder of stage world, `folder` keeps what is drawn."""

    def other_example(self, request: Row) -> dict[str, Any]:
        """A request as a conversation to learn from."""


def scenario(config: WorldStage) -> Scenario:
    """The one that the settings ask for."""
    return Miniature(config) if config.data is None else Given(config)


class Miniature:
    """`r1jax.data.world`."""

    outputs = (_ASSETS, _TEMPLATE, *(f"{name}.jsonl" for name in DATA_SETS))
    rules = {"reasoning": "world_accuracy"}  # noqa: RUF012 - a constant

    def __init__(self, config: WorldStage):
        self._config = config

    def identity(self) -> dict[str, Any]:
        return dataclasses.asdict(self._config)

    def make(self, folder: Path) -> dict[str, int]:
        config = self._config
        for unfinished in (folder / _ASSETS).glob("*.partial"):
            unfinished.unlink()
        world_tokenizer(config.corpus, folder / _ASSETS / "tokenizer.model", config.vocab_size, config.seed)
        (folder / _ASSETS / "chat_template.jinja").write_text(R1_ZERO_CHAT_TEMPLATE)
        (folder / _TEMPLATE).write_text(R1_CHAT_TEMPLATE)
        makers: dict[str, tuple[Callable[[int, int, Any], list], int, int]] = {
            "problems": (reasoning_problems, config.train_problems, config.test_problems),
            "requests": (general_requests, config.train_requests, config.test_requests),
            "pairs": (preference_pairs, config.train_preferences, config.test_preferences),
            "safety": (safety_labels, config.train_preferences, config.test_preferences),
        }
        counts = {}
        for name in DATA_SETS:
            kind, _, split = name.partition("_")
            make, *sizes = makers[kind]
            rows = make(config.seed, sizes[split == "test"], split)
            counts[name] = _write(folder, name, rows, f"Of the miniature's world, computed from seed {config.seed}.")
        return counts

    def cold_start(
        self, config: ColdStartStage, world: Path, base: Sample, zero: Sample, folder: Path, seed: int, console: Console
    ) -> list[Row]:
        few, detailed, outputs = _parts(world, config.problems)
        # The examples are textbook solutions, which the base goes on with: its window has no room for more talk.
        few = cold_start.few_shot(
            few, textbook_examples(seed, 64), base, config.n, folder,
            shots=config.shots, render=_textbook_prompt, stop=None, console=console,
        )  # fmt: skip
        few = [row | {"completion": _from_textbook(row["completion"])} for row in few]
        detailed = cold_start.reflection(
            detailed, base, config.n, folder, console=console,
            render=lambda row: render_r1_zero(row["question"] + DETAIL[row["language"]]),
        )  # fmt: skip
        outputs = cold_start.zero_outputs(outputs, zero, config.n, folder, console=console)
        rows = [row | {"completion": cold_start.readable(row) or row["completion"]} for row in (*few, *detailed)]
        return [*rows, *outputs, *cold_start.refined(outputs, _in_one_language)]

    def other_example(self, request: Row) -> dict[str, Any]:
        return _conversation(request, good_response(request))


def _textbook_prompt(problem: Row, examples: Sequence[Row]) -> str:
    return "".join(f"{e['question']} {e['response']} " for e in examples) + problem["question"]


def _from_textbook(completion: str) -> str:
    found = from_textbook(completion)
    return completion if found is None else render_completion(*found)


def _in_one_language(row: Row) -> dict[str, Any] | None:
    """The row with its thinking in the question's language; None where it is so already."""
    thought, closed, summary = row["completion"].removeprefix("<think>").partition("</think>")
    better = translated(thought, row["language"])
    return {"completion": render_r1_completion(better, summary)} if closed and better != thought else None


class Given:
    """Data sets in a folder, each a file of any kind that `r1jax.data.sources` reads.

    problems_train, problems_test: "question", "answer" (or "tests", for programs), "language" (a code such as "en") and
      "domain", one that has a rule.
    requests_train, requests_test: "question", "language" and "domain" ("general" or "safety"); those for training have
      a "response" (thinking and summary) to learn from; of those for testing the ones with an "answer" are judged.
    pairs_*, safety_*: what `r1jax reward-model` takes, of pairs and pointwise.
    examples: "question" and "response", long and worked out, to show in few-shot prompts.
    """

    outputs = (_TEMPLATE, f"{EXAMPLES}.jsonl", *(f"{name}.jsonl" for name in DATA_SETS))

    def __init__(self, config: WorldStage):
        self._config = config
        self.rules = {domain: function for function, domains in config.rules.items() for domain in domains}

    def identity(self) -> dict[str, Any]:
        template = self._config.chat_template
        files = {name: file_hash(self.file(name)) for name in (EXAMPLES, *DATA_SETS)}
        return {"data": files, "rules": dict(self.rules), "chat_template": template and file_hash(template)}

    def make(self, folder: Path) -> dict[str, int]:
        template = self._config.chat_template
        (folder / _TEMPLATE).write_text(R1_CHAT_TEMPLATE if template is None else template.read_text(encoding="utf-8"))
        return {name: _write(folder, name, self._rows(name), "As it was given.") for name in (EXAMPLES, *DATA_SETS)}

    def _rows(self, name: str) -> Iterator[Row]:
        kind = name.partition("_")[0]
        needed = {
            "problems": ("question", "language", "domain"),
            "requests": ("question", "language", "domain", *(["response"] if name.endswith("train") else [])),
            "pairs": ("chosen", "rejected"),
            "safety": ("prompt", "completion", "label"),
            EXAMPLES: ("question", "response"),
        }[kind]
        domains = tuple(self.rules) if kind == "problems" else ("general", "safety")
        for row in iterate_rows(self.file(name)):
            for field in needed:
                if row.get(field) is None:
                    raise DataError(f'{row.where}: its fields are {", ".join(row) or "none"}; give it a "{field}"')
            if "domain" in needed and row["domain"] not in domains:
                raise DataError(f"{row.where}: domain={row['domain']!r}; give one of {', '.join(domains)}")
            if kind == "problems" and row.get("answer") is None and row.get("tests") is None:
                raise DataError(f'{row.where}: nothing says what is correct; give it an "answer" or "tests"')
            # A judge finds the rule by the row's kind.
            yield {**row, "kind": row["domain"]} if kind == "problems" else dict(row)

    def file(self, name: str) -> Path:
        """The file of a data set. Raises `ConfigError` where there is none, or several."""
        data = self._config.data
        found = sorted(path for path in data.glob(f"{name}.*") if not path.name.endswith(".card.md"))
        if len(found) != 1:
            has = ", ".join(path.name for path in found) or "none"
            raise ConfigError(f"world.data={str(data)!r}: needs one file {name}.jsonl (or .parquet ...), and has {has}")
        return found[0]

    def cold_start(
        self, config: ColdStartStage, world: Path, base: Sample, zero: Sample, folder: Path, seed: int, console: Console
    ) -> list[Row]:
        few, detailed, outputs = _parts(world, config.problems)
        examples = list(iterate_rows(world / f"{EXAMPLES}.jsonl"))
        few = cold_start.few_shot(few, examples, base, config.n, folder, shots=config.shots, console=console)
        detailed = cold_start.reflection(detailed, base, config.n, folder, console=console)
        outputs = cold_start.zero_outputs(outputs, zero, config.n, folder, console=console)
        rewritten = cold_start.refined_by_model(outputs, base, folder, console=console)
        return [*few, *detailed, *outputs, *rewritten]

    def other_example(self, request: Row) -> dict[str, Any]:
        return _conversation(request, request["response"])


def _parts(world: Path, count: int) -> list[list[Row]]:
    """The first, second and third `count` problems, one part for each way of asking."""
    problems = list(iterate_rows(world / "problems_train.jsonl"))
    return [problems[i * count : (i + 1) * count] for i in range(3)]


def _conversation(row: Row, response: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": response}]
    kept = {name: row[name] for name in ("domain", "language", "kind") if row.get(name) is not None}
    return {"messages": messages, **kept, "source": "requests"}


def _write(folder: Path, name: str, rows: Iterable[Row], description: str) -> int:
    rows, title = list(rows), name.replace("_", ", ").capitalize()
    spoken = sorted({row["language"] for row in rows if row.get("language")})
    return write_data_set(folder / f"{name}.jsonl", rows, title=title, description=description, languages=spoken).rows
