"""The accuracy reward for programs: what one does in a sandbox, judged by tests that it cannot reach."""

import ast
import dataclasses
import functools
import importlib.util
import marshal
import math
import os
import re
import secrets
import shutil
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from r1jax.errors import DataError, check_field
from r1jax.rewards.language import LANGUAGES
from r1jax.rewards.sandbox import PYTHON, PYTHON_FLAGS, Limits, Outcome, Sandbox, shared_sandbox

_LANGUAGES = {
    **dict.fromkeys(("python", "python3", "py", "py3"), "python"),
    **dict.fromkeys(("cpp", "c++", "cc", "cxx", "c++17", "cpp17"), "cpp"),
}
_LAUNCH = (  # exit and quit come from a part of Python that does not start here
    "import builtins, sys; builtins.exit = builtins.quit = sys.exit; sys.argv = [__file__ := 'program.py']; "
    "exec(compile(open(__file__, 'rb').read(), __file__, 'exec'))"
)
_DEFINES = re.compile(r"^[ \t]*(?:async[ \t]+)?(?:def|class)[ \t]|^\w+[ \t]*=", re.M)
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)[^`\n]*")
_DECIMAL = re.compile(r"[+-]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][+-]?[0-9]{1,4})?")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_SLOWER, _SLOWER_SECONDS = 1.5, 0.05  # what differs by less is noise
_LONGEST, _LONGEST_BUILT = 1 << 20, 16 << 20  # bytes of a program, and of what a compiler makes of it


@dataclasses.dataclass(frozen=True)
class CodeConfig:
    """How programs are run and judged: the parameters of `code_accuracy`. Raises `ConfigError` for what cannot work."""

    cpu_seconds: int = 5
    """CPU time of one run of a program, with one input or under all assertions, and of the assertions. It decides on a
    busy machine as on an idle one, so wall time is the more generous."""
    case_seconds: float = 20.0
    """Wall time of one case: one input, or one assertion."""
    total_seconds: float = 60.0
    """Wall time of all cases of one program."""
    compile_seconds: float = 30.0
    """Wall and CPU time of a compiler."""
    memory_mb: int = 512
    """Address space of a program, in MiB."""
    exact_output: bool = False
    """Compare output byte for byte. Otherwise white space at the ends of lines and empty lines at the end are free."""
    float_tolerance: float | None = None
    """Relative, and absolute below 1: where the expected output has a decimal number, one that is so near will do."""
    unsafe_no_isolation: bool = False
    """Run programs with no isolation at all: see `r1jax.rewards.sandbox.Sandbox`."""

    def __post_init__(self):
        for name in ("case_seconds", "total_seconds", "compile_seconds"):
            check_field(getattr(self, name) > 0, name, getattr(self, name), "a number > 0")
        check_field(self.memory_mb >= 64, "memory_mb", self.memory_mb, "at least 64, which Python alone needs")
        ok = isinstance(self.cpu_seconds, int) and self.cpu_seconds >= 1
        check_field(ok, "cpu_seconds", self.cpu_seconds, "an integer >= 1: the system counts whole seconds")
        ok = self.float_tolerance is None or 0 <= self.float_tolerance < 1
        check_field(ok, "float_tolerance", self.float_tolerance, "None, or a number in [0, 1)")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of one program."""

    passed: bool | None
    """None where it cannot be judged: malformed tests, or a language that this machine cannot run."""
    reason: str
    """Which case failed and how; empty where it passed."""
    cpu_seconds: float = 0.0
    """Of a program that passed, over all cases, with its interpreter's start."""


def code_accuracy(
    prompts: list[str],
    completions: list[str],
    tests: list[Sequence[str] | Sequence[Mapping[str, str]]],
    language: str | list[str | None] | None = None,
    *,
    cpu_seconds: int = CodeConfig.cpu_seconds,
    case_seconds: float = CodeConfig.case_seconds,
    total_seconds: float = CodeConfig.total_seconds,
    compile_seconds: float = CodeConfig.compile_seconds,
    memory_mb: int = CodeConfig.memory_mb,
    exact_output: bool = CodeConfig.exact_output,
    float_tolerance: float | None = CodeConfig.float_tolerance,
    unsafe_no_isolation: bool = CodeConfig.unsafe_no_isolation,
    speed_bonus: float = 0.0,
    parallel: int | None = None,
    **columns,
) -> list[float | None]:
    """1.0 where the completion's program passes all of its tests, else 0.0; None where it cannot be judged.

    The program is the completion's last fenced block of code (`extract_program`). A problem's `tests` are either

    - assertions, as Python sources that run one after the other with the program's names (call-based), or
    - `{"input", "output"}`: what the program reads from standard input and must write to standard output.

    Malformed tests give None, also when they only show at run time: tests that do not compile, import what is not
    there, or never use the program. Names that tests use without defining them are the program's, which may answer
    for them as it likes, so that tests must bring their own helpers (`function_tests`).

    Args:
      language: of a program, "python" or "cpp"; None, or a language that people speak (the column is also
        `language_consistency`'s), leaves it to the fence, and else it is Python. C++ programs are compiled in the
        sandbox, take `{"input", "output"}` tests only, and give None where the machine has no compiler.
      speed_bonus: with b > 0, a correct program scores 1 + b * n / m, where m is how many other correct programs of
        the same prompt this call sees, and n how many of these need 1.5 times its CPU time and 50 ms more: of two
        correct programs the faster is preferred. In a `RewardPool` give `rows_per_task=None`.
      parallel: programs at a time; None: as many as there are cores.
      cpu_seconds, case_seconds, total_seconds, compile_seconds, memory_mb, exact_output, float_tolerance,
        unsafe_no_isolation: as in `CodeConfig`.

    Raises `ConfigError` for parameters that cannot work, and where the machine can give no isolation.
    """
    config = CodeConfig(
        cpu_seconds,
        case_seconds,
        total_seconds,
        compile_seconds,
        memory_mb,
        exact_output,
        float_tolerance,
        unsafe_no_isolation,
    )
    check_field(speed_bonus >= 0, "speed_bonus", speed_bonus, "a number >= 0")
    check_field(parallel is None or parallel >= 1, "parallel", parallel, "None, or an integer >= 1")
    languages = language if isinstance(language, list) else [language] * len(completions)
    # Where the prompt has opened the thinking, a completion begins inside it.
    opened = ("<think>" if prompt.rstrip().endswith("<think>") else "" for prompt in prompts)
    texts = [start + completion for start, completion in zip(opened, completions, strict=True)]
    rows = list(zip(texts, tests, languages, strict=True))
    if not rows:
        return []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(min(parallel or cores, len(rows))) as threads:
        verdicts = list(threads.map(lambda row: grade_completion(*row, config), rows))
    scores = [None if verdict.passed is None else float(verdict.passed) for verdict in verdicts]
    if speed_bonus:
        for i, verdict in enumerate(verdicts):
            others = [v for j, v in enumerate(verdicts) if v.passed and j != i and prompts[j] == prompts[i]]
            if verdict.passed and others:
                limit = max(_SLOWER * verdict.cpu_seconds, verdict.cpu_seconds + _SLOWER_SECONDS)
                scores[i] += speed_bonus * sum(other.cpu_seconds > limit for other in others) / len(others)
    return scores


def grade_completion(
    completion: str, tests: Any, language: str | None = None, config: CodeConfig = CodeConfig()
) -> Verdict:
    """Extracts a completion's program and judges it. Raises `ConfigError` where the machine can give no isolation."""
    program, fence = extract_program(completion, calls=_kind(tests) == "asserts")
    if language in LANGUAGES:
        language = None
    if language is not None and language.lower() not in _LANGUAGES:
        return Verdict(None, f"language={language!r}: use python or cpp")
    return grade_program(program, tests, _LANGUAGES[(language or fence or "python").lower()], config)


def grade_program(program: str, tests: Any, language: str = "python", config: CodeConfig = CodeConfig()) -> Verdict:
    """Judges a program in `language` "python" or "cpp" by `tests` as in `code_accuracy`. Raises `ConfigError`."""
    kind = _kind(tests)
    if kind is None:
        return Verdict(
            None, f'tests={tests!r:.80}: give a list of assertions, or of {{"input", "output"}}, all strings'
        )
    try:
        source = program.encode()
    except UnicodeEncodeError:
        return Verdict(False, "it has lone surrogates")
    if len(source) > _LONGEST:
        return Verdict(False, f"it is longer than {_LONGEST} bytes")
    sandbox = shared_sandbox(config.unsafe_no_isolation)
    if kind == "asserts":
        if language != "python":
            return Verdict(False, "its tests call Python functions")
        return _grade_calls(sandbox, source, tests, config)
    if language == "python":
        command, files = [PYTHON, *PYTHON_FLAGS, "-c", _LAUNCH], {"program.py": source}
    else:
        compiler = _compiler()
        if compiler is None:
            return Verdict(None, "no C++ compiler: install g++ or clang++")
        built = _compile(sandbox, compiler, source, config)
        if not built.ok:
            return Verdict(False, f"it does not compile: {_ending(built)}")
        command, files = ["./program"], {"program": built.stdout}
    return _grade_outputs(sandbox, command, files, tests, config)


def extract_program(completion: str, calls: bool = False) -> tuple[str, str | None]:
    """A completion's program and its language as its fence has it, None where there is none.

    Of the text after the thinking, or of the last `<answer>` in it, the last fenced block in a language that can be
    run; else the last without a language, which may as well be what a program prints; without such a block, the text.
    With `calls` a block that defines something goes before one that does not, which may be an example of use. A last
    block that is not closed ends with the text. Thinking that does not end has no program; where nothing comes after
    it, it is searched itself.
    """
    before, _, after = completion.rpartition("</think>")
    text = (after if after.strip() else before.rpartition("<think>")[2]).partition("<think>")[0]
    _, answered, answer = text.rpartition("<answer>")
    if answered and answer.strip():
        text = answer.partition("</answer>")[0]
    blocks, opened, lines = [], None, []
    for line in text.splitlines(keepends=True):
        fence = _FENCE.fullmatch(line.rstrip())
        if opened is None:
            if fence:
                opened, lines = fence, []
        elif fence and fence[1].startswith(opened[1]) and not fence[2]:
            blocks.append((opened[2], "".join(lines)))
            opened = None
        else:
            lines.append(line)
    if opened is not None:
        blocks.append((opened[2], "".join(lines)))
    blocks = [(tag.partition(":")[0], block) for tag, block in blocks]
    blocks = [(tag, block) for tag, block in blocks if not tag or tag.lower() in _LANGUAGES]
    if not blocks:
        return text, None
    if calls and any(_DEFINES.search(block) for _, block in blocks):
        blocks = [(tag, block) for tag, block in blocks if _DEFINES.search(block)]
    tag, block = next((each for each in reversed(blocks) if each[0]), blocks[-1])
    return block, tag or None


def same_output(actual: bytes, expected: str, config: CodeConfig = CodeConfig()) -> bool:
    """Whether a program wrote what was expected, all of it and no more."""
    try:
        text = actual.decode()
    except UnicodeDecodeError:
        return False
    if config.exact_output:
        return text == expected
    ours, theirs = _lines(text), _lines(expected)
    if ours == theirs or config.float_tolerance is None or len(ours) != len(theirs):
        return ours == theirs
    return all(_same_line(a, e, config.float_tolerance) for a, e in zip(ours, theirs, strict=True))


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _same_line(actual: str, expected: str, tolerance: float) -> bool:
    ours, theirs = actual.split(), expected.split()
    return len(ours) == len(theirs) and all(_same_word(a, e, tolerance) for a, e in zip(ours, theirs, strict=True))


def _same_word(actual: str, expected: str, tolerance: float) -> bool:
    """Only a decimal number that is expected as one may differ: integers are exact, and so are nan and inf."""
    if actual == expected or not (_DECIMAL.fullmatch(expected) and _NUMBER.fullmatch(actual)):
        return actual == expected
    return abs(float(actual) - float(expected)) <= tolerance * max(1.0, abs(float(expected)))


def _kind(tests: Any) -> str | None:
    """ "asserts", "outputs", or None for what is neither."""
    if not isinstance(tests, list | tuple) or not tests:
        return None
    if all(isinstance(test, str) for test in tests):
        return "asserts"
    fields = ("input", "output")
    if all(isinstance(t, Mapping) and all(isinstance(t.get(field), str) for field in fields) for t in tests):
        return "outputs"
    return None


# Call-based tests: the program in one sandbox, the tests in another, a channel between them.


def _grade_calls(sandbox: Sandbox, source: bytes, tests: Sequence[str], config: CodeConfig) -> Verdict:
    secret = secrets.token_hex(16)
    theirs, ours = socket.socketpair()
    command = [PYTHON, *PYTHON_FLAGS, "call_bridge.pyc"]
    seconds = config.total_seconds
    program = sandbox.start(
        [*command, "program.py"],
        files={**_bridge(), "program.py": source},
        limits=Limits(seconds + 1, config.cpu_seconds, config.memory_mb),
        channel=theirs,
        discard_output=True,
    )
    try:
        told = sandbox.run(
            [*command, "tests"],
            stdin=marshal.dumps((secret, config.case_seconds, [str(test) for test in tests])),
            files=_bridge(),
            limits=Limits(seconds, config.cpu_seconds, config.memory_mb),
            channel=ours,
        )
        word, _, rest = told.stdout.decode(errors="replace").partition(" ")
        kind, case, detail = rest.split(" ", 2) if word == secret else ("", "", "")
        if kind == "passed":  # its end of the channel is closed: an honest program ends, and its time is known
            return Verdict(True, "", program.result().cpu_seconds)
    finally:
        program.end()
    if not kind:
        return Verdict(False, f"its tests did not end: {_ending(told)}")
    if kind == "malformed":
        return Verdict(None, f"tests[{case}]: {detail}")
    return Verdict(False, f"case {case}: {detail if detail != 'it ended' else _ending(program.result())}")


def function_tests(header: str, check: str, entry_point: str) -> list[str]:
    """Tests in HumanEval's layout, for `code_accuracy`: `check` defines check(candidate); `header` is the prompt.

    What the header defines besides the function stands in the tests as well: some checks call it, and it must not be
    the program that answers for them. Raises `DataError` where the header is no Python.
    """
    try:
        tree = ast.parse(header)
    except SyntaxError as error:
        raise DataError(
            f"header={header!r:.60}: it does not compile ({error}); give a function's head and docstring"
        ) from None
    helpers = [node for node in tree.body if getattr(node, "name", None) != entry_point]
    return ["\n".join([*map(ast.unparse, helpers), check, f"check({entry_point})"])]


@functools.cache
def _bridge() -> dict[str, bytes]:
    """Both ends' files, compiled: compiling them would be the better part of a small program's time."""
    header = importlib.util.MAGIC_NUMBER + bytes(12)
    files = [Path(__file__).with_name(f"{name}.py") for name in ("call_bridge", "call_values")]
    return {f"{file.stem}.pyc": header + marshal.dumps(compile(file.read_bytes(), file.name, "exec")) for file in files}


# Tests by standard input and output: one sandbox a case, and the comparison here.


def _grade_outputs(
    sandbox: Sandbox,
    command: list[str],
    files: dict[str, bytes],
    tests: Sequence[Mapping[str, str]],
    config: CodeConfig,
) -> Verdict:
    deadline, cpu = time.monotonic() + config.total_seconds, 0.0
    for i, test in enumerate(tests):
        seconds = min(config.case_seconds, deadline - time.monotonic())
        if seconds <= 0:
            return Verdict(False, f"case {i}: it ran out of time for all cases")
        try:
            given, expected = test["input"].encode(), test["output"].encode()
        except UnicodeEncodeError:
            return Verdict(None, f"case {i}: it has lone surrogates")
        limits = Limits(
            seconds,
            config.cpu_seconds,
            config.memory_mb,
            stack_mb=8 if command[0] == PYTHON else config.memory_mb // 2,
            output_bytes=len(expected) + (1 << 16),  # what is longer cannot be right
        )
        outcome = sandbox.run(command, stdin=given, files=files, limits=limits)
        if not outcome.ok:
            return Verdict(False, f"case {i}: {_ending(outcome)}")
        if not same_output(outcome.stdout, test["output"], config):
            return Verdict(False, f"case {i}: wrong output")
        cpu += outcome.cpu_seconds
    return Verdict(True, "", cpu)


@functools.cache
def _compiler() -> str | None:
    folders = "/usr/bin:/usr/local/bin:/bin"
    return shutil.which("g++", path=folders) or shutil.which("clang++", path=folders)


def _compile(sandbox: Sandbox, compiler: str, source: bytes, config: CodeConfig) -> Outcome:
    """Compiles C++; the outcome's standard output is the executable."""
    build = f"{compiler} -std=c++17 -O2 -o program program.cpp && exec cat program"
    return sandbox.run(
        ["/bin/sh", "-c", build],
        files={"program.cpp": source},
        limits=Limits(
            config.compile_seconds,
            math.ceil(config.compile_seconds),
            memory_mb=1024,
            threads=8,
            output_bytes=_LONGEST_BUILT,
            forks=True,
        ),
    )


def _ending(outcome: Outcome) -> str:
    if outcome.end:
        ends = {"time": "it ran out of time", "output": "it wrote too much", "cancelled": "it ended"}
        return ends[outcome.end]
    if outcome.exit_code == -signal.SIGXCPU:
        return "it ran out of CPU time"
    return f"exit code {outcome.exit_code}: {_tail(outcome.stderr)}"


def _tail(stderr: bytes) -> str:
    return stderr.decode(errors="replace").strip()[-300:]
