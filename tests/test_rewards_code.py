"""The accuracy of programs: what passes, what does not, what cannot be judged, and every known way to forge a pass."""

import functools
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from code_programs import DOUBLE, FORGERIES, RIGHT, THEFTS
from hypothesis import example, given, settings
from hypothesis import strategies as st

from r1jax.errors import ConfigError, DataError
from r1jax.rewards import RewardPool, code_accuracy, get_reward, with_parameters
from r1jax.rewards import code as code_module
from r1jax.rewards.call_values import Remote, Values
from r1jax.rewards.code import (
    CodeConfig,
    extract_program,
    function_tests,
    grade_completion,
    grade_program,
    same_output,
)
from r1jax.rewards.sandbox import Sandbox

try:
    Sandbox().close()
    REFUSED = None
except ConfigError as error:
    REFUSED = str(error)
pytestmark = pytest.mark.skipif(REFUSED is not None, reason=f"no isolation on this machine: {REFUSED}")
needs_compiler = pytest.mark.skipif(code_module._compiler() is None, reason="no C++ compiler on this machine")

USUAL = CodeConfig()
SHORT = CodeConfig(cpu_seconds=1, case_seconds=1.0, total_seconds=4.0, memory_mb=256)  # for what is to fail


def passed(program, tests, language="python", config=USUAL):
    return grade_program(program, tests, language, config).passed


# Call-based tests.


@pytest.mark.parametrize(("program", "tests"), RIGHT)
def test_right_programs_pass(program, tests):
    verdict = grade_program(program, tests)
    assert verdict.passed is True, verdict
    assert verdict.reason == "" and 0 < verdict.cpu_seconds < 1


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("def double(x): return x", "case 0: AssertionError"),
        ("def double(x): return 4", "case 1: AssertionError"),
        ("def double(x):\n    return None", "case 0: AssertionError"),
        ("def double(x) return 2", "does not compile: SyntaxError"),
        ("def double(x): return " + "(" * 10_000, "does not compile"),
        ("\0", "does not compile"),
        ("#" * 2_000_000 + f"\n{DOUBLE}", "longer"),
        ("double = 3", "TypeError"),
        ("def dobule(x): return 2 * x", "NameError"),
        ("", "NameError"),
        ("1 / 0", "raises ZeroDivisionError as it is loaded"),
        ("def double(x): raise AssertionError", "case 0: AssertionError"),
        ("def double(x): return double(x)", "RecursionError"),
        ("def double(x):\n    while True: pass", "out of"),
        ("import time\ndef double(x): time.sleep(9)", "case 0: it ran out of time"),
        ("def double(x):\n    held = []\n    while True: held.append(bytearray(1 << 26))", "MemoryError"),
        ("def double(x): return double", "AssertionError"),
        ("import numpy\ndef double(x): return 2 * x", "ModuleNotFoundError"),
        ("def double(x): return {1: [2 * x]}[1][0] + 0.001", "AssertionError"),
        ("def double(x):\n    y = []\n    y.append(y)\n    return y", "RecursionError"),
    ],
)
def test_wrong_programs_fail(program, reason):
    verdict = grade_program(program, ["assert double(2) == 4", "assert double(3) == 6"], config=SHORT)
    assert verdict.passed is False and reason in verdict.reason, verdict


@pytest.mark.parametrize(
    "tests",
    [
        None,
        [],
        "assert double(2) == 4",
        [1],
        ["assert double(2) == 4", 1],
        [{"input": "1"}],
        [{"input": 1, "output": "2"}],
        ["assert double(2) == 4", {"input": "1", "output": "2"}],
        {"input": "1", "output": "2"},
        ["assert double(2 == 4"],
        ["assert True"],
        ["def check(candidate):\n    assert candidate(2) == 5"],
        ["pass"],
        [""],
        ["import no_such_module\nassert double(2) == 4"],
        ["assert double(open('/dev/null')) == 4"],
    ],
)
def test_malformed_tests_are_nobodys_fault(tests):
    assert passed(DOUBLE, tests) is None


CHECK = """
def check(candidate):
    for x in (2, 3):
        assert isinstance(candidate(x), int)
        assert set([candidate(x)]) == set([2 * x])
check(double)
"""
TESTS_OF_DOUBLE = [
    ["assert double(2) == 4", "assert double([1]) == [1, 1]"],
    ["assert abs(double(2) - 4) < 1e-6", "assert math.isclose(double(3), 6)"],
    [CHECK],
]


@pytest.mark.parametrize("name", FORGERIES)
def test_forgeries(name):
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda tests: passed(FORGERIES[name], tests, config=SHORT), TESTS_OF_DOUBLE))
    assert found == [False] * 3  # not None either: a program must not be able to make itself unjudged
    assert passed(DOUBLE, TESTS_OF_DOUBLE[0]) is True


@pytest.mark.parametrize("tests", TESTS_OF_DOUBLE)
def test_what_is_forged_can_be_earned(tests):
    assert passed(DOUBLE, tests) is True


@pytest.mark.parametrize("name", THEFTS)
def test_what_tests_pass_gives_nothing_else_away(name):
    program = f"""
def steal(f, o):
    try:
        return 'stolen', str({THEFTS[name]})
    except Exception as error:
        return 'held', str(error)
"""
    tests = """
secret = 'unknown'
class O:
    def __init__(self): self.field = 1; self._hidden = secret
    def method(self): return self.field
assert steal(lambda: 1, O())[0] != 'stolen'
"""
    verdict = grade_program(program, [tests], config=SHORT)
    assert verdict.passed is True or "it sent what is no value" in verdict.reason, verdict


def test_objects_of_the_tests_keep_their_methods():
    tests = ["class O:\n    def ok(self): return False\no = O()\nf(o)\nassert o.ok() and o.field == 5"]
    assert passed("def f(o): o.field = 5; o.ok = lambda: True", tests) is False
    assert passed("def f(o): o.field = 5", [tests[0].replace("False", "True")]) is True


def test_tests_that_catch_everything_do_not_hide_an_end():
    tests = ["try: double(2)\nexcept: pass"]
    assert passed(FORGERIES["exit at once in the call"], tests) is False
    assert passed(DOUBLE, tests) is True


def test_a_pass_needs_the_secret():
    """Were tests to end their process, or something to speak in its place, there would be no pass."""
    for word in ("passed 0 ", "x passed 0 ", f"{'0' * 32} passed 0 "):
        say = f"for fd in range(30):\n    try: os.write(fd, b'{word}')\n    except OSError: pass\nos._exit(0)"
        assert passed(DOUBLE, [f"import os\ndouble(2)\n{say}"], config=SHORT) is False


def test_names_that_tests_lack_are_the_programs_own():
    """The limit of what can be protected, and the way out of it: tests that bring their own helpers."""
    header = "def helper(x):\n    return x * 10\n\n\ndef inverse(y):\n    '''The x of helper.'''\n"
    check = "def check(candidate):\n    for x in (1, 2):\n        assert candidate(helper(x)) == x\n"
    forged = "def helper(x): return x\ndef inverse(y): return y"
    assert passed(forged, [f"{check}\ncheck(inverse)"]) is True
    assert passed(forged, function_tests(header, check, "inverse")) is False
    assert passed(header + "    return y // 10", function_tests(header, check, "inverse")) is True
    with pytest.raises(DataError, match="does not compile"):
        function_tests("def f(:", check, "f")


def test_a_built_in_is_replaced_only_where_it_must_be_the_program():
    assert passed("def len(x): return 5\ndef f(x): return 0", ["assert len([1]) == 5 and f(1) == 0"]) is False
    assert passed("def len(x): return 5\ndef f(x): return 0", ["assert len([1]) == len([f(1)])"]) is True
    assert passed("def len(x): return 5", ["assert len([1]) == 5"]) is True
    assert passed("def len(x): return 5\nabs = len", ["assert len([1]) == abs(5)"]) is None


# Standard input and output.

ECHO = "import sys\nfor line in sys.stdin: print(int(line) + 1)"


@pytest.mark.parametrize(
    ("program", "tests", "expected"),
    [
        (ECHO, [{"input": "1\n2\n", "output": "2\n3\n"}, {"input": "", "output": ""}], True),
        (ECHO, [{"input": "1\n2\n", "output": "2  \r\n3"}], True),
        (ECHO, ({"input": "1", "output": "2\n", "more": 1},), True),
        (ECHO, [{"input": "1", "output": "3"}], False),
        (ECHO, [{"input": "1\n2", "output": "2\n3\n4"}], False),  # a correct prefix
        (ECHO, [{"input": "1\n2\n3", "output": "2\n3"}], False),  # more than asked for
        ("print(2)\nprint('debug')", [{"input": "1", "output": "2"}], False),
        ("print(2)\nraise SystemExit(1)", [{"input": "1", "output": "2"}], False),
        ("print(2)\n1 / 0", [{"input": "1", "output": "2"}], False),
        ("print(2)\nimport sys\nsys.exit(0)", [{"input": "1", "output": "2"}], True),
        ("import sys\nsys.exit(0)", [{"input": "1", "output": "2"}], False),
        ("import os\nos._exit(0)", [{"input": "1", "output": "2"}], False),
        ("import sys\nsys.stderr.write('2')", [{"input": "1", "output": "2"}], False),
        ("import sys\nsys.stdout.buffer.write(b'2\\xff')", [{"input": "1", "output": "2"}], False),
        ("while True: print(2)", [{"input": "1", "output": "2"}], False),
        ("while True: pass", [{"input": "1", "output": "2"}], False),
        ("print(2", [{"input": "1", "output": "2"}], False),
        ("print(open('/dev/stdin').read())", [{"input": "x", "output": "x"}], True),
        ("print('é')", [{"input": "", "output": "é"}], True),
        ("if __name__ == '__main__': print(2)", [{"input": "", "output": "2"}], True),
        # Nothing of one case helps with the next.
        ("import os\nprint(os.path.exists('f')); open('f', 'w')", [{"input": "", "output": "False"}] * 2, True),
        ("print(2)", [{"input": "\ud800", "output": "2"}], None),
    ],
)
def test_standard_input_and_output(program, tests, expected):
    assert passed(program, tests, config=USUAL if expected else SHORT) is expected


def test_a_large_input_and_output():
    text = "\n".join(map(str, range(200_000)))
    assert passed("import sys\nprint(sys.stdin.read())", [{"input": text, "output": text}]) is True


def test_time_is_counted_for_each_case_and_for_all():
    program = "import time\ndef f(t): time.sleep(t)\nif __name__ == '__main__': f(float(input()))"
    stdin, calls = [{"input": "0.9", "output": ""}] * 3, ["f(0.9)"] * 3
    total, case = CodeConfig(total_seconds=2.5), CodeConfig(case_seconds=0.6)
    runs = [
        (tests, config, right)
        for kind in (stdin, calls)
        for tests, config, right in ((kind, total, False), (kind[:1], total, True), (kind[:1], case, False))
    ]
    with ThreadPoolExecutor(len(runs)) as threads:
        verdicts = list(threads.map(lambda run: grade_program(program, run[0], config=run[1]), runs))
    assert [verdict.passed for verdict in verdicts] == [right for *_, right in runs], verdicts
    assert all(verdict.passed or "time" in verdict.reason for verdict in verdicts), verdicts


@pytest.mark.parametrize(
    ("actual", "expected", "config", "same"),
    [
        ("1 2\n", "1 2", {}, True),
        ("1 2 \n\n\n", "1 2", {}, True),
        ("1  2", "1 2", {}, False),
        (" 1", "1", {}, False),
        ("1\n\n2", "1\n2", {}, False),
        ("1", "1 2", {}, False),
        ("1 2", "1", {}, False),
        ("", "1", {}, False),
        ("1.0", "1", {}, False),
        ("1 2\n", "1 2\n", {"exact_output": True}, True),
        ("1 2", "1 2\n", {"exact_output": True}, False),
        ("0.3333333", "0.3333334", {"float_tolerance": 1e-6}, True),
        ("1000000.5", "1000000.0", {"float_tolerance": 1e-6}, True),
        ("0.334", "0.3333334", {"float_tolerance": 1e-6}, False),
        ("3", "3.0", {"float_tolerance": 0.0}, True),
        ("3.0", "3", {"float_tolerance": 1e-6}, False),  # an integer is exact
        ("1000001", "1000000", {"float_tolerance": 1e-2}, False),
        ("nan", "1.0", {"float_tolerance": 1e-6}, False),
        ("inf", "1e308", {"float_tolerance": 1e-6}, False),
        ("1.0 2.0", "1.0", {"float_tolerance": 1e-6}, False),
        ("1.0", "1.0 2.0", {"float_tolerance": 1e-6}, False),
        ("1.0\n2.0", "1.0 2.0", {"float_tolerance": 1e-6}, False),
        ("x 1.0000001", "x 1.0", {"float_tolerance": 1e-6}, True),
        ("y 1.0", "x 1.0", {"float_tolerance": 1e-6}, False),
        ("1e999999", "1.0", {"float_tolerance": 1e-6}, False),
        ("1_0.0", "10.0", {"float_tolerance": 1e-6}, False),
        ("１.0", "1.0", {"float_tolerance": 1e-6}, False),
    ],
)
def test_same_output(actual, expected, config, same):
    assert same_output(actual.encode(), expected, CodeConfig(**config)) is same


TEXTS = st.text(alphabet="12. \nab", max_size=20)


@given(expected=TEXTS, more=TEXTS)
@settings(max_examples=300, deadline=None)
def test_neither_a_prefix_nor_more_is_the_same(expected, more):
    for config in (CodeConfig(), CodeConfig(exact_output=True), CodeConfig(float_tolerance=1e-9)):
        assert same_output(expected.encode(), expected, config)
        if more.strip():
            assert not same_output((expected + "\n" + more).encode(), expected, config)
            assert not same_output(expected.encode(), expected + "\n" + more, config)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
@settings(max_examples=200, deadline=None)
def test_tolerance_is_relative_and_absolute_below_one(a, b):
    a, b = f"{a:.6f}", f"{b:.6f}"
    near = abs(float(a) - float(b)) <= 1e-3 * max(1, abs(float(b)))
    assert same_output(a.encode(), b, CodeConfig(float_tolerance=1e-3)) is near


# C++.

SUM = "#include <iostream>\nint main() { long a, b; std::cin >> a >> b; std::cout << a + b << std::endl; }\n"


@needs_compiler
def test_cpp():
    cases = [{"input": "1 2\n", "output": "3\n"}, {"input": "-1 1", "output": "0"}]
    assert grade_completion(f"```cpp\n{SUM}```", cases).passed is True
    assert passed(SUM.replace("a + b", "a - b"), cases, "cpp") is False
    verdict = grade_program(SUM.replace(";", "", 1), cases, "cpp")
    assert verdict.passed is False and "does not compile" in verdict.reason
    assert grade_program(SUM, ["assert f(1) == 2"], "cpp").passed is False


@needs_compiler
def test_cpp_is_confined_as_well():
    cases = [{"input": "", "output": "0"}]
    source = """#include <fstream>
#include <iostream>
#include <sys/socket.h>
#include <unistd.h>
#include <cstdlib>
int main() { int n = 0; n += (fork() >= 0); n += (socket(AF_INET, SOCK_STREAM, 0) >= 0); n += (system("true") == 0);
std::ifstream f("/etc/passwd"); n += f.good(); std::ofstream g("/usr/mine"); n += g.good(); std::cout << n; }
"""
    assert passed(source, cases, "cpp") is True
    assert passed('#include "/etc/passwd"\nint main() {}', cases, "cpp") is False
    # What the compiler makes of these cannot be run, or is too large to be.
    for text in (
        '__asm__(".section .interp\\n.string \\"/no/such\\"\\n.text"); int main() {}',
        "char large[1 << 30]; int main() { large[1 << 29] = 1; }",
        "char large[30 << 20] = {1}; int main() { return large[5]; }",
    ):
        assert passed(text, cases, "cpp") is False
    deep = "#include <cstdio>\nint f(int n) { volatile int x[64]; x[0] = n; return n ? f(n - 1) + x[0] * 0 : 0; }\n"
    assert passed(deep + 'int main() { printf("%d", f(100000)); }', cases, "cpp") is True  # 26 MB of stack
    bomb = "template<int n> struct A { A<n+1> *a; static const int v = A<n+1>::v; };\nint main() { return A<0>::v; }"
    start = time.monotonic()
    assert grade_program(bomb, cases, "cpp", CodeConfig(compile_seconds=3)).passed is False
    assert time.monotonic() - start < 6


def test_cpp_without_a_compiler_cannot_be_judged(monkeypatch):
    monkeypatch.setattr(code_module, "_compiler", lambda: None)
    assert passed(SUM, [{"input": "1 2", "output": "3"}], "cpp") is None


# What a completion's program is.


@pytest.mark.parametrize(
    ("completion", "program", "language"),
    [
        ("x = 1", "x = 1", None),
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1\n", "python"),
        ("```\nx = 1\n```", "x = 1\n", None),
        ("```py\nx = 1\n```\nor better\n```Python\nx = 2\n```", "x = 2\n", "Python"),
        ("```python\nx = 1\n```\nOutput:\n```text\n1\n```", "x = 1\n", "python"),
        ("```bash\npip install x\n```", "```bash\npip install x\n```", None),
        ("~~~python\nx = '```'\n~~~", "x = '```'\n", "python"),
        ("````\n```\nx\n```\n````", "```\nx\n```\n", None),
        ("```python\nx = 1\n", "x = 1\n", "python"),
        ("```python\ns = '''\n```x\n'''\n```", "s = '''\n```x\n'''\n", "python"),
        ("```c++\nint x;\n```", "int x;\n", "c++"),
        ("```python\r\nx = 1\r\n```", "x = 1\r\n", "python"),
        ("```python {.line}\nx = 1\n```", "x = 1\n", "python"),
        ("<think>```python\nx = 1\n```</think>```python\nx = 2\n```", "x = 2\n", "python"),
        ("<think>```python\nx = 1\n```", "", None),
        ("<think>\n```python\nx = 1\n```\n</think>", "x = 1\n", "python"),
        ("<think>\nhm\n</think>\n<answer>\n```python\nx = 1\n```\n</answer>", "x = 1\n", "python"),
    ],
)
def test_extract_program(completion, program, language):
    assert extract_program(completion) == (program, language)


@given(st.text(alphabet="`~\n ax", max_size=60))
@settings(max_examples=300, deadline=None)
def test_extract_program_never_invents(completion):
    assert extract_program(completion)[0] in completion


def test_extracting_takes_linear_time():
    start = time.perf_counter()
    for text in ("```\n", "`", "```python\n", "~", "```" * 3 + "\n", "<think>", "</think>", " ```x"):
        extract_program(text * 100_000)
    assert time.perf_counter() - start < 5


# The reward function.


def test_code_accuracy():
    tests = [["assert double(2) == 4"], [{"input": "3", "output": "6"}], ["assert double(2) == 4"], None]
    completions = [f"```python\n{DOUBLE}```", "print(2 * int(input()))", "def double(x): return 0", DOUBLE]
    assert code_accuracy(["p"] * 4, completions, tests) == [1.0, 1.0, 0.0, None]
    assert code_accuracy(prompts=[], completions=[], tests=[]) == []
    assert get_reward("code_accuracy") is code_accuracy
    assert pickle.loads(pickle.dumps(code_accuracy)) is code_accuracy
    assert code_accuracy(["p"], [DOUBLE], [tests[0]], parallel=1, memory_mb=128, other=[3]) == [1.0]


def test_language():
    tests = [[{"input": "", "output": "2"}]] * 6
    # The column is also language_consistency's, where it is the language of the thinking.
    language = ["python", "Python3", "en", None, "java", "cobol"]
    assert code_accuracy(["p"] * 6, ["print(2)"] * 6, tests, language=language) == [1.0, 1.0, 1.0, 1.0, None, None]
    assert code_accuracy(["p"], ["print(2)"], tests[:1], language="zh") == [1.0]
    assert code_accuracy(["p"], ["```cpp\nprint(2)\n```"], tests[:1], language="python") == [1.0]


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"cpu_seconds": 0}, "cpu_seconds"),
        ({"cpu_seconds": 0.5}, "cpu_seconds"),
        ({"case_seconds": 0}, "case_seconds"),
        ({"total_seconds": -1}, "total_seconds"),
        ({"compile_seconds": 0}, "compile_seconds"),
        ({"memory_mb": 63}, "memory_mb"),
        ({"float_tolerance": 1.0}, "float_tolerance"),
        ({"speed_bonus": -1.0}, "speed_bonus"),
        ({"parallel": 0}, "parallel"),
    ],
)
def test_parameters_are_checked(parameters, field):
    with pytest.raises(ConfigError, match=field):
        code_accuracy([], [], [], **parameters)


def test_parameters_from_a_configuration():
    judge = with_parameters("code_accuracy", {"cpu_seconds": 1, "language": "python", "exact_output": True})
    assert judge(["p"], ["print(2)"], [[{"input": "", "output": "2"}]]) == [0.0]
    assert judge(["p"], ["print(2)"], [[{"input": "", "output": "2\n"}]]) == [1.0]
    with pytest.raises(ConfigError, match="cpu_seconds"):
        with_parameters("code_accuracy", {"cpu_seconds": 0})


def test_the_faster_of_two_correct_programs_is_preferred():
    slow = "sum(range(20_000_000))\n" + DOUBLE
    wrong = "def double(x): return 0"
    completions = [DOUBLE, slow, wrong, DOUBLE, slow]
    arguments = (["p", "p", "p", "q", "r"], completions, [["assert double(2) == 4"]] * 5)
    assert code_accuracy(*arguments) == [1.0, 1.0, 0.0, 1.0, 1.0]
    assert code_accuracy(*arguments, speed_bonus=0.2) == [1.2, 1.0, 0.0, 1.0, 1.0]
    assert code_accuracy(["p"] * 2, [DOUBLE] * 2, [["assert double(2) == 4"]] * 2, speed_bonus=0.2) == [1.0, 1.0]


def test_without_isolation():
    """Verdicts are the same; what a program must not be able to fake, it cannot fake here either."""
    judge = functools.partial(code_accuracy, unsafe_no_isolation=True)
    tests = ["assert double(2) == 4"]
    programs = [
        DOUBLE,
        "def double(x): return 0",
        FORGERIES["exit at once"],
        FORGERIES["an object that equals everything"],
    ]
    assert judge(["p"] * 4, programs, [tests] * 4) == [1.0, 0.0, 0.0, 0.0]
    assert judge(["p"], ["print(2)"], [[{"input": "", "output": "2"}]]) == [1.0]
    if code_module._compiler():
        assert judge(["p"], [SUM], [[{"input": "1 2", "output": "3"}]], language=["cpp"]) == [1.0]


def test_refusal_names_the_way_out(monkeypatch):
    def refuse(unsafe_no_isolation):
        raise ConfigError("no")

    monkeypatch.setattr(code_module, "shared_sandbox", refuse)
    with pytest.raises(ConfigError):
        code_accuracy(["p"], [DOUBLE], [["assert double(2) == 4"]])


def test_in_the_pool_hung_programs_cost_their_own_scores():
    """A hung reward delays its batch by at most its deadline, and leaves nothing behind."""
    tests, before = [["assert double(2) == 4"]] * 4, set(children_of(os.getpid()))
    completions = [DOUBLE, "def double(x):\n    while True: pass", DOUBLE, "import time\ntime.sleep(60)"]
    with RewardPool([code_accuracy], num_workers=2, timeout=3.0, rows_per_task=1) as pool:
        assert pool.submit(["p"], [DOUBLE], {"tests": tests[:1]}).result().total == [1.0]
        start = time.monotonic()
        handle = pool.submit(["p"] * 4, completions, {"tests": tests})
        ours = set()
        # Two workers, each with a keeper, and of a program two supervisors, inits and ends.
        while len(ours) < 12 and time.monotonic() - start < 2.5:
            ours = set(children_of(os.getpid())) - before
        batch = handle.result()
        assert time.monotonic() - start < 3.0 + 1.0
        assert batch.rewards[0, 0] == 1.0 and batch.timeouts >= 1 and math.isnan(batch.rewards[3, 0])
    assert len(ours) >= 12
    deadline = time.monotonic() + 5
    while ours & set(children_of(os.getpid())) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not ours & set(children_of(os.getpid()))


def children_of(pid):
    """All descendants that have not ended."""
    parents, found = {}, []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            parents[int(path.parent.name)] = int(parent)
    for child in parents:
        ancestor = child
        while ancestor in parents and ancestor != pid:
            ancestor = parents[ancestor]
        if ancestor == pid and child != pid:
            found.append(child)
    return found


def test_importing_rewards_starts_nothing():
    code = "import sys, r1jax.rewards\nprint('jax' in sys.modules, 'ctypes' in sys.modules and 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout.split()[0] == "False"


# Values that cross between a program and its tests.

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.complex_numbers(allow_nan=False) | st.binary().map(bytearray) | st.fractions() | st.dates() | st.timedeltas()
    | st.builds(range, st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 3)),
    lambda inner: st.lists(inner, max_size=4)
    | st.lists(inner, max_size=4).map(tuple)
    | st.sets(st.integers() | st.text(), max_size=4)
    | st.frozensets(st.integers() | st.text(), max_size=4)
    | st.dictionaries(st.integers() | st.text() | st.tuples(st.integers(), st.text()), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


def _typed(value):
    """A value with the types of all that is in it, and the signs of zeros; sets in any order."""
    if type(value) in (list, tuple):
        return type(value), [_typed(item) for item in value]
    if type(value) in (set, frozenset):
        return type(value), {_typed(item) for item in value}
    if type(value) is dict:
        return dict, [(_typed(key), _typed(item)) for key, item in value.items()]
    return type(value), value, repr(value)


@given(PLAIN)
@settings(max_examples=300, deadline=None)
@example(-(2**4096))
@example(float("-0"))
@example("\ud800")
def test_values_survive(value):
    back = Values().decode(Values().encode(value))
    assert _typed(back) == _typed(value)


@given(st.binary(max_size=60) | st.lists(st.sampled_from(list(b"NTFfcrvgiubaltszdoh\0\1\2\3")), max_size=60).map(bytes))
@settings(max_examples=1000, deadline=None)
def test_what_is_no_value_is_refused(data):
    """Whatever a program sends is a value of an exact built-in type, or an ordinary exception."""
    try:
        value = Values().decode(data)
    except Exception:
        return
    exact = {type(None), bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict, range}
    assert type(value) in exact or type(value) is Remote


def test_only_known_types_are_constructed():
    def encoded(name, *arguments):
        return b"v" + Values().encode((name, arguments))

    assert Values().decode(encoded("fractions.Fraction", 1, 2)).denominator == 2
    for name in ("os.system", "builtins.eval", "subprocess.run", "collections.abc.Sized", "fractions.math"):
        with pytest.raises(ValueError, match="no type"):
            Values().decode(encoded(name, "true"))


def test_deep_values_are_refused():
    with pytest.raises(RecursionError):
        Values().decode((b"l" + (1).to_bytes(8, "little")) * 100_000 + b"N")


def test_subclasses_cross_as_what_they_extend():
    class Yes(list):
        def __eq__(self, other):
            return True

    class Number(int):
        pass

    assert type(Values().decode(Values().encode(Yes([1])))) is list
    back = Values().decode(Values().encode([Number(3), json.loads("[1.5]")]))
    assert back == [3, [1.5]] and type(back[0]) is int
    assert type(Values().decode(Values().encode(object()))) is Remote
    assert signal.SIGKILL == Values().decode(Values().encode(signal.SIGKILL))


@pytest.mark.parametrize(
    "source, given, written",
    [
        ("n = int(input())\nif n == 3:\n    print('YES')\n    exit()\nprint('NO')", "3", "YES"),
        ("print('a')\nquit()", "", "a"),
        ("import os\nprint(len(os.read(0, os.fstat(0).st_size)))", "x" * 200_000, "200000"),
        ("import mmap\nprint(len(mmap.mmap(0, 0, access=mmap.ACCESS_READ)))", "abc", "3"),
        ("import sys\nif __name__ == '__main__':\n    print(sys.argv, sum(map(int, sys.stdin)))",
         "1\n2", "['program.py'] 3"),
        ("print(open('/dev/stdin').read())", "hi", "hi"),
        ("import threading, sys\nsys.setrecursionlimit(10**6)\nthreading.stack_size(64 << 20)\n"
         "def f(n):\n    return n and 1 + f(n - 1)\n"
         "t = threading.Thread(target=lambda: print(f(50_000)))\nt.start()\nt.join()", "", "50000"),
    ],
)  # fmt: skip
def test_idioms_of_contests(source, given, written):
    assert grade_program(source, [{"input": given, "output": written}]).passed, source


SOLUTION = "```python\ndef f(x):\n    return x + 1\n```"


@pytest.mark.parametrize(
    "completion",
    [
        f"{SOLUTION}\nExample output:\n```\n3\n```",
        f"{SOLUTION}\nUse it:\n```python\nprint(f(1))\n```",
        f"<think>a</think><answer>{SOLUTION}</answer>",
        "<think>a</think><answer>def f(x): return x + 1</answer>",
        SOLUTION.replace("python", "python:main.py"),
    ],
)
def test_a_program_among_other_blocks(completion):
    assert code_accuracy(["p"], [completion], [["assert f(1) == 2"]]) == [1.0]


def test_thinking_that_the_prompt_opened():
    tests = [["assert f(1) == 2"]]
    assert code_accuracy(["p<think>\n"], [f"perhaps {SOLUTION}"], tests) == [0.0]
    assert code_accuracy(["p<think>\n"], [f"so</think>{SOLUTION}"], tests) == [1.0]


@pytest.mark.parametrize(
    "program, test",
    [
        ("def f(x): raise StopIteration", "assert all(map(lambda p: f(p[0]) == p[1], [(1, 2), (2, 3)]))"),
        ("def f(x): raise StopIteration", "got = list(map(f, [1, 2]))\nfor a, b in zip(got, [5, 6]): assert a == b"),
        ("class R:\n    def __len__(self): return 2\n    def __iter__(self): return iter(())\ndef f(x): return R()",
         "out = f(1)\nassert len(out) == 2 and all(a == b for a, b in zip(out, [5, 6]))"),
    ],
)  # fmt: skip
def test_a_program_does_not_end_the_tests_loops(program, test):
    assert grade_program(program, [test]).passed is False


def test_generators_end_as_they_should():
    assert grade_program("def f(n):\n    yield from range(n)", ["assert list(f(3)) == [0, 1, 2]"]).passed
    assert grade_program(
        "def f(n):\n    yield 1", ["g = f(1)\nassert next(g) == 1\nassert next(g, None) is None"]
    ).passed


def test_a_test_that_asserts_nothing_is_malformed():
    verdict = grade_program("def f(x): return 2", ["f(1) == 3"])
    assert verdict.passed is None and "asserts nothing" in verdict.reason
