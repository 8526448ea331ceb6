"""Scores against brute force."""

import itertools
import operator
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.evaluation.metrics import (
    Estimate,
    best_of_n,
    best_of_n_per_problem,
    bootstrap_interval,
    by_meaning,
    cons_at_k,
    cons_per_problem,
    estimate,
    majority_answer,
    pass_at_1,
    pass_at_k,
    pass_at_k_per_problem,
)


@st.composite
def graded(draw):
    problems, samples = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    row = st.lists(st.booleans(), min_size=samples, max_size=samples)
    return np.array(draw(st.lists(row, min_size=problems, max_size=problems)))


@given(graded())
def test_pass_at_1_is_the_share_of_right_samples(correct):
    assert pass_at_1(correct) == pytest.approx(correct.sum() / correct.size)
    assert pass_at_k(correct, 1) == pytest.approx(pass_at_1(correct))


@given(graded(), st.data())
def test_pass_at_k_counts_every_subset(correct, data):
    k = data.draw(st.integers(1, correct.shape[1]))
    brute = np.mean([np.mean([any(subset) for subset in itertools.combinations(row, k)]) for row in correct])
    assert pass_at_k(correct, k) == pytest.approx(brute)


def test_pass_at_k_with_many_samples_does_not_overflow():
    correct = np.zeros((1, 10_000), bool)
    correct[0, :10] = True
    assert pass_at_k(correct, 1000) == pytest.approx(1 - 0.9**10, abs=1e-3)


@given(st.lists(st.sampled_from(["7", "12", "x", None]), max_size=9))
def test_majority_by_counting(answers):
    given_answers = [a for a in answers if a is not None]
    brute = min(set(given_answers), key=lambda a: (-given_answers.count(a), given_answers.index(a)), default=None)
    assert majority_answer(answers) == brute


def test_cons_at_k():
    answers = [["1", "2", "2"], ["5", "6", None], [None, None, "9"], [None, None, None]]
    assert cons_at_k(answers, ["2", "6", "9", "3"]) == 0.5  # right; tied, "5" came first; one vote is enough; no vote
    with pytest.raises(ValueError):
        cons_at_k(answers, ["2"])


def test_votes_for_equivalent_answers_are_counted_together():
    halves = ["2", "1/2", "0.5", r"\frac{1}{2}", "2", None]
    assert majority_answer(halves) == "2" and majority_answer(halves, by_meaning) == "1/2"
    assert cons_at_k([halves], ["0.50"]) == 1.0 and cons_at_k([halves], ["0.50"], operator.eq) == 0.0
    assert cons_at_k([halves], ["2"]) == 0.0 and cons_at_k([halves], ["2"], operator.eq) == 1.0
    assert cons_at_k([["25", "25", "7"], [None]], ["025", "1"]) == 0.5


@given(st.lists(st.one_of(st.none(), st.integers(0, 8).map(str)), max_size=9), st.integers(1, 4), st.integers(0, 8))
def test_votes_by_equivalence_against_brute_force(answers, modulus, gold):
    """Answers are the same that leave the same rest."""

    def same(first, second):
        return int(first) % modulus == int(second) % modulus

    given_answers = [int(a) % modulus for a in answers if a is not None]
    brute = min(set(given_answers), key=lambda a: (-given_answers.count(a), given_answers.index(a)), default=None)
    majority = majority_answer(answers, same)
    assert (majority is None) == (brute is None)
    if majority is not None:
        assert int(majority) % modulus == brute
        assert majority == next(a for a in answers if a is not None and int(a) % modulus == brute)
    assert cons_per_problem([answers], [str(gold)], same).tolist() == [float(brute == gold % modulus)]


def test_each_different_answer_is_compared_once():
    asked = []

    def never(first, second):
        asked.append((first, second))

    answers = ["a", "b", "a", None, "b", "c"] * 10
    assert majority_answer(answers, never) == "a"  # None, "cannot be told", counts as no
    assert asked == [("a", "b"), ("a", "c"), ("b", "c")]


def test_what_can_be_told_at_once_is_sent_to_no_worker(monkeypatch):
    import r1jax.rewards.equivalence

    def refuse(gold, answer):
        raise AssertionError(f"{gold!r} and {answer!r} were sent")

    monkeypatch.setattr(r1jax.rewards.equivalence, "equivalent", refuse)
    same = [("x+1", "x+1"), (" 7", "07"), ("7", "7.0"), ("-.5", "-0.50"), ("+3", "3."), ("9" * 40, "9" * 40)]
    different = [("7", "8"), ("7", "7.0000001"), ("-7", "7"), ("9" * 40, "9" * 39)]
    assert all(by_meaning(*pair) is True for pair in same) and all(by_meaning(*pair) is False for pair in different)
    for pair in (
        ("3.14159", "3.141592653"),
        ("1/2", "0.5"),
        ("1,000", "1000"),
        ("7", "x"),
        ("1e3", "1000"),
        ("٣", "3"),
        ("9" * 41, "1"),
    ):
        with pytest.raises(AssertionError, match="were sent"):
            by_meaning(*pair)


def test_best_of_n():
    scores = [[0.1, 0.9, 0.5], [3.0, 3.0, 1.0], [np.nan, -5.0, np.nan], [np.nan, np.nan, np.nan]]
    correct = [[False, True, False], [True, False, False], [False, True, False], [True, False, False]]
    # the best is right; two tie, of which one is; the only score; no score at all
    assert best_of_n_per_problem(scores, correct).tolist() == pytest.approx([1.0, 0.5, 1.0, 1 / 3])
    assert best_of_n(scores, correct) == pytest.approx((1 + 0.5 + 1 + 1 / 3) / 4)
    with pytest.raises(ValueError, match=r"scores of shape \(1, 2\): needs \(1, 3\)"):
        best_of_n([[1, 2]], [[True, False, True]])


@given(graded(), st.integers(0, 99))
def test_best_of_n_by_a_perfect_score_is_pass_at_n_and_by_a_blind_one_pass_at_1(correct, seed):
    n = correct.shape[1]
    assert best_of_n(correct, correct) == pytest.approx(pass_at_k(correct, n))
    assert best_of_n(np.zeros(correct.shape), correct) == pytest.approx(pass_at_1(correct))
    draws = np.random.default_rng(seed).random(correct.shape)
    assert best_of_n(draws, correct) == np.mean([row[d.argmax()] for row, d in zip(correct, draws, strict=True)])


@given(graded())
def test_estimates_are_means_over_problems_with_their_interval(correct):
    per_problem = pass_at_k_per_problem(correct, 1)
    assert estimate(per_problem, seed=4, n=50).value == pytest.approx(pass_at_k(correct, 1))
    assert estimate(per_problem, seed=4, n=50)[1:] == bootstrap_interval(per_problem, seed=4, n=50)
    told = estimate(best_of_n_per_problem(correct, correct), n=50)
    assert isinstance(told, Estimate) and told.low <= told.high
    assert estimate(correct.mean(axis=1), n=50).value == pytest.approx(pass_at_1(correct))


def test_importing_the_scores_takes_neither_algebra_nor_jax():
    code = "import sys; import r1jax.evaluation.metrics; print({'sympy', 'math_verify', 'jax'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [bootstrap_interval(rng.random(60) < 0.3, seed=i, n=400) for i in range(200)]
    covered = np.mean([low <= 0.3 <= high for low, high in intervals])
    assert 0.88 <= covered <= 1.0
    assert bootstrap_interval([0.5] * 9, seed=0) == (0.5, 0.5)
    assert bootstrap_interval([0, 1, 1], seed=3) == bootstrap_interval([0, 1, 1], seed=3)


def test_empty_and_impossible_requests_are_refused():
    for call in (
        lambda: pass_at_1(np.zeros((0, 4))),
        lambda: pass_at_1(np.zeros(4)),
        lambda: pass_at_k(np.zeros((2, 4)), 5),
        lambda: cons_at_k([], []),
        lambda: bootstrap_interval([], seed=0),
        lambda: bootstrap_interval([1.0], seed=0, level=1.5),
    ):
        with pytest.raises(ValueError):
            call()
