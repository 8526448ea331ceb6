"""A recipe as one page: its models compared, the chain of its stages, and what each stage was made of."""

from __future__ import annotations

import graphlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from r1jax.evaluation.chain import Box, lay_out
from r1jax.evaluation.figures import draw_estimates
from r1jax.evaluation.pages import write_page
from r1jax.evaluation.run_figures import duration, flat, stage_figures
from r1jax.recipes.pipeline import brief, show_result
from r1jax.recipes.stage import BEGUN, CHAIN, DONE, METRICS
from r1jax.training.metrics import read_jsonl

# The columns and rows of the paper's table (arXiv 2501.12948, table 3) first, in its order.
MODELS = ("base", "zero", "dev1", "dev2", "dev3", "r1", "student_distilled", "student_rl", "zero_language")
SCORES = ("pass@1", "cons@", "single_language", "format", "general", "harmless", "mean_length", "TFLOP")

Record = Mapping[str, Any]


def is_pipeline(folder: Path) -> bool:
    """Whether stages have been begun or finished there, and it is not the folder of a run."""
    if (folder / CHAIN).exists():
        return True
    begun = any(next(folder.glob(f"[!.]*/{name}"), None) is not None for name in (DONE, BEGUN))
    return begun and not (folder / "config.json").exists()


def write_pipeline_report(run_dir: Path) -> Path:
    """Writes `run_dir/report.html` (atomically), of what lies there at this moment, and returns its path."""
    run_dir = Path(run_dir)
    stages = _stages(run_dir)
    done = [s for s in stages if "outputs" in s]
    facts = [("stages", f"{len(done)} of {len(stages)} done")]
    facts.append(("time", duration(sum(s.get("seconds", 0.0) for s in stages))))
    for name in ("seed", "version"):
        values = list(dict.fromkeys(str(s[name]) for s in stages if name in s))
        facts.append(("r1jax" if name == "version" else name, ", ".join(values)))
    content = {
        "title": run_dir.resolve().name,
        "kind": "recipe",
        "facts": facts,
        "scores": _scores(run_dir / "results.json"),
        "chain": lay_out([_box(stage, stages) for stage in stages]),
        "stages": [_section(run_dir, stage, stages) for stage in stages],
    }
    return write_page(run_dir, "pipeline.html.j2", content)


# ---------------------------------------------------------------------------------------------------------- stages


def _stages(run_dir: Path) -> list[Record]:
    """What is known of each stage, in order. One that is done has "outputs", one that was begun has "seconds"."""
    found = {}
    for name in (BEGUN, DONE):  # the second is what counts where there are both
        for path in sorted(run_dir.glob(f"[!.]*/{name}")):
            found[path.parent.name] = json.loads(path.read_text(encoding="utf-8"))
    if (run_dir / CHAIN).exists():
        chain = json.loads((run_dir / CHAIN).read_text(encoding="utf-8"))
        waiting = {s["name"]: {"name": s["name"], "title": s["title"], "inputs": _sources(s)} for s in chain}
        return [found.get(name, stage) for name, stage in waiting.items()]
    graph = {name: {i["from"].split("/")[0] for i in stage["inputs"].values()} for name, stage in found.items()}
    return [found[name] for name in graphlib.TopologicalSorter(graph).static_order() if name in found]


def _sources(described: Record) -> dict[str, dict[str, str]]:
    return {name: {"from": source} for name, source in described["inputs"].items()}


def _box(stage: Record, stages: Sequence[Record]) -> Box:
    sources: dict[str, list[str]] = {}
    for given in stage["inputs"].values():
        producer, _, output = given["from"].partition("/")
        sources.setdefault(producer, []).append(output)
    outputs = stage.get("outputs", {})
    first = next(iter(outputs), None)
    stale = _stale(stage, stages)
    return Box(
        name=stage["name"],
        title=stage["title"],
        state=_state(stage, bool(stale)),
        sources={producer: ", ".join(names) for producer, names in sources.items()},
        time=_time(stage),
        hash="" if first is None else f"{first} {outputs[first]['sha256'][:8]}",
        results=stale[0] if stale else " · ".join(brief(stage.get("results", {}), 6)),
    )


def _state(stage: Record, stale: bool) -> str:
    if "outputs" in stage:
        return "stale" if stale else "done"
    return "begun" if "seconds" in stage else "waiting"


def _time(stage: Record) -> str:
    if "seconds" not in stage:
        return "to come"
    return f"{'' if 'outputs' in stage else 'begun, so far '}{duration(stage['seconds'])}"


def _stale(stage: Record, stages: Sequence[Record]) -> list[str]:
    """Sentences on inputs that are no longer what a finished stage was made from."""
    if "outputs" not in stage:
        return []
    made = {f"{s['name']}/{name}": o["sha256"] for s in stages for name, o in s.get("outputs", {}).items()}
    told = []
    for given in stage["inputs"].values():
        if given["from"] not in made:
            told.append(f"made from {given['from']}, which is no longer there")
        elif made[given["from"]] != given["sha256"]:
            told.append(f"made from an earlier {given['from']}: run it again")
    return told


def _section(run_dir: Path, stage: Record, stages: Sequence[Record]) -> dict[str, Any]:
    done = "outputs" in stage
    notes = _stale(stage, stages)
    if not done:
        notes = [f"{_time(stage)[0].upper()}{_time(stage)[1:]}: it has no results yet."]
    told = []
    if done:
        told = [("seconds", f"{stage['seconds']:,.1f}"), ("seed", str(stage["seed"])), ("r1jax", stage["version"])]
    provenance = [("input", name, i["from"], i.get("sha256", "")) for name, i in stage["inputs"].items()]
    provenance += [("output", name, "", output["sha256"]) for name, output in stage.get("outputs", {}).items()]
    config, rows = stage.get("config"), list(read_jsonl(run_dir / stage["name"] / METRICS))
    return {
        "name": stage["name"],
        "title": stage["title"],
        "notes": notes,
        "results": [(name, show_result(value)) for name, value in stage.get("results", {}).items()] + told,
        "figures": stage_figures(rows, config if isinstance(config, Mapping) else {}),
        "provenance": provenance,
        "config": flat(config if isinstance(config, Mapping) else {} if config is None else {"value": config}),
    }


# ---------------------------------------------------------------------------------------------------------- scores


def _scores(path: Path) -> dict[str, Any] | None:
    """The table and the figures of results.json; None where there is none, or no model in it."""
    if not path.exists():
        return None
    results = json.loads(path.read_text(encoding="utf-8"))
    models = _in_order(results["models"], MODELS)
    names = _in_order({name: None for scores in results["models"].values() for name in scores}, SCORES)
    if not models or not names:
        return None
    meanings = results.get("meanings", {})
    lines, figures = [], []
    for name in names:
        estimates = {model: results["models"][model].get(name) or {} for model in models}
        lines.append((name.replace("_", " "), [_cells(name, estimate) for estimate in estimates.values()]))
        if drawn := {model: e for model, e in estimates.items() if e.get("value") is not None}:
            figures.append(_figure(name, meanings.get(name, ""), drawn))
    return {"models": [model.replace("_", " ") for model in models], "lines": lines, "figures": figures}


def _in_order(names: Mapping[str, Any], order: Sequence[str]) -> list[str]:
    """`names` as in `order`, in which "cons@" stands for any name that begins so, and then the others."""
    places = {
        name: i
        for i, known in enumerate(order)
        for name in names
        if name == known or (known == "cons@" and name.startswith(known))
    }
    return sorted(names, key=lambda name: places.get(name, len(order)))


def _is_share(name: str) -> bool:
    return not name.startswith("mean_") and name != "TFLOP"


def _cells(name: str, estimate: Mapping[str, Any]) -> tuple[str, str]:
    """A value and its interval for people."""
    value, interval = estimate.get("value"), estimate.get("interval")
    if value is None:
        return "–", ""
    scale, unit = (100, "%") if _is_share(name) else (1, "")
    between = "" if interval is None else "–".join(f"{scale * limit:,.1f}" for limit in interval)
    return f"{scale * value:,.1f}{unit}", between


def _figure(name: str, meaning: str, estimates: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    labels = [model.replace("_", " ") for model in estimates]
    values = [estimate["value"] for estimate in estimates.values()]
    intervals = [estimate.get("interval") for estimate in estimates.values()]
    title = name.replace("_", " ")
    svg = draw_estimates(labels, values, intervals, f"{title} by model", percent=_is_share(name))
    return {"title": title, "note": meaning, "keys": [], "svg": svg}
