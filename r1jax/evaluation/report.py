"""A run as one page: report.html, self-contained, from what the run's folder holds at this moment."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from r1jax.errors import check_field
from r1jax.evaluation.evaluation_report import evaluation_folders, write_evaluation_report
from r1jax.evaluation.figures import Curve, curve, draw
from r1jax.evaluation.pages import write_page
from r1jax.training.metrics import read_jsonl

Row = Mapping[str, Any]

SAMPLES_SHOWN = 4
DIAGNOSTICS = (  # metric, title, what to look for
    ("kl", "KL to the reference", "k3 estimate per token"),
    ("entropy", "Entropy", "nats per sampled token"),
    ("clip_ratio/region_mean", "Clip ratio", "share of tokens whose ratio was clipped"),
    ("frac_reward_zero_std", "Groups without signal", "share of groups whose rewards are all equal"),
    ("completions/clipped_ratio", "Cut-off completions", "share that reached the length limit"),
    ("grad_norm", "Gradient norm", "over all parameters"),
)


def write_report(run_dir: Path) -> Path:
    """Writes `run_dir/report.html` (atomically) and returns its path.

    A run that has not finished gives a shorter page that says what is absent. The folder of an evaluation, or of
    several, gets a page of its own kind. Raises `ConfigError` if there is no such folder.
    """
    run_dir = Path(run_dir)
    check_field(run_dir.is_dir(), "run_dir", str(run_dir), "no such folder; give the folder of a run or an evaluation")
    begun = (run_dir / "metrics.jsonl").exists() or (run_dir / "config.json").exists()
    if not (run_dir / "metrics.jsonl").exists() and (folders := evaluation_folders(run_dir)):
        return write_evaluation_report(run_dir, folders)
    check_field(begun, "run_dir", str(run_dir), "holds neither a run nor an evaluation; give the folder of one")
    if _json(run_dir / "config.json").get("kind") == "sft":
        return write_page(run_dir, "sft.html.j2", _sft_content(run_dir))
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
        "paper_figures": _paper_figures(rl, evaluations),
        "reward_figure": _reward_figure(rl),
        "diagnostics": [_figure([curve(rl, name, name, smooth=True)], *words) for name, *words in DIAGNOSTICS]
        + _reflection_figure(rl),
        "pretraining_figure": _pretraining_figure(pretraining),
        "compile_times": sorted(compile_times.items(), key=lambda item: -item[1]),
        "time": _time_table(rl),
        "samples": _sample_pairs(list(read_jsonl(run_dir / "samples.jsonl"))),
        "config": _flat(config),
    }


def _sft_content(run_dir: Path) -> dict[str, Any]:
    rows = [row for row in read_jsonl(run_dir / "metrics.jsonl") if row.get("phase") == "sft"]
    cards, compile_times = _json(run_dir / "data.json"), _json(run_dir / "compile_times.json")
    losses = [curve(rows, "loss", "learned", smooth=True), curve(rows, "eval_loss", "held out")]
    seconds = sum(row.get("time/update") or 0.0 for row in rows)
    return {
        "title": run_dir.resolve().name,
        "kind": "run",
        "facts": [
            ("supervised fine-tuning", f"to step {max(row['step'] for row in rows):,}" if rows else "no steps yet"),
            ("time in steps", _duration(seconds) if seconds else "not measured"),
            ("compiling", _duration(sum(compile_times.values())) if compile_times else "not measured"),
        ],
        "data": [
            (f"{card['source']} ({use})", {k.replace("_", " "): v for k, v in card.items() if isinstance(v, int)})
            for use, card in zip(("learned", "held out"), cards.values(), strict=False)
        ],
        "figures": [
            _figure(losses, "Loss", "nats per learned token"),
            _figure([curve(rows, "grad_norm", "grad_norm", smooth=True)], "Gradient norm", "over all parameters"),
            _figure([curve(rows, "num_tokens", "tokens", smooth=True)], "Learned tokens", "per step"),
        ],
        "compile_times": sorted(compile_times.items(), key=lambda item: -item[1]),
        "config": _flat(_json(run_dir / "config.json")),
    }


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _flat(config: Mapping, prefix: str = "") -> list[tuple[str, str]]:
    """{"model": {"dim": 8}} -> [("model.dim", "8")]."""
    pairs = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)))
    return pairs


def _facts(
    pretraining: Sequence[Row], rl: Sequence[Row], evaluations: Sequence[Row], compile_times: Mapping[str, float]
) -> list[tuple[str, str]]:
    facts = []
    for name, rows in (("pretraining", pretraining), ("reinforcement learning", rl)):
        facts.append((name, f"to step {max(row['step'] for row in rows):,}" if rows else "no steps yet"))
    facts.append(("evaluations", str(len(evaluations))))
    measured = sum(seconds for _, seconds, *_ in _time_table(rl))
    facts.append(("time in RL steps", _duration(measured) if measured else "not measured"))
    facts.append(("compiling", _duration(sum(compile_times.values())) if compile_times else "not measured"))
    return facts


def _headline(evaluations: Sequence[Row]) -> list[dict[str, str]]:
    """Base against final: the first and the last evaluation; one row a score, empty before the first evaluation."""
    if not evaluations:
        return []
    base, final = evaluations[0], evaluations[-1]
    scores = [("eval/pass@1", "pass@1"), *((name, name.removeprefix("eval/")) for name in _cons_names(evaluations))]
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


def _cons_names(rows: Sequence[Row]) -> list[str]:
    names = {name for row in rows for name in row if re.fullmatch(r"eval/cons@\d+", name)}
    return sorted(names, key=lambda name: int(name.split("@")[1]))


def _score(value: float | None, share: bool) -> str:
    return "–" if value is None else f"{value:.1%}" if share else f"{value:.1f}"


def _change(value: float, share: bool) -> str:
    text = f"{100 * value:+.1f} points" if share else f"{value:+.1f}"
    return text.replace("-", "−")


def _figure(curves: Sequence[Curve | None], title: str, note: str, percent: bool = False) -> dict[str, Any]:
    """A figure for the template; without `svg` where nothing was logged."""
    drawn = [line for line in curves if line is not None]
    last = "{:.1%}" if percent else "{:.4g}"
    keys = [(f"var(--series-{i})", line.label, last.format(line.values[-1])) for i, line in enumerate(drawn, start=1)]
    svg = draw(drawn, alt=f"{title} against steps", percent=percent) if drawn else None
    return {"title": title, "note": note, "keys": keys, "svg": svg}


def _paper_figures(rl: Sequence[Row], evaluations: Sequence[Row]) -> list[dict[str, Any]]:
    names = ["eval/pass@1", *_cons_names(evaluations)]
    accuracy = [curve(evaluations, name, name.removeprefix("eval/")) for name in names]
    lengths = [
        curve(evaluations, "eval/mean_length", "evaluation"),
        curve(rl, "completions/mean_length", "training", smooth=True),
    ]
    return [
        _figure(accuracy, "Accuracy", "on the evaluation problems", percent=True),
        _figure(lengths, "Mean response length", "in tokens"),
    ]


def _reward_figure(rl: Sequence[Row]) -> dict[str, Any]:
    parts = sorted({name for row in rl for name in row if re.fullmatch(r"rewards/.+/mean", name)})
    curves = [curve(rl, "reward", "reward", smooth=True)]
    curves += [curve(rl, name, name.split("/")[1], smooth=True) for name in parts[:5]]
    return _figure(curves, "Reward", "mean over the batch, in all and by reward function")


def _reflection_figure(rl: Sequence[Row]) -> list[dict[str, Any]]:
    """All words of reflection and the most frequent ones; no figure where none has occurred."""
    totals: dict[str, float] = {}
    for row in rl:
        for name, value in row.items():
            if name.startswith("reflection/") and value:
                totals[name] = totals.get(name, 0.0) + value
    names = sorted(totals, key=lambda name: (name != "reflection/all", -totals[name]))[:6]
    curves = [curve(rl, name, name.removeprefix("reflection/"), smooth=True) for name in names]
    return [_figure(curves, "Words of reflection", "occurrences per completion")] if curves else []


def _pretraining_figure(pretraining: Sequence[Row]) -> dict[str, Any]:
    curves = [curve(pretraining, "loss", "next token", smooth=True), curve(pretraining, "mtp_loss", "MTP", smooth=True)]
    return _figure(curves, "Pretraining loss", "nats per token")


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


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


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
