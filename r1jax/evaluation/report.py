"""A run as one page: report.html, self-contained, from what the run's folder holds at this moment."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from r1jax.errors import check_field
from r1jax.evaluation.evaluation_report import evaluation_folders, write_evaluation_report
from r1jax.evaluation.figures import curve
from r1jax.evaluation.pages import write_page
from r1jax.evaluation.pipeline_report import is_pipeline, write_pipeline_report
from r1jax.evaluation.run_figures import (
    Row,
    cons_names,
    duration,
    figure,
    flat,
    hacking_figures,
    paper_figures,
    pretraining_figure,
    reward_figure,
)
from r1jax.training.metrics import read_jsonl

SAMPLES_SHOWN = 4
DIAGNOSTICS = (  # metric, title, what to look for
    ("kl", "KL to the reference", "k3 estimate per token"),
    ("entropy", "Entropy", "nats per sampled token"),
    ("clip_ratio/region_mean", "Clip ratio", "share of tokens whose ratio was clipped"),
    ("frac_reward_zero_std", "Groups without signal", "share of groups whose rewards are all equal"),
    ("completions/clipped_ratio", "Cut-off completions", "share that reached the length limit"),
    ("grad_norm", "Gradient norm", "over all parameters"),
)

_REWARD_MODEL = (
    "reward_model",
    "reward model",
    (
        ("loss", "Loss", "nats per pair or label"),
        ("accuracy", "Accuracy", "share of examples on the right side"),
        ("margin", "Margin", "mean distance on the right side"),
    ),
)
_FINE_TUNING = {  # by kind of run: phase, title, what is measured of learned and of held-out examples
    "sft": ("sft", "supervised fine-tuning", (("loss", "Loss", "nats per learned token"),)),
    "pairs": _REWARD_MODEL,
    "pointwise": _REWARD_MODEL,
}


def write_report(run_dir: Path) -> Path:
    """Writes `run_dir/report.html` (atomically) and returns its path.

    A run that has not finished gives a shorter page that says what is absent. The folder of an evaluation, or of
    several, gets a page of its own kind, and so does that of a recipe's stages. Raises `ConfigError` if there is no
    such folder.
    """
    run_dir = Path(run_dir)
    check_field(run_dir.is_dir(), "run_dir", str(run_dir), "no such folder; give the folder of a run or an evaluation")
    if is_pipeline(run_dir):
        return write_pipeline_report(run_dir)
    begun = (run_dir / "metrics.jsonl").exists() or (run_dir / "config.json").exists()
    if not (run_dir / "metrics.jsonl").exists() and (folders := evaluation_folders(run_dir)):
        return write_evaluation_report(run_dir, folders)
    check_field(begun, "run_dir", str(run_dir), "holds neither a run nor an evaluation; give the folder of one")
    if (kind := _json(run_dir / "config.json").get("kind")) in _FINE_TUNING:
        return write_page(run_dir, "fine_tuning.html.j2", _fine_tuning_content(run_dir, *_FINE_TUNING[kind]))
    return write_page(run_dir, "report.html.j2", _content(run_dir))


def _content(run_dir: Path) -> dict[str, Any]:
    rows = list(read_jsonl(run_dir / "metrics.jsonl"))
    pretraining = [row for row in rows if row.get("phase") == "pretrain"]
    rl = [row for row in rows if row.get("phase") == "rl"]
    evaluations = sorted((row for row in rl if row.get("eval/pass@1") is not None), key=lambda row: row["step"])
    config, compile_times = _json(run_dir / "config.json"), _json(run_dir / "compile_times.json")
    return {
        "title": run_dir.resolve().name,
        "kind": "run",
        "facts": _facts(pretraining, rl, evaluations, compile_times),
        "headline": _headline(evaluations),
        "evaluated": [row["step"] for row in evaluations],
        "paper_figures": paper_figures(rl, evaluations),
        "reward_figure": reward_figure(rl),
        "diagnostics": [figure([curve(rl, name, name, smooth=True)], *words) for name, *words in DIAGNOSTICS]
        + _reflection_figure(rl)
        + hacking_figures(rl, config),
        "pretraining_figure": pretraining_figure(pretraining),
        "compile_times": sorted(compile_times.items(), key=lambda item: -item[1]),
        "time": _time_table(rl),
        "samples": _sample_pairs(list(read_jsonl(run_dir / "samples.jsonl"))),
        "config": flat(config),
    }


def _fine_tuning_content(run_dir: Path, phase: str, title: str, measured: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    rows = [row for row in read_jsonl(run_dir / "metrics.jsonl") if row.get("phase") == phase]
    cards, compile_times = _json(run_dir / "data.json"), _json(run_dir / "compile_times.json")
    seconds = sum(row.get("time/update") or 0.0 for row in rows)
    return {
        "title": run_dir.resolve().name,
        "kind": "run",
        "facts": [
            (title, f"to step {max(row['step'] for row in rows):,}" if rows else "no steps yet"),
            ("time in steps", duration(seconds) if seconds else "not measured"),
            ("compiling", duration(sum(compile_times.values())) if compile_times else "not measured"),
        ],
        "data": [
            (f"{card['source']} ({use})", {k.replace("_", " "): v for k, v in card.items() if isinstance(v, int)})
            for use, card in zip(("learned", "held out"), cards.values(), strict=False)
        ],
        "heading": f"{title[0].upper()}{title[1:]}",
        "figures": [
            *(
                figure([curve(rows, name, "learned", smooth=True), curve(rows, f"eval_{name}", "held out")], *words)
                for name, *words in measured
            ),
            figure([curve(rows, "grad_norm", "grad_norm", smooth=True)], "Gradient norm", "over all parameters"),
            figure([curve(rows, "num_tokens", "tokens", smooth=True)], "Learned tokens", "per step"),
        ],
        "compile_times": sorted(compile_times.items(), key=lambda item: -item[1]),
        "config": flat(_json(run_dir / "config.json")),
    }


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _facts(
    pretraining: Sequence[Row], rl: Sequence[Row], evaluations: Sequence[Row], compile_times: Mapping[str, float]
) -> list[tuple[str, str]]:
    facts = []
    for name, rows in (("pretraining", pretraining), ("reinforcement learning", rl)):
        facts.append((name, f"to step {max(row['step'] for row in rows):,}" if rows else "no steps yet"))
    facts.append(("evaluations", str(len(evaluations))))
    measured = sum(seconds for _, seconds, *_ in _time_table(rl))
    facts.append(("time in RL steps", duration(measured) if measured else "not measured"))
    facts.append(("compiling", duration(sum(compile_times.values())) if compile_times else "not measured"))
    return facts


def _headline(evaluations: Sequence[Row]) -> list[dict[str, str]]:
    """Base against final: the first and the last evaluation; one row a score, empty before the first evaluation."""
    if not evaluations:
        return []
    base, final = evaluations[0], evaluations[-1]
    scores = [("eval/pass@1", "pass@1"), *((name, name.removeprefix("eval/")) for name in cons_names(evaluations))]
    scores += [
        ("eval/mean_length", "mean length, tokens"),
        ("eval/format", "right format"),
        ("eval/truncated", "cut off"),
    ]
    table = []
    for name, label in scores:
        if base.get(name) is None and final.get(name) is None:
            continue
        share = name != "eval/mean_length"
        both = None not in (base.get(name), final.get(name))
        table.append(
            {
                "label": label,
                "base": _score(base.get(name), share),
                "final": _score(final.get(name), share),
                "change": _change(final[name] - base[name], share) if both else "–",
            }
        )
    return table


def _score(value: float | None, share: bool) -> str:
    return "–" if value is None else f"{value:.1%}" if share else f"{value:.1f}"


def _change(value: float, share: bool) -> str:
    text = f"{100 * value:+.1f} points" if share else f"{value:+.1f}"
    return text.replace("-", "−")


def _reflection_figure(rl: Sequence[Row]) -> list[dict[str, Any]]:
    """All words of reflection and the most frequent ones; no figure where none has occurred."""
    totals: dict[str, float] = {}
    for row in rl:
        for name, value in row.items():
            if name.startswith("reflection/") and value:
                totals[name] = totals.get(name, 0.0) + value
    names = sorted(totals, key=lambda name: (name != "reflection/all", -totals[name]))[:6]
    curves = [curve(rl, name, name.removeprefix("reflection/"), smooth=True) for name in names]
    return [figure(curves, "Words of reflection", "occurrences per completion")] if curves else []


def _time_table(rl: Sequence[Row]) -> list[tuple[str, float, float, float]]:
    """(part, seconds in all, share, seconds a step), the longest first, from the `time/*` metrics."""
    totals: dict[str, list[float]] = {}
    for row in rl:
        for name, value in row.items():
            if name.startswith("time/") and value is not None:
                totals.setdefault(name.removeprefix("time/"), []).append(value)
    whole = sum(map(sum, totals.values())) or 1.0
    table = [(name, sum(times), sum(times) / whole, sum(times) / len(times)) for name, times in totals.items()]
    return sorted(table, key=lambda line: -line[1])


def _sample_pairs(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Completions of the first and the last sampled step side by side, of the same prompts where there are any."""
    rows = [row for row in rows if row.get("phase") == "rl"]
    if not rows:
        return None
    first, last = min(row["step"] for row in rows), max(row["step"] for row in rows)
    early = [row for row in rows if row["step"] == first]
    late = [row for row in rows if row["step"] == last]
    by_prompt = {row.get("prompt"): row for row in reversed(late)}
    shared = {row.get("prompt"): row for row in reversed(early) if row.get("prompt") in by_prompt}
    if shared:
        pairs = [(row, by_prompt[prompt]) for prompt, row in reversed(shared.items())]
    else:
        pairs = list(zip(early, late, strict=False))
    return {"first": first, "last": last, "pairs": pairs[:SAMPLES_SHOWN]}
