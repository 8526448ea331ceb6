"""`r1jax score`: completions made elsewhere, judged, measured and reported."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

import r1jax
from r1jax.commands.results import claim_folder, read_rows
from r1jax.errors import ConfigError, DataError, check_field
from r1jax.files import PartialRows, file_hash, write_json, write_rows

if TYPE_CHECKING:
    from r1jax.commands.eval import EvalConfig
    from r1jax.evaluation.benchmarks.base import Benchmark
    from r1jax.evaluation.grading import Judge
    from r1jax.evaluation.scoring import Grades, Samples

_OURS = {
    "id",
    "problem",
    "question",
    "prompt",
    "messages",
    "prompt_tokens",
    "completions",
    "tokens",
    "finish_reasons",
    "logps",
}
_OURS |= {"scores", "unasked"}  # what a row says of itself; all its other fields are the judge's columns


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """Judges completions made elsewhere, or by r1jax generate or eval.

    A line's "finish_reasons", "tokens" and "scores", one for each completion, are reported on; by "scores" best-of-N
    chooses.
    """

    completions: Path
    """A jsonl file: each line has a "problem" (or "prompt"), "completions", and what the judge needs, as "answer"."""
    out: Path
    """The folder for results.json, problems.jsonl and report.html. Interrupted, the same command goes on."""
    reward: str | None = None
    """The judge: a reward function's name, or package.module:function of your own; unless given, math_accuracy."""
    benchmark: str | None = None
    """Use this benchmark's judge instead."""
    workers: int = dataclasses.field(default_factory=lambda: os.cpu_count() or 1)
    """Processes that judge."""
    timeout: float = 60.0
    """Seconds after which the judging of a completion is given up: it counts as wrong, and is reported."""

    def __post_init__(self):
        one = self.reward is None or self.benchmark is None
        check_field(
            one, "reward", self.reward, f"benchmark={self.benchmark!r} has a judge of its own; give one of the two"
        )
        check_field(self.workers >= 1, "workers", self.workers, "must be at least 1")
        check_field(self.timeout > 0, "timeout", self.timeout, "must be positive")


def score(config: ScoreConfig) -> None:
    """Runs the command."""
    from r1jax.evaluation.grading import Judge

    console = Console()
    benchmark = None if config.benchmark is None else find_benchmark(config.benchmark)
    judge = Judge.of_reward(config.reward or "math_accuracy") if benchmark is None else Judge.of_benchmark(benchmark)
    if judge is None:
        raise ConfigError(f"benchmark={config.benchmark!r}: is judged elsewhere; r1jax eval writes what that takes")
    samples = []
    for where, row in read_rows(config.completions, "--completions"):
        samples.append(samples_of(row, where))
        judge.columns(samples[-1].problem.columns, where)
    settings = {
        "command": "score",
        "sha256": file_hash(config.completions),
        "judge": judge.name,
        "timeout": config.timeout,
    }
    claim_folder(config.out, settings)
    name = config.completions.name
    about = {
        "name": config.completions.stem,
        "title": name if benchmark is None else f"{name}: {benchmark.title}",
        "settings": {"completions": str(config.completions)} | settings,
    }
    results = judge_into(config.out, samples, judge, benchmark, about, config, console)
    print_results(console, [results])
    console.print(f"report: {config.out / 'report.html'}", soft_wrap=True, highlight=False)


def find_benchmark(name: str) -> Benchmark:
    """The benchmark called `name`. Raises `ConfigError` where there is none."""
    from r1jax.evaluation.benchmarks import BENCHMARKS

    check_field(name in BENCHMARKS, "benchmark", name, f"use one of {', '.join(sorted(BENCHMARKS))}")
    return BENCHMARKS[name]


def samples_of(row: Any, where: str) -> Samples:
    """One line of a file of completions. Raises `DataError` naming `where` and the field that cannot be used."""
    from r1jax.evaluation.benchmarks.base import Problem
    from r1jax.evaluation.scoring import Samples

    def check(ok: bool, field: str, fix: str) -> None:
        if not ok:
            raise DataError(f"{where}: {field} is {json.dumps(row.get(field))[:60]}: {fix}")

    if not isinstance(row, dict):
        raise DataError(f'{where}: must be an object with a "problem" and "completions"')
    named = [name for name in ("problem", "question", "prompt", "messages", "prompt_tokens") if name in row]
    if not named:
        raise DataError(f'{where}: has no "problem" (nor "prompt"): add its text')
    text = "" if named[0] == "prompt_tokens" else row[named[0]]  # `r1jax generate` was given ids alone
    if named[0] == "messages":
        check(_ends_in_text(text), "messages", "must be a list whose last has a content of text")
        text = text[-1]["content"]
    check(isinstance(text, str), named[0], "must be text")
    completions = row.get("completions")
    whole = isinstance(completions, list) and completions and all(isinstance(c, str) for c in completions)
    check(bool(whole), "completions", "must be a list of at least one text")

    def each(field: str, valid: Any, fix: str) -> list | None:
        values = row.get(field)
        if values is None:
            return None
        whole = isinstance(values, list) and len(values) == len(completions) and all(map(valid, values))
        check(whole, field, f"must be a list of {len(completions)} (one for each completion), {fix}")
        return values

    tokens = each("tokens", lambda n: n is None or type(n) is int or isinstance(n, list), "each a number or a list")
    return Samples(
        Problem(str(row.get("id", where.rpartition(" ")[2])), text, {k: v for k, v in row.items() if k not in _OURS}),
        completions,
        tokens and [len(n) if isinstance(n, list) else n for n in tokens],
        each("finish_reasons", lambda r: r is None or isinstance(r, str), "each a text"),
        each("scores", _is_number, "each a finite number"),
        row.get("unasked"),
    )


def _ends_in_text(messages: Any) -> bool:
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, dict) and isinstance(last.get("content"), str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def judge_into(
    folder: Path,
    samples: Sequence[Samples],
    judge: Judge | None,
    benchmark: Benchmark | None,
    about: Mapping[str, Any],
    config: ScoreConfig | EvalConfig,
    console: Console,
) -> dict[str, Any]:
    """Writes problems.jsonl, results.json and report.html into `folder`, unless they are there; returns the results.

    Grades are kept as they come, so that an interrupted call goes on where it was. `about` is the results' name, title
    and settings.
    """
    from r1jax.evaluation import scoring
    from r1jax.evaluation.evaluation_report import PROBLEMS, RESULTS
    from r1jax.evaluation.report import write_report

    if (folder / RESULTS).exists():
        console.print(f"{folder} is finished already: nothing is judged anew", soft_wrap=True, highlight=False)
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    else:
        grades = None
        metrics, notes = {}, [f"not scored: {about['title']} is judged elsewhere"]
        if judge is not None:
            grades = _grade(folder, samples, judge, about["settings"]["sha256"], config, console)
            metrics, notes = scoring.measure(samples, grades)
            own = scoring.further(benchmark and benchmark.summarise, samples, grades)
            metrics |= {name: metric for name, metric in own.items() if name not in metrics}
        results = {
            **about,
            "judge": judge and judge.name,
            "k": max(len(s.completions) for s in samples),
            "metrics": metrics | scoring.measure_texts(samples),
            "counts": scoring.count(samples, grades),
            "reflection": scoring.reflection(samples),
            "notes": notes,
            "version": r1jax.__version__,
        }
        rows = (scoring.problem_row(s, grades and grades[i]) for i, s in enumerate(samples))
        write_rows(folder / PROBLEMS, rows)
        write_json(folder / RESULTS, results)  # last: by it the evaluation is known as finished
    (folder / _GRADES).unlink(missing_ok=True)
    write_report(folder)
    return results


_GRADES = "grades.jsonl.partial"


def _grade(
    folder: Path,
    samples: Sequence[Samples],
    judge: Judge,
    sha256: str,
    config: ScoreConfig | EvalConfig,
    console: Console,
) -> list[Grades]:
    from r1jax.evaluation.grading import grade
    from r1jax.evaluation.scoring import Grades
    from r1jax.progress import stage

    settings = {"completions": sha256, "judge": judge.name, "timeout": config.timeout}
    with PartialRows(folder / _GRADES, settings) as rows:
        with stage(f"judging with {judge.name}", len(samples), len(rows.done), console=console) as progress:
            for i, grades in grade(judge, samples, config.workers, config.timeout, rows.done.keys()):
                rows.add(i, dataclasses.asdict(grades))
                lost = sum(reason is not None for reason in grades.lost)
                progress.advance(**({"lost": lost} if lost else {}))
        return [Grades(**rows.done[i]) for i in range(len(samples))]


def print_results(console: Console, results: Sequence[Mapping[str, Any]]) -> None:
    """The results as a table, and what they leave out."""
    from r1jax.evaluation.evaluation_report import overview

    names, lines = overview(results)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    for name in names:
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    console.print(table)
    if any(result["metrics"].get("pass@1") for result in results):
        console.print("below each rate: its 95% bootstrap interval over problems", style="dim", highlight=False)
    for result in results:
        told = [f"{name}: {n:,}" for name, n in result["counts"].items() if n]
        for note in [*told[2:], *result["notes"]]:  # the table has problems and k
            console.print(f"{result['name']}: {note}", soft_wrap=True, markup=False, highlight=False)
