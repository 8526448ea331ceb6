"""Evaluations as one page: metrics with their intervals, lengths, pass rates, and the problems to browse."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from r1jax.evaluation.figures import draw_histogram
from r1jax.evaluation.pages import write_page
from r1jax.evaluation.scoring import is_right
from r1jax.training.metrics import read_jsonl

RESULTS, PROBLEMS = "results.json", "problems.jsonl"

PROBLEMS_SHOWN = 60  # of each group; a page of thousands would not open
COMPLETIONS_SHOWN = 4  # of each problem
CHARACTERS_SHOWN = 12_000  # of each text
UNFOLDED = 700  # characters up to which a completion is shown unasked

_GROUPS = (  # title, whether a problem of this pass rate (None: not judged) belongs
    ("Never right", lambda rate: rate == 0),
    ("Sometimes right", lambda rate: rate is not None and 0 < rate < 1),
    ("Always right", lambda rate: rate == 1),
    ("Not judged here", lambda rate: rate is None),
)

Row = Mapping[str, Any]


def evaluation_folders(folder: Path) -> list[Path]:
    """The finished evaluations in a folder: itself, or those right below it."""
    if (folder / RESULTS).exists():
        return [folder]
    return sorted(path.parent for path in folder.glob(f"*/{RESULTS}"))


def write_evaluation_report(folder: Path, evaluations: Sequence[Path]) -> Path:
    """Writes `folder/report.html` on these evaluations and returns its path."""
    parts = [_evaluation(path) for path in evaluations]
    facts = [("evaluations", str(len(parts)))] if len(parts) > 1 else []
    facts += [("problems", f"{sum(p['counts']['problems'] for p in parts):,}")]
    facts += [("completions", f"{sum(p['counts']['completions'] for p in parts):,}")]
    for name in ("checkpoint", "completions"):
        values = {p["settings"][name] for p in parts if name in p["settings"]}
        facts += [(name if name == "checkpoint" else "file", value) for value in sorted(values)]
    facts.append(("r1jax", ", ".join(sorted({p["version"] for p in parts}))))
    content = {"title": folder.resolve().name, "kind": "evaluation", "facts": facts, "evaluations": parts}
    content["overview"] = overview([p["results"] for p in parts])
    return write_page(folder, "evaluation.html.j2", content)


def overview(results: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """(column names, a line for each evaluation) of the table that compares evaluations; "" for what one has not."""
    lines = []
    for result in results:
        metrics, counts = result["metrics"], result["counts"]
        k = result["k"]
        line = {"": result["name"], "problems": f"{counts['problems']:,}", "k": str(k)}
        line["pass@1"] = _with_interval(metrics.get("pass@1"))
        if k > 1:
            line["cons@k"] = _with_interval(metrics.get(f"cons@{k}"))
            line |= {name: _with_interval(metrics[name]) for name in _largest(metrics)}
            line["best of k"] = _with_interval(metrics.get(f"best_of_{k}"))
        for unit in ("length", "characters"):
            line[unit] = show(f"mean_{unit}", metrics.get(f"mean_{unit}"))
        if metrics.get("truncated", {}).get("value"):
            line["cut off"] = show("truncated", metrics["truncated"])
        lines.append(line)
    passes = sorted({name for r in results for name in _largest(r["metrics"])}, key=lambda name: int(name[5:]))
    order = ["", "problems", "k", "pass@1", "cons@k", *passes, "best of k", "length", "characters", "cut off"]
    names = [name for name in order if not name or any(line.get(name) for line in lines)]
    return names, [[line.get(name, "") for name in names] for line in lines]


def show(name: str, metric: Mapping[str, Any] | None) -> str:
    """A metric's value for people, "" for none: a share in percent, a length in whole units."""
    value = None if metric is None else metric["value"]
    if value is None:
        return ""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    if isinstance(value, int) or name.endswith(("_length", "_characters")):
        return f"{value:,.0f}"
    return f"{100 * value:.1f}%" if 0 <= value <= 1 else f"{value:,.4g}"


def _largest(metrics: Mapping[str, Any]) -> list[str]:
    """The pass@k of the largest k, if there is one beside pass@1."""
    return [name for name in metrics if re.fullmatch(r"pass@\d+", name) and name != "pass@1"][-1:]


def _with_interval(metric: Mapping[str, Any] | None) -> str:
    if metric is None:
        return ""
    low, high = metric["interval"]
    return f"{100 * metric['value']:.1f}%\n{100 * low:.1f}–{100 * high:.1f}"


def _evaluation(folder: Path) -> dict[str, Any]:
    """All that the page says of one evaluation."""
    result = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    groups: list[list[dict[str, Any]]] = [[] for _ in _GROUPS]
    sizes, rates = [0] * len(_GROUPS), []
    lengths: dict[str, list[int]] = {"--series-3": [], "--series-2": []}  # of what is right, of what is not
    unit = "tokens" if "mean_length" in result["metrics"] else "characters"
    for row in read_jsonl(folder / PROBLEMS):
        rate = row.get("pass@1")
        number = next(n for n, (_, belongs) in enumerate(_GROUPS) if belongs(rate))
        sizes[number] += 1
        if len(groups[number]) < PROBLEMS_SHOWN:
            groups[number].append(_problem(row))
        rates += [] if rate is None else [rate]
        measured = row["tokens"] if unit == "tokens" else map(len, row["completions"])
        for length, score in zip(measured, row.get("scores", [None] * len(row["completions"])), strict=True):
            if length is not None:
                lengths["--series-3" if is_right(score) else "--series-2"].append(length)
    titles = [title for title, _ in _GROUPS]
    metrics = [_line(name, metric) for name, metric in result["metrics"].items()]
    return {
        "results": result,
        "name": result["name"],
        "title": result["title"],
        "counts": result["counts"],
        "told": [(name, f"{n:,}") for name, n in result["counts"].items() if n],
        "notes": result["notes"],
        "reflection": _reflection(result),
        "metrics": metrics,
        "settings": result["settings"],
        "version": result["version"],
        "figures": _figures(lengths, rates, result["k"], unit),
        "groups": [g for g in zip(titles, sizes, groups, strict=True) if g[1]],
    }


def _reflection(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(word, times, times in a hundred completions), the most frequent first; none for words that do not occur."""
    found = sorted((item for item in result["reflection"].items() if item[1]), key=lambda item: -item[1])
    return [(word, f"{n:,}", f"{100 * n / result['counts']['completions']:,.1f}") for word, n in found]


def _line(name: str, metric: Mapping[str, Any]) -> dict[str, Any]:
    interval = metric["interval"]
    return {
        "name": name,
        "value": show(name, metric),
        "low": None if interval is None else 100 * interval[0],
        "high": None if interval is None else 100 * interval[1],
        "at": None if interval is None else 100 * metric["value"],
    }


def _figures(lengths: Mapping[str, list[int]], rates: Sequence[float], k: int, unit: str) -> list[dict[str, Any]]:
    figures = []
    values = [length for group in lengths.values() for length in group]
    if values:
        groups = lengths if rates else {"--series-1": values}
        edges = np.linspace(min(values), max(values) + 1, min(30, max(values) - min(values) + 1) + 1)
        svg = draw_histogram(groups, edges, "completions by length", unit)
        labels = {"--series-3": "right", "--series-2": "not right", "--series-1": "all"}
        keys = [(f"var({colour})", labels[colour], f"{len(group):,}") for colour, group in groups.items()]
        figures.append({"title": "Response length", "note": "how many completions", "keys": keys, "svg": svg})
    if rates:
        bins = min(k, 20) + 1  # one for each share that k completions can have, as long as they are few
        edges = np.linspace(0, 1 + 1 / (bins - 1), bins + 1) - 0.5 / (bins - 1)
        svg = draw_histogram({"--series-1": rates}, edges, "problems by pass rate", "right completions", percent=True)
        keys = [("var(--series-1)", "problems", f"{len(rates):,}")]
        figures.append({"title": "Pass rates", "note": "how many problems", "keys": keys, "svg": svg})
    return figures


def _problem(row: Row) -> dict[str, Any]:
    scores = row.get("scores", [None] * len(row["completions"]))
    answers = row.get("answers") or [None] * len(scores)
    tokens, reasons = row.get("tokens") or [None] * len(scores), row.get("finish_reasons") or [None] * len(scores)
    completions = [
        {
            "number": number,
            "verdict": "unscored" if score is None else "right" if is_right(score) else "wrong",
            "score": None if score in (None, 0, 1) else f"{score:.3g}",
            "answer": None if answer is None else _cut(answer, 200),
            "length": f"{length:,} tokens" if length is not None else f"{len(text):,} characters",
            "reason": reason,
            "text": _cut(text, CHARACTERS_SHOWN),
            "open": len(text) <= UNFOLDED,
        }
        for number, (text, score, answer, length, reason) in enumerate(
            zip(row["completions"], scores, answers, tokens, reasons, strict=True), 1
        )
    ]
    return {
        "id": row["id"],
        "problem": _cut(row["problem"], CHARACTERS_SHOWN),
        "title": row["problem"][:200],
        "answer": None if row.get("answer") is None else _cut(str(row["answer"]), 1000),
        "votes": _votes(answers, row),
        "rate": row.get("pass@1"),
        "right": sum(map(is_right, scores)),
        "k": len(scores),
        "flags": row["flags"],
        "completions": [] if any(flag.startswith("not asked") for flag in row["flags"]) else _chosen(completions),
    }


def _chosen(completions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Up to COMPLETIONS_SHOWN: the first, but of each verdict at least one."""
    first = {c["verdict"]: c["number"] for c in reversed(completions)}
    ranked = sorted(completions, key=lambda c: (c["number"] != first[c["verdict"]], c["number"]))
    return sorted(ranked[:COMPLETIONS_SHOWN], key=lambda c: c["number"])


def _votes(answers: Sequence[str | None], row: Row) -> list[tuple[str, int]]:
    """Answers, as they were written, with how many gave them, the most frequent first."""
    if row.get("majority") is None:
        return []
    counts = {answer: answers.count(answer) for answer in answers if answer is not None}
    return [(_cut(a, 60), n) for a, n in sorted(counts.items(), key=lambda item: -item[1])][:8]


def _cut(text: str, size: int) -> str:
    """At most `size` characters, from both ends."""
    if len(text) <= size:
        return text
    return f"{text[: size // 2]}\n… {len(text) - size:,} characters left out …\n{text[-(size // 2) :]}"
