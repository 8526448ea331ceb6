"""Samples graded in workers, measured, and told apart: right, wrong, unscored, lost, not asked."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_benchmark
from hypothesis import given
from hypothesis import strategies as st

from r1jax.errors import ConfigError, DataError, RewardError
from r1jax.evaluation.benchmarks.base import Problem
from r1jax.evaluation.grading import Judge, grade
from r1jax.evaluation.metrics import bootstrap_interval, pass_at_k
from r1jax.evaluation.scoring import Grades, Samples, count, further, measure, measure_texts, problem_row, reflection

TINY = Judge("tiny", tiny_benchmark.score, tiny_benchmark.letters, tiny_benchmark.same)


def samples(completions, answer="1", number=0, **fields):
    return Samples(Problem(str(number), "question", {"answer": answer}), completions, **fields)


def grades(scores, **fields):
    return Grades(scores, [None] * len(scores), **fields)


def values(metrics):
    return {name: metric["value"] for name, metric in metrics.items()}


# ------------------------------------------------------------------------------------------------------ measuring


@given(st.integers(1, 9).flatmap(lambda k: st.lists(st.lists(st.booleans(), min_size=k, max_size=k), min_size=1)))
def test_measures_are_those_of_the_whole_table(right):
    k = len(right[0])
    asked = [samples(["x"] * k, given_scores=list(range(k))) for _ in right]
    metrics, notes = measure(asked, [grades([float(r) for r in row], consensus=row[0]) for row in right])
    correct = np.array(right)
    for j in (2**n for n in range(k.bit_length())):
        assert metrics[f"pass@{j}"]["value"] == pytest.approx(pass_at_k(correct, j))
        assert (f"pass@{2 * j}" in metrics) == (2 * j <= k)
    assert metrics["pass@1"]["value"] == pytest.approx(correct.mean())
    assert metrics["pass@1"]["interval"] == pytest.approx(bootstrap_interval(correct.mean(axis=1), seed=0))
    assert metrics[f"cons@{k}"]["value"] == pytest.approx(correct[:, 0].mean())
    assert metrics[f"best_of_{k}"]["value"] == pytest.approx(correct[:, -1].mean())
    assert metrics[f"best_of_{k}"]["interval"] == pytest.approx(bootstrap_interval(correct[:, -1], seed=0))
    assert notes == [] and "mean_score" not in metrics


def test_what_cannot_be_scored_is_wrong_and_counted():
    asked = [samples("ab"), samples("cd"), samples("ef", unasked="too long")]
    judged = [
        Grades([1.0, None], [None, "timeout"], ["1", None], "1", True),
        Grades([None, None], [None, "crash"], ["1", "2"], "1", False),
        grades([0.0, 0.0], answers=[None, None], consensus=False),
    ]
    metrics, _ = measure(asked, judged)
    assert values(metrics) == {
        "pass@1": pytest.approx(1 / 6), "pass@2": pytest.approx(1 / 3), "cons@2": pytest.approx(1 / 3), "unscored": 0.5,
    }  # fmt: skip
    assert count(asked, judged) == {
        "problems": 3, "completions": 6, "problems not asked": 1, "completions that cannot be scored": 1,
        "gradings that timed out": 1, "gradings that crashed": 1, "completions without an answer": 3,
    }  # fmt: skip
    flags = [problem_row(s, g)["flags"] for s, g in zip(asked, judged, strict=True)]
    assert flags == [
        ["grading timed out"],
        ["grading crashed", "cannot be scored"],
        ["not asked: too long", "no answer to vote on"],
    ]


def test_problems_may_differ_in_how_many_completions_they_have():
    asked = [samples("x" * n, given_scores=list(range(n))) for n in (4, 1, 2)]
    judged = [grades(scores, consensus=True) for scores in ([1.0, 0.0, 0.0, 0.0], [1.0], [0.0, 1.0])]
    metrics, notes = measure(asked, judged)
    assert values(metrics) == {"pass@1": pytest.approx((1 / 4 + 1 + 1 / 2) / 3), "unscored": 0}
    assert notes == ["cons@k and best_of_k left out: problems differ in how many completions they have, 1 to 4"]
    metrics, notes = measure(asked[::2], [grades([1.0, 0.0, 0.0, 0.0]), grades([0.0, 1.0])])
    assert metrics["pass@2"]["value"] == pytest.approx((1 / 2 + 1) / 2) and "pass@4" not in metrics
    assert notes[0].startswith("best_of_k left out: problems differ")
    assert notes[1] == "cons@k left out: the judge names no answers to vote on"


def test_partial_credit_is_not_right_but_told():
    metrics, notes = measure([samples("abc")], [grades([0.5, 1.0, -1.0], consensus=False)])
    assert values(metrics)["pass@1"] == pytest.approx(1 / 3) and values(metrics)["mean_score"] == pytest.approx(1 / 6)
    assert notes == ["scores other than 0 and 1: at least 1 counts as right, and mean_score is the mean of them all"]


def test_lengths_are_in_tokens_where_all_are_known():
    asked = [
        samples(["aaaa", "bb"], tokens=[1, 2], finish_reasons=["stop", "length"]),
        samples(["c", ""], tokens=[3, 10], finish_reasons=["stop", "stop"]),
        samples(["", ""], tokens=[None, None], finish_reasons=[None, None], unasked="too long"),
    ]
    expected = {"mean_length": 4, "median_length": 2.5, "p95_length": pytest.approx(8.95), "truncated": 0.25}
    assert values(measure_texts(asked)) == expected
    asked[1] = samples(["c", ""])
    assert values(measure_texts(asked)) == {
        "mean_characters": 7 / 4, "median_characters": 1.5, "p95_characters": pytest.approx(3.7),
    }  # fmt: skip
    assert measure_texts(asked[2:]) == {}


def test_words_of_reflection_are_counted():
    counts = reflection([samples(["Wait, wait! But no", "a mistake"]), samples(["none"])])
    assert (counts["wait"], counts["but"], counts["mistake"], counts["retry"]) == (2, 1, 1, 0)


def test_a_benchmarks_own_metrics_are_made_flat():
    asked, judged = [samples("ab"), samples("cd")], [grades([1.0, None]), grades([0.0, 0.0])]

    def summarise(problems, completions, scores):
        assert [p.id for p in problems] == ["0", "0"] and completions == [["a", "b"], ["c", "d"]]
        assert scores == [[1.0, None], [0.0, 0.0]]
        return {"Elo": {"rating": np.float32(1500), "games": 3}, "class": "expert"}

    own = further(summarise, asked, judged)
    assert values(own) == {"Elo/rating": 1500.0, "Elo/games": 3, "class": "expert"}
    assert json.loads(json.dumps(own)) == own
    assert further(None, asked, judged) == {}


def test_a_row_says_all_of_its_problem():
    asked = samples(["x", "yy"], tokens=[1, 9], finish_reasons=["stop", "length"], given_scores=[0.5, 1.5])
    judged = grades([1.0, 0.0], answers=["1", "2"], majority="1", consensus=True)
    assert problem_row(asked, judged) == {
        "id": "0", "problem": "question", "answer": "1", "pass@1": 0.5, "scores": [1.0, 0.0], "answers": ["1", "2"],
        "majority": "1", "consensus": True, "flags": ["cut off"], "completions": ["x", "yy"], "tokens": [1, 9],
        "finish_reasons": ["stop", "length"], "given_scores": [0.5, 1.5],
    }  # fmt: skip
    assert "pass@1" not in problem_row(asked, None) and "scores" not in problem_row(asked, None)


# -------------------------------------------------------------------------------------------------------- grading


def judged(judge, asked, workers=2, timeout=30.0, done=()):
    return dict(grade(judge, asked, workers, timeout, done))


def test_grades_go_with_their_completions():
    asked = [samples(["x" * n for n in lengths], "1", i) for i, lengths in enumerate([[1, 2, 4], [3, 3, 1], [0, 0, 0]])]
    asked.append(samples(["x"], "?", 3))
    told = judged(TINY, asked)
    # "1" and "1" against one "2"; of even answers "0" is the leader, and it is wrong; nothing to vote on; no gold.
    assert told == {
        0: Grades([1.0, 0.0, 1.0], [None] * 3, ["1", "2", "1"], "1", True),
        1: Grades([0.0, 0.0, 1.0], [None] * 3, ["0", "0", "1"], "0", False),
        2: Grades([0.0, 0.0, 0.0], [None] * 3, [None] * 3, None, False),
        3: Grades([None], [None], ["1"], "1", False),
    }
    assert judged(TINY, asked, done=(0, 2, 3)) == {1: told[1]}
    assert judged(TINY, asked, done=range(4)) == {}


def test_equivalent_answers_vote_together():
    """To this judge of votes 2 and 0 are one: together they outvote two 1s, and the first of them stands for both."""
    asked = [samples(["x", "xx", "x", "xxx", "xx"], "2")]
    assert judged(TINY, asked)[0].majority == "2" and judged(TINY, asked)[0].consensus
    alone = Judge("tiny", tiny_benchmark.score, tiny_benchmark.letters)
    assert judged(alone, asked)[0].majority == "1"
    assert judged(Judge("tiny", tiny_benchmark.score), asked)[0] == grades([0.0, 1.0, 0.0, 0.0, 1.0])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_hang_costs_its_own_score_and_no_other(workers):
    asked = [samples(["x", "hang", "x"], "1", 0), samples(["x"], "1", 1), samples(["die", "xx"], "2", 2)]
    start = time.monotonic()
    told = judged(TINY, asked, workers, timeout=1.5)
    assert time.monotonic() - start < 15
    # What hangs alone hangs in the vote no more: there only its answer is taken.
    assert told[0] == Grades([1.0, None, 1.0], [None, "timeout", None], ["1", "1", "1"], "1", True)
    assert told[1].scores == [1.0]
    assert told[2].scores == [None, 1.0] and told[2].lost == ["crash", None]


def test_a_vote_that_hangs_is_lost_alone():
    stuck = Judge("tiny", tiny_benchmark.score, tiny_benchmark.stuck, tiny_benchmark.same)
    told = judged(stuck, [samples(["x", "stuck"], "1"), samples(["x"], "1")], timeout=1.5)
    assert told[0] == Grades([1.0, 0.0], [None, None], [None, None], None, False)
    assert told[1].majority == "1"


def test_a_judge_that_raises_ends_it_with_its_name():
    with pytest.raises(RewardError, match="reward function 'mine' raised TypeError"):
        judged(Judge("mine", tiny_benchmark.no_scores), [samples("ab")] * 3)


def test_a_judge_gets_the_columns_that_it_takes():
    asked = Samples(Problem("7", "q", {"answer": "1", "level": 3}), ["x"])
    assert TINY.columns(asked.problem.columns, "here") == {"answer": "1", "level": 3}  # it takes all
    bare = Judge("bare", tiny_benchmark.bare)
    assert bare.columns(asked.problem.columns, "here") == {"answer": "1"}
    assert judged(bare, [asked])[0].scores == [1.0]
    with pytest.raises(DataError, match=r"problem 8: has no 'answer', which bare needs"):
        judged(bare, [asked, Samples(Problem("8", "q", {"level": 3}), ["x"])])


def test_judges_by_name():
    judge = Judge.of_reward("exact_answer")
    texts = ["<answer>2</answer>", "<answer>02</answer>", "<answer>3</answer>"]
    assert judged(judge, [samples(texts, 2)])[0] == Grades([1.0, 1.0, 0.0], [None] * 3, ["2", "2", "3"], "2", True)
    assert Judge.of_reward("format").answer is None
    assert judged(Judge.of_reward("tiny_benchmark:score"), [samples(["x"])])[0] == grades([1.0])
    with pytest.raises(ConfigError, match="reward='exactly'"):
        Judge.of_reward("exactly")
    assert Judge.of_benchmark(tiny_benchmark.TINY) == TINY and Judge.of_benchmark(tiny_benchmark.ESSAYS) is None


def test_mathematics_is_voted_on_by_meaning():
    pytest.importorskip("math_verify")
    judge = Judge.of_reward("math_accuracy")
    texts = [r"\boxed{2}", r"\boxed{\frac12}", r"so \boxed{0.5}", "I give up", r"\boxed{2}", r"\boxed{1/2}"]
    told = judged(judge, [samples(texts, r"\frac{1}{2}")])[0]
    assert told.scores == [0.0, 1.0, 1.0, 0.0, 0.0, 1.0] and told.consensus and told.majority == r"\frac12"


def test_workers_start_without_jax():
    code = "import sys, r1jax.evaluation.grading, r1jax.evaluation.benchmarks; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert judged(Judge("jax", tiny_benchmark.imported_jax), [samples("ab")])[0].scores == [0.0, 0.0]
