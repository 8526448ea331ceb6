"""LiveCodeBench: problems of contests in a window of time, with tests that are packed as published."""

from __future__ import annotations

import base64
import binascii
import datetime
import functools
import io
import json
import pickletools
import zlib
from typing import Any

from r1jax.errors import DataError
from r1jax.evaluation.benchmarks.base import Benchmark, Problem, Protocol
from r1jax.evaluation.benchmarks.programs import CONTEST_LIMITS, contest_prompt, with_header
from r1jax.evaluation.benchmarks.rows import Row, accuracy_by, read_problems
from r1jax.rewards.code import code_accuracy, extract_program

START, END = datetime.date(2024, 8, 1), datetime.date(2025, 2, 1)
"""The paper's problems: August 2024 to January 2025 (D.1). The end is not included."""

_UNPACKED_LIMIT = 2**30  # bytes of one problem's tests; the largest published are a tenth of it

# LiveCodeBench runs every program below wide imports: solutions in its setting leave out what LeetCode provides.
_MODULES = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json"
).split()
_HEADER = "\n".join(
    [f"from {module} import *" for module in _MODULES]
    + ["from builtins import *", "from typing import *"]
    + [f"import {module}" for module in _MODULES]
    + ["sys.setrecursionlimit(50000)"]
)


def livecodebench_accuracy(
    prompts: list[str],
    completions: list[str],
    public_tests: list[str],
    private_tests: list[str],
    function: list[str | None],
    **columns,
) -> list[float | None]:
    """`code_accuracy` of each program, below LiveCodeBench's imports, on all of its problem's tests.

    `public_tests` and `private_tests` as published; they are unpacked here, since a list of them unpacked would take
    gigabytes, and cannot be scored where they are damaged. `function` is the method of `Solution` that is called, None
    where a program reads stdin. A case has LiveCodeBench's 6 seconds.
    """
    tests: list[Any] = []
    for public, private, name in zip(public_tests, private_tests, function, strict=True):
        try:
            tests.append(unpack_tests(public, private, name))
        except DataError:
            tests.append(None)
    programs = [with_header(_HEADER, extract_program(completion)[0]) for completion in completions]
    return code_accuracy(prompts, programs, tests=tests, cpu_seconds=6, float_tolerance=0.0, **CONTEST_LIMITS)


@functools.lru_cache(maxsize=4)
def unpack_tests(public: str, private: str, function: str | None) -> list[Any]:
    """A problem's tests for `code_accuracy`: {"input", "output"} for stdin, else an assertion each.

    Raises `DataError` where they cannot be read.
    """
    tests = _tests(public) + _tests(private)
    if function is None:
        return [{"input": test["input"], "output": test["output"]} for test in tests]
    return [_assertion(test, function) for test in tests]


def _tests(text: str) -> list[dict[str, str]]:
    """Tests as JSON, or as published: base64 of zlib of a pickled string of JSON."""
    try:
        tests = json.loads(text if text.lstrip().startswith("[") else _unpacked(text))
    except (ValueError, binascii.Error, zlib.error, RecursionError) as error:
        raise DataError(
            f"test cases {text[:40]!r}...: they cannot be unpacked ({error}); download them again"
        ) from None
    if not isinstance(tests, list) or not all(isinstance(t, dict) and {"input", "output"} <= t.keys() for t in tests):
        raise DataError(f"test cases {text[:40]!r}...: give a list of objects with input and output")
    return tests


def _unpacked(text: str) -> str:
    inflate = zlib.decompressobj()
    data = inflate.decompress(base64.b64decode(text, validate=True), _UNPACKED_LIMIT)
    if not inflate.eof:
        raise ValueError(f"cut short, or more than {_UNPACKED_LIMIT:,} bytes")
    return _pickled_string(data)


def _pickled_string(data: bytes) -> str:
    """The string that `data` is a pickle of, read without running it: a pickle can run any program.

    Raises `ValueError` for a pickle of anything else.
    """
    found = None
    for opcode, value, _ in pickletools.genops(io.BytesIO(data)):
        if opcode.name in ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8") and found is None:
            found = value
        elif opcode.name not in ("PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "STOP"):
            raise ValueError(f"the pickle holds more than one string ({opcode.name})")
    if found is None:
        raise ValueError("the pickle holds no string")
    return found


def _assertion(test: dict[str, str], function: str) -> str:
    """A call of `Solution().function`, each line of the input an argument; a tuple counts as the list of its items."""
    try:
        arguments = [json.loads(line) for line in test["input"].split("\n") if line.strip()]
        expected = json.loads(test["output"])
    except (ValueError, RecursionError) as error:
        raise DataError(f"test case {str(test)[:60]}: its arguments are no JSON ({error}); download it again") from None
    call = f"Solution().{function}({', '.join(map(repr, arguments))})"
    return f"assert (lambda value: list(value) if isinstance(value, tuple) else value)({call}) == {expected!r}"


def load(source: str, seed: int, start: datetime.date = START, end: datetime.date = END) -> list[Problem]:
    """LiveCodeBench's problems of code generation (arXiv 2403.07974) whose contest was in [start, end).

    Columns: `public_tests` and `private_tests` as published, `function`, `difficulty` and `platform`. The hub's files
    (test.jsonl, test2.jsonl, ...) are releases that follow each other: the paper's window needs the first five.
    """
    del seed

    def build(row: Row) -> Problem | None:
        try:
            date = datetime.datetime.fromisoformat(str(row.get("contest_date"))).date()
        except ValueError:
            raise row.wrong(f"contest_date={row.get('contest_date')!r}", "write it as 2024-08-31T00:00:00") from None
        if not start <= date < end:
            return None
        metadata = row.find("metadata") or {}
        if isinstance(metadata, str):
            try:
                metadata = json.loads(metadata)
            except ValueError as error:
                raise row.wrong(f"metadata={metadata:.40}", f"it is no JSON ({error})") from None
        starter = row.find("starter_code") or ""
        function = metadata.get("func_name")
        if bool(starter.strip()) != bool(function):
            raise row.wrong(f"func_name={function!r} with starter_code={starter!r:.40}", "give both or neither")
        return Problem(
            id=f"livecodebench/{row.get('question_id')}",
            prompt=contest_prompt(row.text("question_content"), starter.rstrip()),
            columns={
                "public_tests": row.text("public_test_cases"),
                "private_tests": row.text("private_test_cases"),
                "function": function,
                "difficulty": row.find("difficulty") or "all",
                "platform": row.find("platform") or "all",
            },
        )

    return read_problems(source, build, split=None)


def _summarise(problems, completions, scores) -> dict[str, float]:
    return accuracy_by(problems, scores, "difficulty") | accuracy_by(problems, scores, "platform")


LIVECODEBENCH = Benchmark(
    name="livecodebench",
    title="LiveCodeBench (August 2024 to January 2025)",
    source="hf:livecodebench/code_generation_lite",
    load=load,
    score=livecodebench_accuracy,
    protocol=Protocol(k=8),
    summarise=_summarise,
)
