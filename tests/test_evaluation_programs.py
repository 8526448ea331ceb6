"""Benchmarks of programs: what a completion's program is, LiveCodeBench's packed tests, Codeforces and its ratings."""

import base64
import datetime
import itertools
import json
import os
import pickle
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.errors import ConfigError, DataError
from r1jax.evaluation.benchmarks import BENCHMARKS, livecodebench
from r1jax.evaluation.benchmarks.elo import Contest, contest_rating, elo_rating, percentile, rate
from r1jax.evaluation.benchmarks.programs import contest_prompt, fenced, with_header
from r1jax.rewards.code import extract_program
from r1jax.rewards.sandbox import shared_sandbox

try:
    shared_sandbox(False)
    REFUSED = None
except ConfigError as error:
    REFUSED = error
runs_programs = pytest.mark.skipif(REFUSED is not None, reason=f"no isolation on this machine: {REFUSED}")


def put(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def score(name, problem, *completions):
    columns = {column: [value] * len(completions) for column, value in problem.columns.items()}
    return BENCHMARKS[name].score([problem.prompt] * len(completions), list(completions), **columns)


HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": (
        "from typing import List\n\n\ndef twice(x):\n    return 2 * x\n\n\n"
        'def total(xs: List[int]) -> int:\n    """Sum."""\n'
    ),
    "entry_point": "total",
    "canonical_solution": "    return sum(xs)\n",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == twice(3) // 2\n    assert candidate([]) == 0\n",
}


@runs_programs
def test_humaneval(tmp_path):
    (problem,) = BENCHMARKS["humaneval"].load(put(tmp_path / "a.jsonl", [HUMANEVAL]), 0)
    assert problem.id == "HumanEval/0" and HUMANEVAL["prompt"].rstrip() in problem.prompt
    whole = "def total(xs: List[int]):\n    return sum(xs)\n"
    completions = {
        HUMANEVAL["canonical_solution"]: 1.0,  # a bare body continues the prompt
        f"Here:\n```python\n{whole}```": 1.0,  # without the imports that the prompt has
        f"<think>```python\nbad\n```</think>\n```\nfrom __future__ import annotations\n{whole}```\nDone.": 1.0,
        "```python\ntotal = sum\n```": 1.0,
        "```python\ndef total(xs):\n    return sum(xs) + 1\n```": 0.0,
        "```python\ndef total(xs):\n    return None\n```": 0.0,
        "    return sum(xs) + 1\n": 0.0,
        "I cannot.": 0.0,
        "": 0.0,
        f"<think>```python\n{whole}```": 0.0,  # cut off in its thinking
        # A check calls the prompt's helper: the program must not answer for it.
        "```python\ndef twice(x):\n    return 0\ndef total(xs):\n    return 0\n```": 0.0,
    }
    assert dict(zip(completions, score("humaneval", problem, *completions), strict=True)) == completions


@runs_programs
def test_mbpp(tmp_path):
    rows = [
        {"task_id": n, "prompt": "Area of a circle?", "test_imports": ["import math"],
         "test_list": ["assert math.isclose(area(1), math.pi)", "assert area(0) == 0"]}
        for n in (10, 11, 510, 511)
    ]  # fmt: skip
    problems = BENCHMARKS["mbpp"].load(put(tmp_path / "a.jsonl", rows), 0)
    assert [problem.id for problem in problems] == ["mbpp/11", "mbpp/510"]  # the evaluation split alone
    assert "assert area(0) == 0" in problems[0].prompt and "Area of a circle?" in problems[0].prompt
    right, wrong = "import math\ndef area(r): return math.pi * r * r", "def area(r): return 3.14 * r * r"
    assert score("mbpp", problems[0], right, wrong) == [1.0, 0.0]
    old = {
        "task_id": 12,
        "text": "Double it.",
        "code": "",
        "test_setup_code": "x = 2",
        "test_list": ["assert f(x) == 4"],
    }
    (problem,) = BENCHMARKS["mbpp"].load(put(tmp_path / "b.jsonl", [old]), 0)
    assert problem.columns == {"tests": ["x = 2\nassert f(x) == 4"]} and "Double it." in problem.prompt


@runs_programs
def test_code_contests(tmp_path):
    written = {"problem": "Half of n.", "tests": "{'inputs': ['3\\n', '4\\n'], 'outputs': ['1.5\\n', '2.0\\n']}"}
    hub = {
        "name": "A", "description": "Half of n.", "time_limit": {"seconds": 1, "nanos": 500_000_000},
        "public_tests": {"input": ["3\n"], "output": ["1.5\n"]}, "private_tests": {"input": [], "output": []},
        "generated_tests": {"input": ["4\n"], "output": ["2.0\n"]},
    }  # fmt: skip
    as_json = {"problem": "Half of n.", "tests": json.dumps({"inputs": ["3\n", "4\n"], "outputs": ["1.5\n", "2.0\n"]})}
    problems = BENCHMARKS["code_contests"].load(put(tmp_path / "a.jsonl", [written, hub, as_json]), 0)
    assert problems[2].columns == problems[0].columns
    problems = problems[:2]
    assert problems[0].columns["tests"] == problems[1].columns["tests"] == [
        {"input": "3\n", "output": "1.5\n"},
        {"input": "4\n", "output": "2.0\n"},
    ]  # fmt: skip
    assert [problem.columns["time_limit"] for problem in problems] == [None, 1.5]
    assert problems[0].prompt == problems[1].prompt == contest_prompt("Half of n.")
    half = "```python\nprint({} * int(input()))\n```"
    completions = [half.format(0.5), half.format("0.50000001"), half.format(0.51), "```python\nprint(1.5)\n```"]
    for problem in problems:
        assert score("code_contests", problem, *completions) == [1.0, 1.0, 0.0, 0.0]


@runs_programs
def test_a_contest_gives_each_problem_its_own_time(tmp_path):
    slow = "```python\nimport time\nwhile time.process_time() < 1.2: pass\nprint(1)\n```"
    accuracy = BENCHMARKS["code_contests"].score
    tests = [[{"input": "", "output": "1"}]] * 2
    assert accuracy([""] * 2, [slow] * 2, tests=tests, time_limit=[0.9, 2.5]) == [0.0, 1.0]


@given(st.text(st.sampled_from("`\nab "), max_size=20))
def test_a_fence_holds_any_program(code):
    assert extract_program(fenced(code))[0].rstrip("\n") == code.rstrip("\n")


def test_headers_stand_below_future_imports():
    text, _ = extract_program(with_header("import math", "from __future__ import annotations\n\nprint(math.pi)"))
    assert text.split("\n")[0] == "from __future__ import annotations"
    compile(text, "program", "exec")
    assert text.index("import math") < text.index("print")


# LiveCodeBench


def packed(tests):
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def lcb(number, date="2024-09-01T00:00:00", **fields):
    stdin = [{"input": "2 3\n", "output": "5\n", "testtype": "stdin"}]
    return {
        "question_title": "Sum", "question_content": "Add two numbers.", "platform": "atcoder",
        "question_id": f"abc{number}", "contest_id": "abc", "contest_date": date, "starter_code": "",
        "difficulty": "easy", "public_test_cases": json.dumps(stdin),
        "private_test_cases": packed([{"input": "1 1\n", "output": "2\n", "testtype": "stdin"}]), "metadata": "{}",
    } | fields  # fmt: skip


def functional(number):
    starter = "class Solution:\n    def pairs(self, nums: List[int], k: int) -> List[int]:\n        "
    return lcb(
        number,
        platform="leetcode",
        difficulty="hard",
        starter_code=starter,
        metadata=json.dumps({"func_name": "pairs"}),
        public_test_cases=json.dumps([{"input": "[1, 2]\n3", "output": "[1, 3]", "testtype": "functional"}]),
        private_test_cases=packed([{"input": "[null, true]\n0", "output": "[null, 0]", "testtype": "functional"}]),
    )


def test_livecodebench_takes_the_paper_months(tmp_path):
    dates = ["2024-07-31T23:59:59", "2024-08-01T00:00:00", "2025-01-31T20:00:00", "2025-02-01T00:00:00"]
    path = put(tmp_path / "test5.jsonl", [lcb(i, date) for i, date in enumerate(dates)])
    assert [p.id for p in BENCHMARKS["livecodebench"].load(path, 0)] == ["livecodebench/abc1", "livecodebench/abc2"]
    later = livecodebench.load(path, 0, datetime.date(2025, 2, 1), datetime.date(2026, 1, 1))
    assert [p.id for p in later] == ["livecodebench/abc3"]
    with pytest.raises(DataError, match="contest_date='soon': write it as"):
        BENCHMARKS["livecodebench"].load(put(tmp_path / "b.jsonl", [lcb(1, "soon")]), 0)
    with pytest.raises(DataError, match="func_name=None with starter_code"):
        BENCHMARKS["livecodebench"].load(put(tmp_path / "c.jsonl", [lcb(1, starter_code="class Solution:")]), 0)


@runs_programs
def test_livecodebench_programs(tmp_path):
    problems = BENCHMARKS["livecodebench"].load(put(tmp_path / "a.jsonl", [lcb(1), functional(2)]), 0)
    read, call = problems
    assert "Read the inputs from stdin" in read.prompt and "starter code" in call.prompt
    assert "def pairs(self" in call.prompt and "### Question:\nAdd two numbers." in read.prompt
    programs = [
        "<think>hm</think>```python\nprint(sum(map(int, input().split())))\n```",
        "```python\nprint(5)\n```",  # right on the public test alone
        "```python\nprint(sum(map(int, sys.stdin.read().split())))\n```",  # sys is there in LiveCodeBench's setting
        "no code",
    ]
    assert score("livecodebench", read, *programs) == [1.0, 0.0, 1.0, 0.0]
    solution = "```python\nclass Solution:\n    def pairs(self, nums: List[int], k: int):\n        return {}\n```"
    answers = [solution.format(text) for text in ("[nums[0], k]", "(nums[0], k)", "[1, 3]", "[k, nums[0]]")]
    assert score("livecodebench", call, *answers) == [1.0, 1.0, 0.0, 0.0]
    damaged = lcb(3, private_test_cases="eJx")
    (problem,) = BENCHMARKS["livecodebench"].load(put(tmp_path / "b.jsonl", [damaged]), 0)
    assert score("livecodebench", problem, programs[0]) == [None]
    summary = BENCHMARKS["livecodebench"].summarise(problems, [["", ""]] * 2, [[1.0, 0.0], [1.0, 1.0]])
    assert summary["difficulty_easy/pass@1"] == 0.5 and summary["platform_leetcode/pass@1"] == 1.0


@given(st.lists(st.fixed_dictionaries({"input": st.text(), "output": st.text()}), max_size=3), st.integers(2, 5))
def test_packed_tests_are_read(tests, protocol):
    text = base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests), protocol))).decode()
    assert livecodebench.unpack_tests("[]", text, None) == tests
    assert livecodebench.unpack_tests(json.dumps(tests), "[]", None) == tests


class Runs:
    """A pickle that runs a program when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_packed_tests_are_never_unpickled(tmp_path):
    trap = tmp_path / "trapped"
    data = pickle.dumps(Runs(trap))
    with pytest.raises(DataError, match=r"the pickle holds more than one string|GLOBAL"):
        livecodebench.unpack_tests("[]", base64.b64encode(zlib.compress(data)).decode(), None)
    assert not trap.exists()
    pickle.loads(data)
    assert trap.exists()  # the trap works: unpickling would have sprung it


@pytest.mark.parametrize(
    "text",
    [
        "not base64!",
        base64.b64encode(b"not zlib").decode(),
        base64.b64encode(zlib.compress(b"not a pickle")).decode(),
        base64.b64encode(zlib.compress(pickle.dumps(["a", "b"]))).decode(),
        base64.b64encode(zlib.compress(pickle.dumps(7))).decode(),
        base64.b64encode(zlib.compress(pickle.dumps("no json"))).decode(),
        base64.b64encode(zlib.compress(pickle.dumps('{"input": "1"}'))).decode(),
        base64.b64encode(zlib.compress(pickle.dumps('[{"input": "1"}]'))).decode(),
        packed([{"input": "1", "output": "1"}])[:-8],
        "[",
        "",
    ],
)
def test_damaged_tests_are_refused(text):
    with pytest.raises(DataError, match="test cases"):
        livecodebench.unpack_tests("[]", text, None)


def test_tests_that_unpack_to_too_much_are_refused(monkeypatch):
    monkeypatch.setattr(livecodebench, "_UNPACKED_LIMIT", 1000)
    with pytest.raises(DataError, match="more than 1,000 bytes"):
        livecodebench.unpack_tests("[]", packed([{"input": "1" * 5000, "output": "1"}]), None)


# Codeforces


def expected_ahead(rating, ratings):
    return sum(1 / (1 + 10 ** ((rating - other) / 400)) for other in ratings)


@given(st.lists(st.integers(400, 3500), min_size=1, max_size=30), st.data())
def test_elo_rating_expects_as_many_ahead_as_there_were(ratings, data):
    ahead = data.draw(st.integers(0, len(ratings)))
    rating = elo_rating(np.array(ratings, float), ahead)
    assert 0 <= rating <= max(ratings) + 100
    if 1 < rating < max(ratings) + 99:
        assert expected_ahead(rating, ratings) == pytest.approx(ahead, abs=0.01)
    assert all(elo_rating(np.array(ratings, float), a) >= rating - 1e-2 for a in range(ahead))


def test_elo_rating_by_hand():
    assert elo_rating(np.array([1500.0, 1500.0]), 1) == pytest.approx(
        1500, abs=0.01
    )  # one of two ahead: equal strength
    # 10 of 11 ahead: each with odds of 10 to 1, which is 400 points.
    assert elo_rating(np.full(11, 1500.0), 10) == pytest.approx(1100, abs=0.01)
    assert elo_rating(np.array([1500.0, 2000.0]), 0) == pytest.approx(2100, abs=0.01)  # first: 100 above the best
    assert elo_rating(np.array([1500.0, 2000.0]), 2) == pytest.approx(0, abs=0.01)  # last


def api(number, points=(500, 1000), rows=((1900, 1450, 0), (1500, 450, 0), (1200, 0, 0))):
    """A contest as Codeforces' API gives it, and one participant without a rating."""
    handles = [f"h{i}" for i in range(len(rows))]
    problems = [{"index": index, "name": index} for index in "AB"]
    if points:
        problems = [problem | {"points": float(p)} for problem, p in zip(problems, points, strict=True)]
    standing = [
        {"party": {"members": [{"handle": h}]}, "points": float(p), "penalty": m}
        for h, (_, p, m) in zip(handles, rows, strict=True)
    ]
    standing.append({"party": {"members": [{"handle": "new"}]}, "points": 9999.0, "penalty": 0})
    changes = [{"handle": h, "oldRating": r, "newRating": 0} for h, (r, _, _) in zip(handles, rows, strict=True)]
    return {
        "standings": {"contest": {"id": number, "name": "Round (Div. 2)"}, "problems": problems, "rows": standing},
        "rating_changes": changes[::-1],  # another order than the standings'
    }


def contest(*args, **kwargs):
    row = api(*args, **kwargs)
    return Contest.from_api(row["standings"], row["rating_changes"], "here")


def test_participants_are_joined_by_handle():
    joined = contest(7)
    assert joined.id == "7" and joined.points == {"A": 500.0, "B": 1000.0}
    assert joined.ratings.tolist() == [1900, 1500, 1200] and joined.results[0] == (1450.0, 0.0)
    with pytest.raises(DataError, match=r"here: KeyError\('contest'\)"):
        Contest.from_api({"rows": [], "problems": []}, [], "here")
    with pytest.raises(DataError, match="no participant of contest 7"):
        Contest.from_api(api(7)["standings"], [], "here")


@pytest.mark.parametrize(
    ("attempts", "ahead"),
    [
        ({"A": [True], "B": [True]}, 0),
        ({"A": [False, True], "B": [True]}, 1),  # 450 + 1000 = 1450 ties with the first, who is then ahead
        ({"A": [True]}, 1),
        ({"A": [False, True]}, 2),
        ({"A": [False] * 20 + [True]}, 3),  # 0 points, not fewer
        ({"A": [False], "B": [False]}, 3),
        ({}, 3),
        ({"Z": [True]}, 3),  # no problem of this contest
    ],
)
def test_points_and_wrong_submissions(attempts, ahead):
    assert contest_rating(contest(7), attempts) == pytest.approx(elo_rating(contest(7).ratings, ahead), abs=0.01)


def test_contests_without_points_count_problems_and_penalties():
    rows = ((1900, 2, 5), (1500, 1, 15), (1200, 1, 30))
    here = contest(8, points=None, rows=rows)
    for attempts, ahead in (
        ({"A": [True], "B": [True]}, 0),  # 2 problems, 0 minutes
        ({"A": [False, True], "B": [True]}, 1),  # 2 problems, 10 minutes
        ({"A": [True]}, 1),
        ({"A": [False, False, True]}, 2),  # 20 minutes: behind 15, before 30
        ({"A": [False, False, False, True]}, 3),  # a tie at 30
    ):
        assert contest_rating(here, attempts) == pytest.approx(elo_rating(here.ratings, ahead), abs=0.01)


def test_percentile():
    assert [percentile(rating, [100, 200, 200, 300]) for rating in (50, 100, 200, 250, 400)] == [0, 0, 25, 75, 100]


def test_ratings_are_averaged_over_samples_and_contests():
    contests = {"7": contest(7), "8": contest(8, rows=((2400, 1500, 0), (800, 0, 0)))}
    solved = {"7": {"A": [True, False], "B": [False, True]}, "8": {"A": [True, True]}, "9": {"A": [True]}}
    told = rate(contests, solved, [1000, 1400, 2000], submissions=8)
    by_hand = [
        contest_rating(contests[name], {i: [samples[s]] for i, samples in solved[name].items()})
        for name, s in itertools.product("78", (0, 1))
    ]
    assert told["contests"] == 2 and told["rating"] == pytest.approx(np.mean(by_hand))
    both = [contest_rating(contests["7"], solved["7"]), contest_rating(contests["8"], solved["8"])]
    assert told["rating@2"] == pytest.approx(np.mean(both))
    assert told["percentile"] == percentile(told["rating"], [1000, 1400, 2000]) and "percentile@2" in told
    assert "percentile" not in rate(contests, solved, None) and rate(contests, {"9": {"A": [True]}}, None) == {}
    one = rate(contests, {"7": {"A": [False] * 8 + [True]}}, None)
    assert one["rating@8"] == pytest.approx(elo_rating(contests["7"].ratings, 3), abs=0.01)  # the ninth comes too late


def codeforces_row(index, **fields):
    return {
        "contest_id": "7", "index": index, "title": f"Problem {index}", "description": "Print n.",
        "input_format": "One n.", "output_format": "n.", "note": None, "time_limit": 1.0,
        "examples": [{"input": "1\n", "output": "1\n"}], "official_tests": [{"input": "3\n", "output": "3\n"}],
        "generated_checker": None,
    } | fields  # fmt: skip


def test_codeforces_problems_and_their_ratings(tmp_path):
    put(tmp_path / "problems.jsonl", [codeforces_row("A"), codeforces_row("B", generated_checker="import sys")])
    put(tmp_path / "contests.jsonl", [api(7)])
    (tmp_path / "ratings.json").write_text("[2000, 1000, 1400]")
    benchmark = BENCHMARKS["codeforces"]
    problems = benchmark.load(str(tmp_path), 0)
    a = problems[0]
    assert a.id == "codeforces/7A" and a.columns["tests"] == [{"input": "3\n", "output": "3\n"}]
    assert "Problem A\n\nPrint n.\n\nInput\nOne n.\n\nOutput\nn.\n\nExample 1\nInput:\n1" in a.prompt
    summary = benchmark.summarise(problems, [["", ""]] * 2, [[1.0, 0.0], [None, None]])["elo"]
    single = [contest_rating(contest(7), {"A": [True]}), contest_rating(contest(7), {})]
    assert summary["rating"] == pytest.approx(np.mean(single)) and summary["contests"] == 1
    assert summary["rating@2"] == pytest.approx(single[0]) and summary["percentile@2"] == pytest.approx(200 / 3)
    # Without the contests' results there is no rating, and the problems are the same.
    alone = benchmark.load(str(tmp_path / "problems.jsonl"), 0)
    assert benchmark.summarise(alone, [[""]] * 2, [[1.0]] * 2) == {}
    assert [p.prompt for p in alone] == [p.prompt for p in problems]
    plain = {"contest_id": 9, "index": "C", "problem": "Print n.", "tests": [{"input": "1", "output": "1"}]}
    (problem,) = benchmark.load(put(tmp_path / "plain.jsonl", [plain]), 0)
    assert problem.id == "codeforces/9C" and problem.columns["time_limit"] is None
    with pytest.raises(DataError, match=r'tests: give "official_tests"'):
        benchmark.load(put(tmp_path / "none.jsonl", [codeforces_row("A", official_tests=None)]), 0)


@runs_programs
def test_codeforces_programs(tmp_path):
    rows = [codeforces_row("A"), codeforces_row("B", generated_checker="import sys")]
    one, several = BENCHMARKS["codeforces"].load(put(tmp_path / "a.jsonl", rows), 0)
    right, wrong = "```python\nprint(input())\n```", "```python\nprint(4)\n```"
    assert score("codeforces", one, right, wrong) == [1.0, 0.0]
    assert score("codeforces", several, right, wrong) == [None, None]  # several outputs are right: neither 0 nor 1


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("contests.jsonl", '{"standings": {}}\n', 'give "standings" and "rating_changes" (it has standings)'),
        ("contests.jsonl", '{"standings": {}, "rating_changes": []}\n', "KeyError('rows') in its results"),
        ("ratings.json", '{"a": "b"}', "ratings.json: not a list of ratings"),
        ("ratings.json", "[]", "ratings.json: holds no rating"),
    ],
)
def test_codeforces_results_that_cannot_be_used(tmp_path, name, content, told):
    put(tmp_path / "problems.jsonl", [codeforces_row("A")])
    put(tmp_path / "contests.jsonl", [api(7)])
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as error:
        BENCHMARKS["codeforces"].load(str(tmp_path), 0)
    assert told in str(error.value)
