"""The code grader on real data: every solution passes, and no way of spoiling one does.

R1JAX_TEST_WHOLE=1 spoils every HumanEval and MBPP solution in each of the ways, which takes minutes: each infinite loop
takes its second of CPU. Otherwise one problem in eight is, or in 48 by an infinite loop.
"""

import ast
import functools
import gzip
import json
import os
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from r1jax.errors import ConfigError
from r1jax.rewards import code as code_module
from r1jax.rewards.code import CodeConfig, function_tests, grade_completion, grade_program, same_output
from r1jax.rewards.sandbox import Sandbox

DATA = Path(__file__).parents[2] / "shared" / "data"
WHOLE = os.environ.get("R1JAX_TEST_WHOLE") == "1"
try:
    Sandbox().close()
    REFUSED = None
except ConfigError as error:
    REFUSED = str(error)
pytestmark = [
    pytest.mark.skipif(REFUSED is not None, reason=f"no isolation on this machine: {REFUSED}"),
    pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not there"),
]
needs_compiler = pytest.mark.skipif(code_module._compiler() is None, reason="no C++ compiler on this machine")


@functools.cache
def humaneval():
    """(name, program, tests, the function's name) of each problem."""
    with gzip.open(DATA / "humaneval" / "HumanEval.jsonl.gz") as file:
        rows = [json.loads(line) for line in file]
    return [
        (
            row["task_id"],
            row["prompt"] + row["canonical_solution"],
            function_tests(row["prompt"], row["test"], row["entry_point"]),
            row["entry_point"],
        )
        for row in rows
    ]


@functools.cache
def mbpp():
    rows = json.loads((DATA / "mbpp" / "sanitized-mbpp.json").read_text())
    return [
        (f"MBPP/{row['task_id']}", row["code"], row["test_imports"] + row["test_list"], _tested(row)) for row in rows
    ]


def _tested(row):
    """The function of a solution that its tests call."""
    with warnings.catch_warnings(action="ignore"):  # of escapes in its strings
        functions = {node.name for node in ast.parse(row["code"]).body if isinstance(node, ast.FunctionDef)}
    names = {node.id for node in ast.walk(ast.parse(row["test_list"][0])) if isinstance(node, ast.Name)}
    (name,) = functions & names
    return name


@functools.cache
def code_contests():
    rows = json.loads((DATA / "code_contests" / "test.json").read_text())
    return [
        [{"input": i, "output": o} for i, o in zip(row["tests"]["inputs"], row["tests"]["outputs"], strict=True)]
        for row in rows
    ]


def verdicts(programs, config=None):
    """{name: verdict} of (name, program, tests), several at a time."""
    config = config or CodeConfig()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        found = threads.map(lambda p: grade_program(p[1], p[2], config=config), programs)
        return dict(zip([name for name, *_ in programs], found, strict=True))


@pytest.mark.parametrize(("problems", "count"), [(humaneval, 164), (mbpp, 213)])
def test_every_solution_passes(problems, count):
    found = verdicts([problem[:3] for problem in problems()])
    assert {name: v for name, v in found.items() if not v.passed} == {}
    assert len(found) == count


# What is spoiled is the function that the tests call; it may call itself as it was. "Off by one" changes every result:
# integers by one, other numbers by one and a tenth (tests allow a thousandth), truth to its contrary, everything with
# items by one item, None to 0.
SPOIL = """

def _spoil():
    global {name}
    original, name = {name}, "{name}"

    def off(value):
        if isinstance(value, bool): return not value
        if isinstance(value, int): return value + 1
        if isinstance(value, (float, complex)): return value * 1.1 + 1
        if isinstance(value, str): return value + "1"
        if isinstance(value, dict): return {{**value, "1": 1}}
        if isinstance(value, (set, frozenset)): return type(value)([*value, "one more"])
        if isinstance(value, (list, tuple)): return type(value)([*value, 1])
        return 0

    def spoiled(*args, **kwargs):
        {body}

    {name} = spoiled


_spoil()
"""
SPOILED = {
    "None": "return None",
    "off by one": (
        "globals()[name] = original\n        try: return off(original(*args, **kwargs))\n"
        "        finally: globals()[name] = spoiled"
    ),
    "early exit": "import os; os._exit(0)",
    "infinite loop": "while True: pass",
    "memory bomb": "held = []\n        while True: held.append(bytearray(1 << 24))",
}
SHORT = CodeConfig(cpu_seconds=1, memory_mb=256)


@pytest.mark.parametrize("way", SPOILED)
@pytest.mark.parametrize("problems", [humaneval, mbpp])
def test_no_spoiled_solution_passes(problems, way):
    chosen = [
        (name, program + SPOIL.format(name=function, body=SPOILED[way]), tests)
        for name, program, tests, function in problems()[:: 1 if WHOLE else 48 if way == "infinite loop" else 8]
    ]
    found = verdicts(chosen, SHORT)
    assert {name: v for name, v in found.items() if v.passed is not False} == {}
    assert len(found) == len(chosen) > 3
    # It is the spoiling that they fail by, not a slip in how they were spoiled.
    expected = {
        "None": "Error",
        "off by one": "Assert",
        "early exit": "exit code 0|it ended",
        "infinite loop": "out of CPU time|it ended",
        "memory bomb": "MemoryError",
    }
    reasons = [verdict.reason for verdict in found.values()]
    assert sum(bool(re.search(expected[way], reason)) for reason in reasons) >= 0.9 * len(reasons), reasons


def test_humanevals_own_helpers_are_not_the_programs():
    """Three of its checks call functions that the prompt defines, with which a program could be right in any case."""
    forged = {
        "HumanEval/32": "def poly(xs, x): return 0\ndef find_zero(xs): return 0",
        "HumanEval/38": "def encode_cyclic(s): return s\ndef decode_cyclic(s): return s",
        "HumanEval/50": "def encode_shift(s): return s\ndef decode_shift(s): return s",
    }
    problems = {name: tests for name, _, tests, _ in humaneval()}
    for name, program in forged.items():
        tests = problems[name]
        assert grade_program(program, tests).passed is False
        check = tests[0][tests[0].index("def check(") :]
        assert grade_program(program, [check]).passed is True, "what the helpers in the tests are there for"


LESS_OR_MORE = [
    lambda text: text.rstrip()[:-1],
    lambda text: text.rstrip().rpartition("\n")[0],
    lambda text: f"{text.rstrip()} 0",
    lambda text: f"{text.rstrip()}\n0",
    lambda text: f"{text.rstrip()}\n{text}",
    lambda text: "",
]


def test_code_contests_outputs_are_compared_whole():
    cases = [case for problem in code_contests() for case in problem]
    assert len(cases) == 567
    for case in cases:
        for config in (CodeConfig(), CodeConfig(float_tolerance=1e-6)):
            assert same_output(case["output"].encode(), case["output"], config)
            assert same_output(case["output"].rstrip().encode(), case["output"], config)
            for spoil in LESS_OR_MORE if config.float_tolerance is None else LESS_OR_MORE[1:]:
                assert not same_output(spoil(case["output"]).encode(), case["output"], config)


def replay(cases):
    """A program that knows the cases by heart: the data has no solutions."""
    return f"import sys\nsys.stdout.write({ {case['input']: case['output'] for case in cases}!r}[sys.stdin.read()])\n"


def test_programs_that_know_code_contests_by_heart():
    problems = [cases[-2:] for cases in code_contests()]
    assert len(problems) == 60
    right = verdicts([(i, replay(cases), cases) for i, cases in enumerate(problems)])
    assert {name: v for name, v in right.items() if not v.passed} == {}
    wrong = [
        (i, replay([{**case, "output": LESS_OR_MORE[i % 6](case["output"])} for case in cases]), cases)
        for i, cases in enumerate(problems)
    ]
    assert {name: v for name, v in verdicts(wrong).items() if v.passed is not False} == {}


# Our own solutions of those of its problems whose answer is unique and short, by their number in the file.
SOLUTIONS = {
    13: "for _ in range(int(input())):\n    s = input()\n    print('YES' if 2 * s.count('B') == len(s) else 'NO')",
    26: (
        "for _ in range(int(input())):\n    r = 1\n    for i in range(3, 2 * int(input()) + 1):\n"
        "        r = r * i % (10**9 + 7)\n    print(r)"
    ),
    28: "for _ in range(int(input())):\n    a, b, c = map(int, input().split())\n    print((a + c) % 2)",
    29: (
        "for _ in range(int(input())):\n    input()\n    a = input().split()\n"
        "    print(a.count('1') * 2 ** a.count('0'))"
    ),
    45: (
        "for _ in range(int(input())):\n    input()\n    height, last = 1, None\n    for day in input().split():\n"
        "        if day == last == '0':\n            height = -1\n            break\n"
        "        if day == '1': height += 5 if last == '1' else 1\n        last = day\n    print(height)"
    ),
    46: (
        "for _ in range(int(input())):\n    input()\n    a = list(map(int, input().split()))[::-1]\n"
        "    n, top = 0, a[0]\n    for x in a:\n        if x > top: n, top = n + 1, x\n    print(n)"
    ),
    52: (
        "for _ in range(int(input())):\n    n, k = map(int, input().split())\n"
        "    print(sum(n**i for i in range(32) if k >> i & 1) % (10**9 + 7))"
    ),
    58: (
        "for _ in range(int(input())):\n    input()\n    a, b = input(), input()\n"
        "    print('NO' if any(x == y == '1' for x, y in zip(a, b)) else 'YES')"
    ),
}
SPOILED_SOLUTIONS = {
    13: ("'B'", "'A'"),
    26: ("range(3", "range(2"),
    28: ("a + c", "a + b"),
    29: ("* 2 **", "+ 2 **"),
    45: ("5 if", "4 if"),
    46: ("x > top", "x >= top"),
    52: ("n**i", "n*i"),
    58: ("x == y", "x != y"),
}
CPP = {
    28: (
        '#include <cstdio>\nint main() { int t, a, b, c; scanf("%d", &t);\n'
        'while (t--) { scanf("%d %d %d", &a, &b, &c); printf("%d\\n", (a + c) % 2); } }'
    ),
    46: (
        "#include <bits/stdc++.h>\nusing namespace std;\nint main() { int t; cin >> t; while (t--) { int n; cin >> n;\n"
        "vector<int> a(n); for (auto &x : a) cin >> x; int k = 0, top = a.back();\n"
        "for (int i = n - 1; i >= 0; i--) if (a[i] > top) { k++; top = a[i]; }\ncout << k << endl; } }"
    ),
}


def test_solutions_of_code_contests():
    problems = code_contests()
    right = verdicts([(i, program, problems[i]) for i, program in SOLUTIONS.items()])
    assert {name: v for name, v in right.items() if not v.passed} == {}
    wrong = verdicts([(i, SOLUTIONS[i].replace(*spoil), problems[i]) for i, spoil in SPOILED_SOLUTIONS.items()])
    assert {name: v for name, v in wrong.items() if v.passed is not False or "wrong output" not in v.reason} == {}


@needs_compiler
def test_solutions_of_code_contests_in_cpp():
    for i, program in CPP.items():
        assert grade_completion(f"So:\n```cpp\n{program}\n```", code_contests()[i]).passed is True
    spoiled = CPP[28].replace("a + c", "a + b")
    assert grade_completion(f"```cpp\n{spoiled}\n```", code_contests()[28]).passed is False
