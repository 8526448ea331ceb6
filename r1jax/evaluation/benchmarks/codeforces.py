"""Codeforces: the problems of contests, and the rating that a model would have had in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r1jax.errors import DataError
from r1jax.evaluation.benchmarks.base import Benchmark, Problem, Protocol
from r1jax.evaluation.benchmarks.elo import Contest, rate
from r1jax.evaluation.benchmarks.programs import contest_accuracy, contest_prompt, pairs, seconds
from r1jax.evaluation.benchmarks.rows import Row, read_problems

_SECTIONS = (("Input", "input_format"), ("Output", "output_format"))


def load(source: str, seed: int) -> list[Problem]:
    """Problems of contests, as open-r1/codeforces has them, or with `problem` (or `prompt`) and `tests`.

    Columns: `contest_id`, `index`, `tests` and `time_limit`; and `results`, the folder below. A problem that accepts
    several outputs (it has a `generated_checker`) has no tests here, so that it cannot be scored.

    For ratings, `source` is a folder with the problems in problems.jsonl (or another format of
    `r1jax.data.sources.iterate_rows`), and beside it:

      contests.jsonl  for each contest {"standings": ..., "rating_changes": ...}: what Codeforces' API calls
                      contest.standings and contest.ratingChanges return as `result`
      ratings.json    the ratings of all people, for percentiles: [-53, -52, ...]. May be left out.

    The paper took ten contests of division 2, with test cases by experts (D.1); neither is published.
    """
    del seed
    results = None
    if (folder := Path(source)).is_dir() and (there := sorted(folder.glob("problems.*"))):
        source = str(there[0])
        if sorted(folder.glob("contests.*")):
            results = str(folder)
            read_results(results)  # what is wrong with them shows before anything is sampled

    def build(row: Row) -> Problem:
        contest, index = str(row.get("contest_id", "contestId")), str(row.get("index"))
        tests = row.find("official_tests", "tests")
        if row.find("generated_checker"):
            tests = []
        elif not tests:
            raise row.wrong("tests", 'give "official_tests" or "tests", of at least one input and output')
        return Problem(
            id=f"codeforces/{contest}{index}",
            prompt=contest_prompt(_statement(row)),
            columns={
                "contest_id": contest,
                "index": index,
                "tests": pairs(row, tests),
                "time_limit": seconds(row),
                "results": results,
            },
        )

    return read_problems(source, build)


def _statement(row: Row) -> str:
    whole = row.find("problem", "prompt")
    if whole:
        return whole
    parts = [row.text("title", "name"), row.text("description", "statement")]
    parts += [f"{head}\n{text}" for head, name in _SECTIONS if (text := row.find(name))]
    for number, example in enumerate(pairs(row, row.find("examples") or []), start=1):
        parts.append(f"Example {number}\nInput:\n{example['input']}\nOutput:\n{example['output']}")
    return "\n\n".join(part.strip() for part in [*parts, row.find("note") or ""] if part.strip())


def _summarise(
    problems: Sequence[Problem], completions: Sequence[Sequence[str]], scores: Sequence[Sequence[float | None]]
) -> dict[str, Any]:
    """Elo ratings and percentiles (`elo.rate`), where the source has the contests' results."""
    folder = problems[0].columns.get("results")
    if folder is None:
        return {}
    contests, people = read_results(folder)
    solved: dict[str, dict[str, list[bool]]] = {}
    for problem, row in zip(problems, scores, strict=True):
        right = [score is not None and score >= 1 for score in row]
        solved.setdefault(problem.columns["contest_id"], {})[problem.columns["index"]] = right
    return {"elo": rate(contests, solved, people)}


def read_results(folder: str) -> tuple[dict[str, Contest], list[float] | None]:
    """(contests by id, people's ratings in ascending order or None) from a folder as in `load`. Raises `DataError`."""
    from r1jax.data.sources import iterate_rows

    contests = {}
    path = sorted(Path(folder).glob("contests.*"))[0]
    for number, row in enumerate(iterate_rows(path), start=1):
        where = f"{path}, row {number}"
        if not {"standings", "rating_changes"} <= row.keys():
            raise DataError(f'{where}: give "standings" and "rating_changes" (it has {", ".join(row)})')
        contest = Contest.from_api(row["standings"], row["rating_changes"], where)
        contests[contest.id] = contest
    path = Path(folder) / "ratings.json"
    return contests, _read_ratings(path) if path.exists() else None


def _read_ratings(path: Path) -> list[float]:
    try:
        people = sorted(float(rating) for rating in json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not a list of ratings ({error}); give a number for each person") from None
    if not people:
        raise DataError(f"{path}: holds no rating; give a number for each person, or leave the file out")
    return people


CODEFORCES = Benchmark(
    name="codeforces",
    title="Codeforces",
    source="hf:open-r1/codeforces:verifiable:test",
    load=load,
    score=contest_accuracy,
    protocol=Protocol(k=16),
    summarise=_summarise,
)
