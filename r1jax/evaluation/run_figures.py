"""What the pages of runs draw of metrics.jsonl, and how they say times and settings."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from r1jax.evaluation.figures import Curve, curve, draw

Row = Mapping[str, Any]


def figure(curves: Sequence[Curve | None], title: str, note: str, percent: bool = False) -> dict[str, Any]:
    """A figure for the template; without `svg` where nothing was logged."""
    drawn = [line for line in curves if line is not None]
    last = "{:.1%}" if percent else "{:.4g}"
    keys = [(f"var(--series-{i})", line.label, last.format(line.values[-1])) for i, line in enumerate(drawn, start=1)]
    svg = draw(drawn, alt=f"{title} against steps", percent=percent) if drawn else None
    return {"title": title, "note": note, "keys": keys, "svg": svg}


def paper_figures(rl: Sequence[Row], evaluations: Sequence[Row]) -> list[dict[str, Any]]:
    names = ["eval/pass@1", *cons_names(evaluations)]
    accuracy = [curve(evaluations, name, name.removeprefix("eval/")) for name in names]
    lengths = [
        curve(evaluations, "eval/mean_length", "evaluation"),
        curve(rl, "completions/mean_length", "training", smooth=True),
    ]
    return [
        figure(accuracy, "Accuracy", "on the evaluation problems", percent=True),
        figure(lengths, "Mean response length", "in tokens"),
    ]


def cons_names(rows: Sequence[Row]) -> list[str]:
    names = {name for row in rows for name in row if re.fullmatch(r"eval/cons@\d+", name)}
    return sorted(names, key=lambda name: int(name.split("@")[1]))


def reward_figure(rl: Sequence[Row]) -> dict[str, Any]:
    parts = sorted({name for row in rl for name in row if re.fullmatch(r"rewards/.+/mean", name)})
    curves = [curve(rl, "reward", "reward", smooth=True)]
    curves += [curve(rl, name, name.split("/")[1], smooth=True) for name in parts[:5]]
    return figure(curves, "Reward", "mean over the batch, in all and by reward function")


def hacking_figures(rl: Sequence[Row], config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Reward models beside the rules that are only watched (weight 0), of the same run; none where one is missing."""
    reward = config.get("reward") or {}
    models = list(config.get("reward_models") or ())
    weights = zip(reward.get("functions") or (), reward.get("weights") or (), strict=False)
    rules = [name for name, weight in weights if weight == 0 and name not in models]
    lines = {"rule": [], "preference": []}
    for names, kind in ((rules, "rule"), (models, "preference")):
        found = (curve(rl, f"rewards/{name}/mean", f"{name} ({kind})", smooth=True) for name in names)
        lines[kind] = [line for line in found if line is not None]
    if not all(lines.values()):
        return []
    note = "each over the prompts it is meant for: where preference rises and its rule does not, it is being hacked"
    return [figure([*lines["rule"], *lines["preference"]], "Rule against preference", note)]


def pretraining_figure(pretraining: Sequence[Row]) -> dict[str, Any]:
    curves = [curve(pretraining, "loss", "next token", smooth=True), curve(pretraining, "mtp_loss", "MTP", smooth=True)]
    return figure(curves, "Pretraining loss", "nats per token")


def stage_figures(rows: Sequence[Row], config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures that metrics.jsonl of any kind of training has something for: loss, reward, accuracy, length."""
    drawn = []
    phases = list(dict.fromkeys(row.get("phase") for row in rows))
    for phase in phases:
        mine = [row for row in rows if row.get("phase") == phase]
        supervised = [row for row in mine if "reward" not in row]  # the loss of GRPO says nothing
        evaluations = sorted((row for row in mine if row.get("eval/pass@1") is not None), key=lambda row: row["step"])
        names = (("loss", "learned"), ("mtp_loss", "MTP"), ("eval_loss", "held out"))
        losses = [curve(supervised, name, label, smooth=name != "eval_loss") for name, label in names]
        pairs = [curve(supervised, "accuracy", "learned", smooth=True), curve(mine, "eval_accuracy", "held out")]
        figures = [
            figure(losses, "Loss", "nats per token" if any(losses[1:2]) else ""),
            figure(pairs, "Accuracy of preferences", "share of pairs or labels that it gets right", percent=True),
            reward_figure(mine),
            *hacking_figures(mine, config),
            *paper_figures(mine, evaluations),
        ]
        for one in figures:
            if one["svg"]:
                drawn.append(one | {"title": f"{one['title']}, {phase}" if len(phases) > 1 else one["title"]})
    return drawn


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def flat(config: Mapping, prefix: str = "") -> list[tuple[str, str]]:
    """{"model": {"dim": 8}} -> [("model.dim", "8")]."""
    pairs = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            pairs += flat(value, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)))
    return pairs
