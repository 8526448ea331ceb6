"""Rows of a benchmark's data set as problems, and the helpers that several families of benchmarks share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from r1jax.errors import DataError
from r1jax.evaluation.benchmarks.base import Problem


class Row:
    """One row: its fields by name, whatever their capitals, and where it is from."""

    def __init__(self, fields: Mapping[str, Any], where: str, number: int):
        self.fields = {name.lower(): value for name, value in fields.items()}
        self.where, self.number = where, number

    def get(self, *names: str) -> Any:
        """The first of the fields `names` that is there and not null. Raises `DataError` where none is."""
        value = self.find(*names)
        if value is None:
            raise DataError(
                f"{self.where}: field {' or '.join(map(repr, names))} is missing or null "
                f"(of {', '.join(sorted(self.fields))}); give the data set as published"
            )
        return value

    def find(self, *names: str) -> Any:
        """The same, None where there is none."""
        return next((v for name in names if (v := self.fields.get(name.lower())) is not None), None)

    def text(self, *names: str) -> str:
        """The same as `get`, without white space around it. Raises `DataError` where it is no string, or blank."""
        value = self.get(*names)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(f"{names[0]}={value!r:.60}", "give a string that is not blank")
        return value.strip()

    def wrong(self, what: str, fix: str) -> DataError:
        """The error that says what is wrong with this row, and what would be right."""
        return DataError(f"{self.where}: {what}: {fix}")


def read_problems(
    source: str,
    build: Callable[[Row], Problem | None],
    split: str | None = "test",
    columns: Sequence[str] | None = None,
) -> list[Problem]:
    """The problems that `build` makes of a source's rows; it leaves a row out with None.

    `split` and `columns` as in `r1jax.data.sources.iterate_rows`. Raises `DataError` where nothing is left, or two
    problems share an id.
    """
    from r1jax.data.sources import FILE, iterate_rows  # its package takes seconds, which workers need not spend

    problems: dict[str, Problem] = {}
    for number, fields in enumerate(iterate_rows(source, split, columns), start=1):
        row = Row(fields, f"{source}{'/' + fields[FILE] if FILE in fields else ''}, row {number}", number)
        problem = build(row)
        if problem is None:
            continue
        if problem.id in problems:
            raise row.wrong(f"id={problem.id!r}", "another problem has it; give each its own")
        problems[problem.id] = problem
    if not problems:
        raise DataError(f"source={source!r}: no problem of this benchmark is in it; give the data set as published")
    return list(problems.values())


def final_response(completion: str) -> str:
    """What a completion answers: its text after the thinking, without the tags of R1-Zero's answer.

    A completion that is cut off while it thinks answers nothing. One without tags answers with all of its text.
    """
    _, closed, rest = completion.rpartition("</think>")
    if "<think>" in rest:
        return ""
    text = rest if closed else completion
    _, opened, answer = text.rpartition("<answer>")
    return (answer.partition("</answer>")[0] if opened and "</answer>" in answer else text).strip()


def accuracy_by(problems: Sequence[Problem], scores: Sequence[Sequence[float | None]], column: str) -> dict[str, float]:
    """pass@1 of the problems with each value of `column`, as {"COLUMN_VALUE/pass@1": [0, 1]}.

    As in the whole, a sample that could not be scored counts as wrong. Problems without the column, such as those of
    completions made elsewhere, are in no group.
    """
    groups: dict[str, list[float]] = {}
    for problem, row in zip(problems, scores, strict=True):
        if column in problem.columns:
            groups.setdefault(str(problem.columns[column]), []).append(np.mean([score or 0.0 for score in row]))
    return {f"{column}_{value}/pass@1": float(np.mean(group)) for value, group in sorted(groups.items())}
