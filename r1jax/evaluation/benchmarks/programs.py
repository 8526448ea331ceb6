"""Programs: HumanEval, MBPP and CodeContests, and what all benchmarks of programs share."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from r1jax.errors import DataError
from r1jax.evaluation.benchmarks.base import Benchmark, Problem, Protocol
from r1jax.evaluation.benchmarks.rows import Row, read_problems
from r1jax.rewards.code import code_accuracy, extract_program, function_tests

# Verbatim from LiveCodeBench's runner; the paper takes such sets' "default prompts provided by their creators" (D.1).
_ROLE = (
    "You are an expert Python programmer. You will be given a question (problem specification) and will generate a "
    "correct Python program that matches the specification and passes all tests."
)
_WITH_STARTER = (
    "You will use the following starter code to write the solution to the problem and enclose your code within "
    "delimiters."
)
_WITHOUT_STARTER = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test on the sample "
    "inputs). Enclose your code within delimiters as follows. Ensure that when the python program runs, it reads the "
    "inputs, runs the algorithm and writes output to STDOUT."
)


CONTEST_LIMITS = {"case_seconds": 12.0, "total_seconds": 55.0, "memory_mb": 1024}
"""Of a program on all of its cases. The total stays below the minute that `r1jax eval` gives a judgement."""


def contest_prompt(statement: str, starter_code: str = "") -> str:
    """LiveCodeBench's prompt for a problem of a contest, on stdin and stdout unless there is `starter_code`."""
    request, block = (_WITH_STARTER, starter_code) if starter_code else (_WITHOUT_STARTER, "# YOUR CODE HERE")
    return (
        f"{_ROLE}\n\n### Question:\n{statement}\n\n### Format: {request}\n```python\n{block}\n```\n\n"
        "### Answer: (use the provided format with backticks)\n\n"
    )


def with_header(header: str, code: str) -> str:
    """`code` below `header`, as a fenced block. Imports from `__future__` go first, where Python wants them."""
    future = re.findall(r"^from __future__ import .*$", code, re.M)
    code = re.sub(r"^from __future__ import .*$", "", code, flags=re.M)
    return fenced("\n".join([*future, header, code.strip("\n")]))


def fenced(code: str) -> str:
    """A block of Python that no line within it ends."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return f"{fence}python\n{code}\n{fence}\n"


def humaneval_accuracy(
    prompts: list[str], completions: list[str], tests: list[Any], header: list[str], entry_point: list[str], **columns
) -> list[float | None]:
    """`code_accuracy` with HumanEval's own text above each program.

    It defines imports and helpers that a solution may leave out, and is what a bare function body continues.
    """
    programs = []
    for completion, text, name in zip(completions, header, entry_point, strict=True):
        code, _ = extract_program(completion)
        whole = re.search(rf"^(?:async )?def {re.escape(name)}\b|^{re.escape(name)}\s*=", code, re.M)
        programs.append(with_header(text, code) if whole else fenced(text + code))
    return code_accuracy(prompts, programs, tests=tests)


def contest_accuracy(
    prompts: list[str], completions: list[str], tests: list[Any], time_limit: list[float | None], **columns
) -> list[float | None]:
    """`code_accuracy` as contests judge: decimals within 1e-6, and each problem's own limit of CPU seconds a case.

    The limit is rounded up to whole seconds, which the system counts; where it is None, `code_accuracy`'s holds.
    """
    scores: list[float | None] = [None] * len(completions)
    for limit in set(time_limit):
        rows = [i for i, each in enumerate(time_limit) if each == limit]
        limits = CONTEST_LIMITS | ({} if limit is None else {"cpu_seconds": max(1, math.ceil(limit))})
        columns_of_rows = ([column[i] for i in rows] for column in (prompts, completions, tests))
        for i, score in zip(rows, code_accuracy(*columns_of_rows, float_tolerance=1e-6, **limits), strict=True):
            scores[i] = score
    return scores


def load_humaneval(source: str, seed: int) -> list[Problem]:
    """HumanEval (arXiv 2107.03374). Columns: `tests` (one: its `check` of the function), `header`, `entry_point`."""
    del seed

    def build(row: Row) -> Problem:
        header, name = row.get("prompt"), row.text("entry_point")
        try:
            tests = function_tests(header, row.text("test"), name)
        except DataError as error:
            raise row.wrong(f"prompt of {name}", str(error)) from None
        return Problem(
            id=row.text("task_id"),
            prompt=(
                "Complete the following Python function. Give the whole function, with the imports that it needs, in "
                f"one ```python block.\n\n```python\n{header.rstrip()}\n```"
            ),
            columns={"tests": tests, "header": header, "entry_point": name},
        )

    return read_problems(source, build)


def load_mbpp(source: str, seed: int) -> list[Problem]:
    """MBPP (arXiv 2108.07732), whole or sanitized, with that paper's prompt. Column: `tests`, one for each assertion.

    Only its evaluation split, tasks 11 to 510, in whatever file: the others are its examples and training problems.
    """
    del seed

    def build(row: Row) -> Problem | None:
        number = row.get("task_id")
        if not isinstance(number, int):
            raise row.wrong(f"task_id={number!r}", "give MBPP's number of the task")
        if not 11 <= number <= 510:
            return None
        setup = "\n".join(row.find("test_imports") or []) or row.find("test_setup_code") or ""
        tests = row.get("test_list")
        return Problem(
            id=f"mbpp/{number}",
            prompt=(
                f"You are an expert Python programmer, and here is your task: {row.text('prompt', 'text')} Your code "
                "should pass these tests:\n\n" + "\n".join(tests) + "\n\nGive the code in one ```python block."
            ),
            columns={"tests": [f"{setup}\n{test}" if setup else test for test in tests]},
        )

    return read_problems(source, build)


def load_code_contests(source: str, seed: int) -> list[Problem]:
    """CodeContests (arXiv 2203.07814): programs from stdin to stdout. Columns: `tests` and `time_limit` in seconds.

    Rows are those of the hub, or `problem` with `tests` of {"inputs", "outputs"}, as JSON or as Python writes it.
    """
    del seed

    def build(row: Row) -> Problem:
        tests = row.find("tests")
        if tests is None:
            kinds = ("public_tests", "private_tests", "generated_tests")
            tests = [pair for kind in kinds for pair in pairs(row, row.find(kind) or {"input": [], "output": []})]
        else:
            tests = pairs(row, tests)
        if not tests:
            raise row.wrong("tests=[]", "give at least one test")
        return Problem(
            id=f"code_contests/{row.find('name') or row.number}",
            prompt=contest_prompt(row.text("problem", "description")),
            columns={"tests": tests, "time_limit": seconds(row)},
        )

    return read_problems(source, build)


def seconds(row: Row) -> float | None:
    """A row's `time_limit`, a number or {"seconds", "nanos"}; None where it has none."""
    limit = row.find("time_limit")
    if isinstance(limit, Mapping):
        limit = (limit.get("seconds") or 0) + (limit.get("nanos") or 0) / 1e9
    if limit is not None and not (isinstance(limit, int | float) and limit > 0):
        raise row.wrong(f"time_limit={limit!r}", "give seconds > 0")
    return None if limit is None else float(limit)


def pairs(row: Row, tests: Any) -> list[dict[str, str]]:
    """[{"input", "output"}] from that, or from lists of inputs and of outputs."""
    if isinstance(tests, str):
        tests = _literal(row, tests)
    if isinstance(tests, Mapping):
        inputs, outputs = (tests.get(name, tests.get(f"{name}s")) for name in ("input", "output"))
        if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
            raise row.wrong(f"tests with {sorted(tests)}", "give as many outputs as inputs")
        tests = [{"input": i, "output": o} for i, o in zip(inputs, outputs, strict=True)]
    if not isinstance(tests, Sequence) or not all(
        isinstance(t, Mapping) and {"input", "output"} <= t.keys() for t in tests
    ):
        raise row.wrong("tests", 'give a list of {"input", "output"}')
    return [{"input": str(test["input"]), "output": str(test["output"])} for test in tests]


def _literal(row: Row, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise row.wrong(f"tests={text:.40}...", f"they cannot be read ({error})") from None


PROGRAMS = [
    # The paper reports HumanEval-Mul, of which this is the Python part; it gives no k for it, nor for the others.
    Benchmark(
        name="humaneval",
        title="HumanEval",
        source="hf:openai/openai_humaneval:test",
        load=load_humaneval,
        score=humaneval_accuracy,
        protocol=Protocol(k=4),
    ),
    Benchmark(
        name="mbpp",
        title="MBPP",
        source="hf:google-research-datasets/mbpp:sanitized:test",
        load=load_mbpp,
        score=code_accuracy,
        protocol=Protocol(k=4),
    ),
    Benchmark(
        name="code_contests",
        title="CodeContests",
        source="hf:deepmind/code_contests:test",
        load=load_code_contests,
        score=contest_accuracy,
        protocol=Protocol(k=4),
    ),
]
