"""Scores against brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.evaluation.metrics import bootstrap_interval, cons_at_k, majority_answer, pass_at_1, pass_at_k


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
