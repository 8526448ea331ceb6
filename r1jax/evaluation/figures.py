"""Curves as inline SVG whose colours and fonts are the page's: `var(--ink)`, `var(--series-1)`, ..."""

import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# matplotlib knows no CSS variables: it draws in these stand-ins, which are then replaced in the SVG.
_STAND_INS = {"--ink": "#010101", "--muted": "#020202", "--rule": "#030303"}
_STAND_INS |= {f"--series-{i}": f"#0a0a0{i}" for i in range(1, 7)}


@dataclass(frozen=True)
class Curve:
    """One metric against steps. `smooth`: drawn faintly, with a moving average on top."""

    label: str
    steps: np.ndarray
    values: np.ndarray
    smooth: bool = False


def curve(rows: Sequence[Mapping], name: str, label: str, smooth: bool = False) -> Curve | None:
    """Metric `name` from rows of metrics.jsonl, without nulls; None if it was never logged."""
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    if not points:
        return None
    steps, values = np.array(points, float).T
    return Curve(label, steps, values, smooth)


def draw(curves: Sequence[Curve], alt: str, percent: bool = False) -> str:
    """An `<svg>` element of all `curves` on one pair of axes; the n-th has the colour `--series-n`."""
    figure, axes = _axes()
    for number, line in enumerate(curves, start=1):
        colour = _STAND_INS[f"--series-{number}"]
        marker = {"marker": "o", "markersize": 3.5} if len(line.steps) <= 40 and not line.smooth else {}
        if line.smooth:
            axes.plot(line.steps, line.values, color=colour, alpha=0.28, linewidth=0.8)
        values = _moving_average(line.values) if line.smooth else line.values
        axes.plot(line.steps, values, color=colour, linewidth=1.7, **marker)
    _style(axes)
    if percent:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%")
    return _inline(figure, alt)


def draw_histogram(
    groups: Mapping[str, Sequence[float]], edges: Sequence[float], alt: str, xlabel: str, percent: bool = False
) -> str:
    """An `<svg>` element of how many values lie between `edges`, the groups stacked.

    `groups` are values by the colour of their bars, as in "--series-1"; `percent`: the values are shares.
    """
    figure, axes = _axes()
    counts = [np.histogram(values, edges)[0] for values in groups.values()]
    bottom = np.zeros(len(edges) - 1)
    for colour, count in zip(groups, counts, strict=True):
        axes.bar(edges[:-1], count, np.diff(edges) * 0.92, bottom, align="edge", color=_STAND_INS[colour], linewidth=0)
        bottom += count
    _style(axes, xlabel)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    if percent:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%")
    return _inline(figure, alt)


def draw_estimates(
    labels: Sequence[str],
    values: Sequence[float],
    intervals: Sequence[tuple[float, float] | None],
    alt: str,
    percent: bool = False,
) -> str:
    """An `<svg>` element of one value a line, with a bar over its interval if it has one, coloured `--series-1`."""
    figure, axes = _axes(height=0.7 + 0.26 * len(labels))
    colour, rows = _STAND_INS["--series-1"], range(len(labels))
    for row, interval in zip(rows, intervals, strict=True):
        if interval is not None:
            axes.plot(interval, (row, row), color=colour, alpha=0.45, linewidth=3.2, solid_capstyle="butt")
    axes.plot(values, rows, color=colour, linestyle="none", marker="o", markersize=5.5)
    _style(axes, xlabel="")
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=_STAND_INS["--rule"], linewidth=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    axes.set_yticks(rows, labels, parse_math=False)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.margins(x=0.04)
    if percent:
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%")
    return _inline(figure, alt)


def _axes(height: float = 2.7) -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.6, height), layout="constrained")
    return figure, figure.add_subplot()


def _style(axes, xlabel: str = "step") -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_STAND_INS["--rule"])
    axes.grid(axis="y", color=_STAND_INS["--rule"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelcolor=_STAND_INS["--muted"], labelsize=8.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlabel(xlabel, color=_STAND_INS["--muted"], fontsize=8.5, loc="right")
    axes.margins(x=0.02, y=0.08)


def _moving_average(values: np.ndarray) -> np.ndarray:
    """Centred mean over about a twentieth of the curve, over what there is of the window at the ends."""
    width = max(1, len(values) // 20) | 1
    ones = np.ones(width)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def _inline(figure: Figure, alt: str) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": alt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(defs|metadata)>\s*(<style.*?</style>|<rdf.*?</rdf:RDF>)\s*</\1>", "", svg, flags=re.S)
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)  # figure_1, axes_1: the same in every figure of the page
    svg = re.sub(
        r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", rf'<svg \1 role="img" aria-label="{html.escape(alt)}">', svg, count=1
    )
    for variable, stand_in in _STAND_INS.items():
        svg = svg.replace(stand_in, f"var({variable})")
    return svg
