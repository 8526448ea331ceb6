"""Cards of data sets: what a file of rows holds, what it was made from, and what was left out on the way."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import r1jax
from r1jax.errors import DataError, check_field
from r1jax.files import file_hash, write_rows

_EXAMPLES = 2
_LONGEST = 2000  # characters of a text in an example
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclasses.dataclass(frozen=True)
class Card:
    """What a card says; all of it depends on the data alone, so that the same data have the same card."""

    title: str
    description: str
    rows: int
    sha256: str
    """Of the file's bytes."""
    version: str
    """Of r1jax."""
    tokens: int | None = None
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What the rows were made from: name -> SHA-256."""
    removed: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Filter -> how many rows it removed, in the order in which they were applied."""
    counts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further numbers by name, which may be nested."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """With which the rows were made, which may be nested."""
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Field -> its types, and in how many rows it is where not in all."""


def card_path(path: Path) -> Path:
    """Where the card of a data set lies: beside `train.jsonl` it is `train.card.md`."""
    return path.with_name(f"{path.stem}.card.md")


def write_data_set(
    path: Path,
    rows: Iterable[Mapping[str, Any]],
    *,
    title: str,
    description: str,
    sources: Mapping[str, str] | None = None,
    removed: Mapping[str, int] | None = None,
    counts: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    tokens: int | None = None,
    languages: Iterable[str] = (),
) -> Card:
    """Writes `rows` to a jsonl file, whole or not at all, and then its card.

    The card is a markdown file whose head is YAML as a hub reads it: as README.md beside the data it is the data set's
    page. Under "r1jax" the head holds all of `Card`, which `read_card` gives back. Neither file has a date in it.

    Args:
      sources: name -> SHA-256 of what the rows were made from. A name is no path of one machine.
      languages: ISO 639-1 codes of what the rows are written in.

    Raises `DataError` where there are no rows, and `ConfigError` for a source that is named by an absolute path.
    """
    for name in sources or ():
        check_field(not os.path.isabs(name), "sources", name, "name it without the folders of this machine")
    card_path(path).unlink(missing_ok=True)  # that of earlier data must not stand beside these
    number, examples = 0, []
    types: dict[str, dict[str, int]] = {}

    def counted() -> Iterable[Mapping[str, Any]]:
        nonlocal number
        for row in rows:
            number += 1
            if len(examples) < _EXAMPLES:
                examples.append(row)
            for name, value in row.items():
                kinds = types.setdefault(name, {})
                kinds[_type(value)] = kinds.get(_type(value), 0) + 1
            yield row

    write_rows(path, counted())
    if not number:
        path.unlink()
        left_out = ", ".join(f"{count:,} by {name!r}" for name, count in (removed or {}).items() if count)
        raise DataError(f"{path.name}: no row is left to write ({left_out or 'none came'}); loosen what removes them")
    fields = {name: _described(kinds, number) for name, kinds in types.items()}
    card = Card(
        title, description, number, file_hash(path), r1jax.__version__, tokens,
        dict(sources or {}), dict(removed or {}), dict(counts or {}), dict(settings or {}), fields,
    )  # fmt: skip
    unfinished = path.with_name(f"{card_path(path).name}.unfinished")
    unfinished.write_text(_page(path, card, examples, sorted(set(languages))), encoding="utf-8")
    os.replace(unfinished, card_path(path))
    return card


def read_card(path: Path, check: bool = True) -> Card:
    """The card of the data set at `path`.

    Raises `DataError` where it is missing or damaged, and with `check` where the data are no longer those that it
    describes.
    """
    from huggingface_hub import DatasetCard

    try:
        head = DatasetCard(card_path(path).read_text(encoding="utf-8")).data.to_dict()
        card = Card(**head["r1jax"])
    except FileNotFoundError:
        raise DataError(f"{path}: has no card {card_path(path).name}; make the data set again") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{card_path(path)}: is damaged ({error}); make the data set again") from None
    if check and (not path.exists() or file_hash(path) != card.sha256):
        raise DataError(f"{path}: is not the file that its card describes; make the data set again")
    return card


def _type(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return "object"
    if isinstance(value, (list, tuple)):
        inside = sorted({_type(item) for item in value})
        return f"list of {' or '.join(inside)}" if inside else "empty list"
    return {bool: "boolean", int: "integer", float: "number", type(None): "null"}.get(type(value), type(value).__name__)


def _described(kinds: Mapping[str, int], rows: int) -> str:
    told, there = " or ".join(sorted(kinds)), sum(kinds.values())
    return told if there == rows else f"{told}, in {there:,} rows"


def _page(path: Path, card: Card, examples: list[Mapping[str, Any]], languages: list[str]) -> str:
    from huggingface_hub import DatasetCardData

    head = DatasetCardData(
        language=languages or None,
        pretty_name=card.title,
        size_categories=next((name for size, name in _SIZES if card.rows < size), "1M<n<10M"),
        configs=[{"config_name": "default", "data_files": path.name}],
        r1jax=dataclasses.asdict(card),
    )
    facts = {"rows": card.rows, "tokens": card.tokens, "SHA-256": card.sha256, "made by": f"r1jax {card.version}"}
    parts = [
        f"---\n{head.to_yaml()}\n---\n\n# {card.title}\n\n{card.description}\n",
        _table("Facts", ("", ""), {name: value for name, value in facts.items() if value is not None}),
        _table("Made from", ("source", "SHA-256"), card.sources),
        _table("Left out", ("filter", "rows"), card.removed),
        _table("Counts", ("", ""), _flat(card.counts)),
        _table("Settings", ("", ""), _flat(card.settings)),
        _table("Fields", ("field", "type"), card.fields),
        "## Examples\n\n" + "\n".join(map(_example, examples)),
    ]
    return "\n".join(part for part in parts if part)


def _table(title: str, names: tuple[str, str], values: Mapping[str, Any]) -> str:
    if not values:
        return ""
    lines = [f"| {_cell(name)} | {_cell(value)} |" for name, value in values.items()]
    return f"## {title}\n\n" + "\n".join([f"| {names[0]} | {names[1]} |", "|---|---|", *lines]) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return " ".join(str(value).replace("|", "\\|").split())


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name} / ") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _example(row: Mapping[str, Any]) -> str:
    # JSON keeps a text on one line, so that no fence within it can end this one.
    return f"```json\n{json.dumps(_clipped(row), indent=2, ensure_ascii=False)}\n```\n"


def _clipped(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _LONGEST:
        return f"{value[:_LONGEST]}… ({len(value):,} characters)"
    if isinstance(value, Mapping):
        return {name: _clipped(item) for name, item in value.items()}
    return [_clipped(item) for item in value] if isinstance(value, (list, tuple)) else value
