"""Where the boxes and arrows of a chain of stages lie: one box below the other, arrows beside them.

A stage is read by many, far down the chain, so that layers side by side would be a thicket: here everything that a
stage gives away runs down one lane of its own, from which arrows branch off.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Sequence
from typing import Any

WIDTH, BOX, GAP, LANE, MARGIN = 1000, 68, 20, 14, 10
_DROP = 26  # from a box's left edge to the arrow that leads straight down


@dataclasses.dataclass(frozen=True)
class Box:
    """One stage, in words."""

    name: str
    title: str
    state: str
    """"done", "stale", "begun" or "waiting"."""
    sources: dict[str, str]
    """What it reads by the stage that makes it: {"base": "model"}. Those of other chains are not drawn."""
    time: str
    hash: str
    results: str


def lay_out(boxes: Sequence[Box]) -> dict[str, Any]:
    """Sizes, boxes and arrows for the template, in units of which the picture is `WIDTH` wide; `boxes` in order."""
    rows = {box.name: row for row, box in enumerate(boxes)}
    readers: dict[str, list[int]] = {box.name: [] for box in boxes}
    for box in boxes:
        for source in box.sources:
            if rows.get(source, len(rows)) < rows[box.name]:
                readers[source].append(rows[box.name])
    far = {name: [row for row in found if row > rows[name] + 1] for name, found in readers.items()}
    lanes = _lanes({name: (rows[name], found[-1]) for name, found in far.items() if found})
    left = MARGIN + LANE * (1 + max(lanes.values(), default=-1)) + (LANE if lanes else 0)

    def colour(name: str) -> str:
        return f"var(--series-{1 + rows[name] % 6})"

    def top(row: int) -> float:
        return MARGIN + row * (BOX + GAP)

    arrows = []
    for name, found in readers.items():
        for row in found:
            title = f"{name}/{boxes[row].sources[name]} → {boxes[row].name}"
            if row == rows[name] + 1:
                x = left + _DROP
                path, tip = f"M {x} {top(row) - GAP} V {top(row) - 5}", (x, top(row), "down")
            else:
                x = left - LANE * (1 + lanes[name]) - LANE / 2
                entries = [source for source in boxes[row].sources if row in far.get(source, ())]
                y = top(row) + BOX * (1 + entries.index(name)) / (len(entries) + 2)
                start = top(rows[name]) + BOX - 10
                path, tip = f"M {left} {start:g} H {x:g} V {y:.1f} H {left - 5}", (left, y, "right")
            arrows.append({"path": path, "tip": _tip(*tip), "colour": colour(name), "title": title})
    inner = WIDTH - MARGIN - left
    drawn = [
        {
            "box": box,
            "x": left,
            "y": top(row),
            "name": cut(box.name, (inner - 190) / 8.4),
            "title": cut(box.title, (inner - 190) / 6.9),
            "results": cut(box.results, (inner - 190) / 6.9),
        }
        for row, box in enumerate(boxes)
    ]
    height = 2 * MARGIN + len(boxes) * (BOX + GAP) - GAP
    return {"width": WIDTH, "height": height, "inner": inner, "box": BOX, "boxes": drawn, "arrows": arrows}


def cut(text: str, units: float) -> str:
    """`text` up to a width of so many letters, of which Chinese ones take two."""
    width = 0
    for i, letter in enumerate(text):
        width += 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if width > units:
            return text[: max(i - 1, 0)].rstrip() + "…"
    return text


def _lanes(spans: dict[str, tuple[int, int]]) -> dict[str, int]:
    """A lane for each span of rows, 0 the nearest to the boxes: short spans first, no two that overlap in one."""
    lanes: dict[str, int] = {}
    for name, (first, last) in sorted(spans.items(), key=lambda item: item[1][1] - item[1][0]):
        taken = {lanes[other] for other in lanes if spans[other][0] <= last and first <= spans[other][1]}
        lanes[name] = next(lane for lane in range(len(spans)) if lane not in taken)
    return lanes


def _tip(x: float, y: float, way: str) -> str:
    """The three corners of an arrow's head that ends at (x, y)."""
    corners = (
        ((x, y), (x - 7, y - 3.5), (x - 7, y + 3.5)) if way == "right" else ((x, y), (x - 3.5, y - 7), (x + 3.5, y - 7))
    )
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
