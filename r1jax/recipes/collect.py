"""Responses collected from a model and judged: drawn once, judged once, however often the process is killed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from r1jax.data.templates import THINK_OPEN
from r1jax.errors import DataError, check_field
from r1jax.evaluation.grading import Judge
from r1jax.evaluation.scoring import is_right
from r1jax.files import PartialRows
from r1jax.progress import stage
from r1jax.recipes.curation import REASONS, Curation, curate
from r1jax.rewards import RewardFunction, RewardPool, get_reward
from r1jax.sampling.completions import Sample

Row = Mapping[str, Any]
Rules = RewardFunction | str | Mapping[str, RewardFunction | str]
"""A reward function, itself or by name, for all rows; or one for each kind, by the rows' "kind"."""
Verify = Callable[[list[str], list[str], list[Any]], list[bool | None]]
"""A generative judge: (questions, completions, reference answers) -> whether each is correct, None: it cannot tell."""

OURS = ("id", "way", "prompt", "completion", "finish_reason", "tokens")
"""The fields that a candidate has beside its problem's."""
_TASK = 16  # rows that a worker is given at a time
_ASKED = 64  # rows that a generative judge is asked about at a time
_DRAWN = ("text", "finish_reason", "tokens")  # of each completion


def candidates(
    problems: Sequence[Row],
    render: Callable[[Row], str],
    sample: Sample,
    n: int,
    path: Path,
    *,
    way: str,
    settings: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """`n` responses to each problem, as rows, problem by problem.

    A row is its problem's with "way", "prompt" (what the model saw), "completion" (from `<think>` on, where the prompt
    opened it), "finish_reason", "tokens" and "id", which is made of way, prompt and number alone.

    Completions are appended to the file `path` as they come; called again, only what is missing is drawn, and the rows
    are the same. `settings` is what else decides the completions (the model's hash, the temperature): plain JSON.

    Raises `ConfigError` where the file was begun with other problems or settings, and `DataError` where the sampler
    leaves a prompt out or gives another number of completions.
    """
    check_field(n >= 1, "n", n, "must be at least 1")
    prompts = [render(problem) for problem in problems]
    settings = {**(settings or {}), "way": way, "n": n, "prompts": _digest(*prompts)}
    with PartialRows(path, settings) as drawn, _progress(f"drawing ({way})", len(prompts), drawn, console) as progress:
        for i, completions in sample(prompts, n, frozenset(drawn.done)):
            if len(completions) != n:
                raise DataError(f"prompt {i}: the sampler gave {len(completions)} completions; it must give n={n}")
            drawn.add(i, {name: [getattr(c, name) for c in completions] for name in _DRAWN})
            progress(1)
        missing = [i for i in range(len(prompts)) if i not in drawn.done]
        if missing:
            raise DataError(f"prompt {missing[0]}: the sampler gave no completions; it must give n={n} for each")
        rows = [drawn.done[i] for i in range(len(prompts))]
    found = []
    numbers: dict[str, Iterator[int]] = {}  # the same prompt may come more than once
    for problem, prompt, row in zip(problems, prompts, rows, strict=True):
        count = numbers.setdefault(prompt, itertools.count())
        for text, reason, tokens in zip(*(row[name] for name in _DRAWN), strict=True):
            identity = candidate_id(way, prompt, next(count))
            values = (identity, way, prompt, from_think(prompt, text), reason, tokens)
            found.append({**problem, **dict(zip(OURS, values, strict=True))})
    return found


def candidate_id(way: str, prompt: str, number: int) -> str:
    """16 hex digits that name response `number` to a prompt, in every run."""
    return _digest(way, prompt, number)[:16]


def from_think(prompt: str, completion: str) -> str:
    """A completion from its `<think>` on, which may be the prompt's last word."""
    return f"{THINK_OPEN}{completion}" if prompt.rstrip().endswith(THINK_OPEN) else completion


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What was found of one response."""

    correct: bool | None
    """None: nobody can tell."""
    by: str | None = None
    """Who told: "rule", "judge" or nobody."""
    lost: str | None = None
    """Why a rule did not end: "timeout" or "crash"."""

    @property
    def fault(self) -> str | None:
        """Why the response is not kept; None where it is correct."""
        return None if self.correct else "lost" if self.lost else "unjudged" if self.correct is None else "wrong"


FAULTS = ("wrong", "unjudged", "lost")


def judge(
    rows: Sequence[Row],
    rules: Rules,
    path: Path,
    *,
    verify: Verify | None = None,
    workers: int = 1,
    timeout: float = 20.0,
    console: Console | None = None,
) -> list[Verdict]:
    """Whether each row's "completion" is correct: by rule, or where no rule can tell by a generative judge.

    A rule is a reward function; it gets the question as its prompt, and of the row's other fields those that it takes.
    A score of 1 or more is correct. It runs in `workers` processes with `timeout` seconds for a row. Where it gives
    None, or none of `rules` is for the row's kind, `verify` is asked with the row's "answer", if there is one of each.
    Rows that a rule hangs or dies on are lost: nobody is asked. Verdicts are appended to the file `path` as they come.

    Raises `ConfigError` where the file was begun with other rows or rules, `DataError` for a row that lacks what a rule
    needs, `RewardError` for a rule that raises or gives what is no score.
    """
    judges = {kind: _judge(rule) for kind, rule in (rules if isinstance(rules, Mapping) else {None: rules}).items()}
    by_kind = isinstance(rules, Mapping)
    settings = {
        "rules": {str(kind): judge.name for kind, judge in judges.items()},
        "verify": verify is not None,
        "rows": _digest(*rows),
    }
    groups: dict[str | None, list[int]] = {kind: [] for kind in judges}
    open_rows = []
    for i, row in enumerate(rows):
        kind = row.get("kind") if by_kind else None
        groups[kind].append(i) if kind in judges else open_rows.append(i)
    with PartialRows(path, settings) as kept, _progress("judging", len(rows), kept, console) as progress:
        for kind, group in groups.items():
            undone = [i for i in group if i not in kept.done]
            for i, score, lost in _score(judges[kind], rows, undone, workers, timeout):
                if score is not None or lost is not None:
                    by = None if score is None else "rule"
                    kept.add(i, {"correct": None if score is None else is_right(score), "by": by, "lost": lost})
                    progress(1)
            open_rows += [i for i in group if _is_open(kept.done.get(i))]
        for i, correct in _verified(rows, sorted(open_rows), frozenset(kept.done), verify):
            if i not in kept.done:
                kept.add(i, {"correct": correct, "by": None if correct is None else "judge", "lost": None})
                progress(1)
        return [Verdict(**kept.done[i]) for i in range(len(rows))]


def sift(rows: Sequence[Row], verdicts: Sequence[Verdict], curation: Curation) -> list[str | None]:
    """For each row why it is not kept, a fault of its verdict or a filter of `curate`; None where it is."""
    reasons = [verdict.fault for verdict in verdicts]
    correct = [i for i, reason in enumerate(reasons) if reason is None]
    for i, reason in zip(correct, curate([rows[i] for i in correct], curation).reasons, strict=True):
        reasons[i] = reason
    return reasons


def counted(rows: Sequence[Row], reasons: Sequence[str | None], by: str) -> dict[str, Any]:
    """What became of rows, for a card: in all, and for each value of their field `by`."""
    values = sorted({str(row.get(by)) for row in rows})
    if not values:
        return {}
    groups = {value: [i for i, row in enumerate(rows) if str(row.get(by)) == value] for value in values}
    return {
        **_counts([row["question"] for row in rows], reasons),
        f"by {by}": {
            value: _counts([rows[i]["question"] for i in group], [reasons[i] for i in group])
            for value, group in groups.items()
        },
    }


def removed(reasons: Sequence[str | None]) -> dict[str, int]:
    """Reason -> how many rows it removed, in the order in which they are asked about."""
    return {name: reasons.count(name) for name in (*FAULTS, *REASONS)}


def _counts(questions: Sequence[str], reasons: Sequence[str | None]) -> dict[str, int]:
    solved = {question for question, reason in zip(questions, reasons, strict=True) if reason not in FAULTS}
    return {
        "prompts": len(set(questions)),
        "prompts without a correct response": len(set(questions)) - len(solved),
        "responses": len(reasons),
        "correct responses": sum(reason not in FAULTS for reason in reasons),
        "kept responses": reasons.count(None),
    }


def as_example(row: Row, source: str) -> dict[str, Any]:
    """A row of question and completion as a conversation to learn from."""
    turns = (("user", row["question"]), ("assistant", row["completion"]))
    example = {"id": row["id"], "messages": [{"role": role, "content": content} for role, content in turns]}
    example |= {name: row[name] for name in ("domain", "language", "kind") if row.get(name) is not None}
    return {"domain": "reasoning", **example, "source": source}


def languages_of(rows: Iterable[Row]) -> list[str]:
    return sorted({row["language"] for row in rows if row.get("language")})


def _judge(rule: RewardFunction | str) -> Judge:
    if isinstance(rule, str):
        return Judge(rule, get_reward(rule))
    if isinstance(rule, functools.partial):
        return Judge(f"{_judge(rule.func).name}{dict(sorted(rule.keywords.items()))}", rule)
    return Judge(getattr(rule, "__name__", type(rule).__name__), rule)


def _is_open(kept: Row | None) -> bool:
    """Whether no rule could tell of a row, in this process or an earlier one."""
    return kept is None or (kept["by"] != "rule" and kept["lost"] is None)


def _score(
    judge: Judge, rows: Sequence[Row], chosen: Sequence[int], workers: int, timeout: float
) -> Iterator[tuple[int, float | None, str | None]]:
    """(row, score, why it is lost) of each chosen row, in order."""
    if not chosen:
        return
    columns = {}
    for i in chosen:
        given = {name: value for name, value in rows[i].items() if name not in (*OURS, "prompts", "completions")}
        columns[i] = judge.columns(given, f"row {rows[i].get('id', i)}")
    with RewardPool({judge.name: judge}, num_workers=workers, timeout=timeout, rows_per_task=_TASK) as pool:

        def ask(some: Sequence[int]) -> tuple[np.ndarray, Any]:
            names = dict.fromkeys(name for i in some for name in columns[i])
            batch = pool.submit(
                [rows[i]["question"] for i in some],
                [rows[i]["completion"] for i in some],
                {name: [columns[i].get(name) for i in some] for name in names},
            ).result()
            return batch.rewards[:, 0].astype(float).round(6), batch

        for start in range(0, len(chosen), _TASK * workers):
            some = chosen[start : start + _TASK * workers]
            scores, told = ask(some)
            again = told.timeouts or told.crashes  # one row's hang costs those beside it: each is asked for itself
            for i, score in zip(some, scores, strict=True):
                lost = None
                if np.isnan(score) and again:
                    (score,), told = ask([i])
                    lost = "timeout" if told.timeouts else "crash" if told.crashes else None
                yield i, None if np.isnan(score) else float(score), lost


def _verified(
    rows: Sequence[Row], chosen: Sequence[int], done: Set[int], verify: Verify | None
) -> Iterator[tuple[int, bool | None]]:
    """(row, what the generative judge says) of each chosen row; None where there is no judge, or no reference.

    What it is asked at a time does not depend on `done`, the rows of which nothing is needed: its answers might.
    """
    for start in range(0, len(chosen), _ASKED):
        some = chosen[start : start + _ASKED]
        if done.issuperset(some):
            continue
        asked = [i for i in some if verify is not None and rows[i].get("answer") is not None]
        told = dict.fromkeys(some)
        if asked:
            fields = ([rows[i][name] for i in asked] for name in ("question", "completion", "answer"))
            told |= zip(asked, verify(*fields), strict=True)
        yield from told.items()


@contextlib.contextmanager
def _progress(title: str, total: int, rows: PartialRows, console: Console | None) -> Iterator[Callable[[int], None]]:
    if console is None:
        yield lambda count: None
        return
    with stage(title, total, len(rows.done), console=console) as bar:
        yield bar.advance


def _digest(*values: Any) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, default=str).encode() + b"\n")
    return digest.hexdigest()
