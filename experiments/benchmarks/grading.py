"""How many completions a second the graders judge, through the pool that training uses.

    python experiments/benchmarks/grading.py --what math|code [--workers 2] [--data ../shared/data]

Every (gold answer, completion) pair is judged once: a cache cannot help, and in training, where samples of one problem
repeat each other's answers, it does. Workers start before the clock does; that takes them one to two seconds.

`math`: MATH-500's solutions against their own answers and other problems', four models' solutions of GSM8K, LaTeX
fractions, and answers that are right but written otherwise, each of which only algebra can recognise. The mixture draws
from all the others, and one in twenty of its answers needs algebra.

`code`: solutions of HumanEval and MBPP under their tests, programs that know CodeContests' outputs by heart (a run for
each of its inputs), the smallest programs of either kind, and a batch of which one program sleeps beyond the deadline.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from r1jax.errors import ConfigError, DataError, exit_on_error
from r1jax.rewards import RewardPool
from r1jax.rewards.code import function_tests


@dataclasses.dataclass(frozen=True)
class Options:
    what: str = "math"
    """The grader: math, or code."""
    workers: int = 2
    data: Path = Path("../shared/data")
    """The folder with math500/test.jsonl and gsm8k/example_model_solutions.jsonl; or with humaneval/HumanEval.jsonl.gz,
    mbpp/sanitized-mbpp.json and code_contests/test.json."""
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Work:
    """Completions to be judged by the reward function `reward`, with its further columns."""

    name: str
    reward: str
    completions: list[str]
    columns: dict[str, list]
    right: int | None = None
    """How many must be judged right; None where that is not known beforehand."""
    timeout: float = 600.0


def read(path: Path) -> list[dict]:
    if not path.exists():
        raise DataError(f"data: {path} does not exist; give the folder that holds {path.parent.name}/{path.name}")
    data = path.read_bytes()
    if path.suffix == ".json":
        return json.loads(data)
    return [json.loads(line) for line in (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines()]


def answers(name: str, pairs: list[tuple[str, str]], right: int | None = None) -> Work:
    pairs = list(dict.fromkeys(pairs))
    golds, completions = map(list, zip(*pairs, strict=True))
    return Work(name, "math_accuracy", completions, {"answer": golds}, right)


def math_work(options: Options) -> list[Work]:
    draw = random.Random(options.seed)
    problems = read(options.data / "math500/test.jsonl")
    own = [(row["answer"], row["solution"]) for row in problems]
    others = [
        (row["answer"], problems[(i + shift) % len(problems)]["solution"])
        for shift in (1, 2, 3, 4)
        for i, row in enumerate(problems)
    ]
    models = [
        (row["ground_truth"].rpartition("A: ")[2], row[name]["solution"])
        for row in read(options.data / "gsm8k/example_model_solutions.jsonl")
        for name in row
        if name not in ("question", "ground_truth")
    ]
    fractions = [fraction_pair(draw, equal=i % 2 == 0) for i in range(2000)]
    algebra = list(dict.fromkeys(rewritten(draw) for _ in range(200)))
    mixture = draw.sample(own + others + models + fractions, 1900) + algebra[:100]
    draw.shuffle(mixture)
    return [
        answers("MATH-500, its own answers", own, right=len(own)),
        answers("MATH-500, others' answers", others),
        answers("GSM8K, four models' solutions", models),
        answers("LaTeX fractions", fractions),
        answers("right, and only algebra can tell", algebra, right=len(algebra)),
        answers("mixture, 5% for algebra", mixture),
    ]


def fraction_pair(draw: random.Random, equal: bool) -> tuple[str, str]:
    a, b, k = draw.randint(1, 999), draw.randint(2, 999), draw.randint(2, 9)
    written = draw.choice([r"\frac{%d}{%d}", r"\dfrac{%d}{%d}", "%d/%d", r"-\tfrac{-%d}{%d}"])
    return rf"\frac{{{a}}}{{{b}}}", rf"Hence $x = \boxed{{{written % (a * k, b * k + (not equal))}}}$."


def rewritten(draw: random.Random) -> tuple[str, str]:
    """A gold answer and a completion that means the same, in another form."""
    a, b, c = draw.randint(2, 40), draw.randint(2, 40), draw.choice([2, 3, 5, 6, 7, 10, 11, 13, 14, 15, 17, 19])
    gold, answer = draw.choice(
        [
            (rf"x^2+{a + b}x+{a * b}", f"(x+{a})(x+{b})"),
            (rf"{a}\sqrt{{{b * b * c}}}", rf"{a * b}\sqrt{{{c}}}"),
            (rf"\frac{{{a}}}{{\sqrt{{{c}}}+{b}}}", rf"{a}(\sqrt{{{c}}}+{b})^{{-1}}"),
            (rf"\ln {a * b}", rf"\ln {a}+\ln {b}"),
            (rf"({a}-{b}i)({c}+i)", rf"{a * c + b}+{a}i-{b * c}i"),
        ]
    )
    return gold, rf"The answer is $\boxed{{{answer}}}$."


def code_work(options: Options) -> list[Work]:
    humaneval = [
        (
            row["prompt"] + row["canonical_solution"],
            function_tests(row["prompt"], row["test"], row["entry_point"]),
        )
        for row in read(options.data / "humaneval/HumanEval.jsonl.gz")
    ]
    mbpp = [
        (row["code"], row["test_imports"] + row["test_list"]) for row in read(options.data / "mbpp/sanitized-mbpp.json")
    ]
    contests = [
        [{"input": i, "output": o} for i, o in zip(row["tests"]["inputs"], row["tests"]["outputs"], strict=True)]
        for row in read(options.data / "code_contests/test.json")
    ]
    replays = [(f"print({ {c['input']: c['output'] for c in cases}!r}[open(0).read()])", cases) for cases in contests]
    calls = [("def f(x): return x + 1", ["assert f(1) == 2", "assert f(2) == 3"])] * 200
    stdin = [("print(int(input()) + 1)", [{"input": "1", "output": "2"}])] * 200
    # Of two tasks of 16 programs, one is lost.
    hung = [("import time; time.sleep(60)", calls[0][1]), *calls[:31]]
    return [
        programs("HumanEval, its solutions", humaneval, right=len(humaneval)),
        programs("MBPP, its solutions", mbpp, right=len(mbpp)),
        programs(f"CodeContests by heart, {sum(map(len, contests))} runs", replays, right=len(replays)),
        programs("smallest, called", calls, right=len(calls)),
        programs("smallest, stdin to stdout", stdin, right=len(stdin)),
        programs("one of 32 sleeps, deadline 3 s", hung, right=16, timeout=3.0),
    ]


def programs(name: str, pairs: list[tuple[str, list]], **options) -> Work:
    completions, tests = map(list, zip(*pairs, strict=True))
    return Work(name, "code_accuracy", completions, {"tests": tests}, **options)


WORK: dict[str, Callable[[Options], list[Work]]] = {"math": math_work, "code": code_work}
WARM = {"math_accuracy": ("x(y+1)", {"answer": "xy+x"}), "code_accuracy": ("x = 1", {"tests": ["assert x == 1"]})}


def main(options: Options) -> None:
    if options.what not in WORK:
        raise ConfigError(f"what={options.what!r}: must be one of {', '.join(WORK)}")
    work = WORK[options.what](options)
    table = Table(title=f"{options.what}: gradings through {options.workers} reward workers")
    for column in ("completions", "distinct", "right", "seconds", "per second"):
        table.add_column(column, justify="left" if column == "completions" else "right")
    for each in work:
        rows = len(each.completions)
        with RewardPool([each.reward], num_workers=options.workers, timeout=each.timeout) as pool:
            warm(pool, each.reward, options.workers)
            start = time.perf_counter()
            scores = pool.submit(["Solve it."] * rows, each.completions, each.columns).result()
            seconds = time.perf_counter() - start
        right = int((scores.rewards[:, 0] == 1).sum())
        if each.right is not None and right != each.right:
            raise SystemExit(f"{each.name}: {right} judged right, {each.right} are")
        table.add_row(each.name, f"{rows}", f"{right}", f"{seconds:.2f}", f"{rows / seconds:.0f}")
    Console(width=120).print(table)


def warm(pool: RewardPool, reward: str, workers: int) -> None:
    """Has every worker start its algebra, or its sandbox."""
    rows = 16 * workers  # as many as a worker takes at a time, for each
    completion, columns = WARM[reward]
    pool.submit([""] * rows, [completion] * rows, {name: [value] * rows for name, value in columns.items()}).result()


if __name__ == "__main__":
    with exit_on_error():
        main(tyro.cli(Options, description=__doc__))
