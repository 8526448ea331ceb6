"""Rewards by length and repetition, against the papers' formulas and TRL's examples."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.errors import ConfigError
from r1jax.rewards import cosine_scaled_reward, repetition_penalty_reward, soft_overlong_punishment_reward


def of_lengths(function, lengths, **parameters):
    rows = ["p"] * len(lengths)
    return function(rows, rows, [[7] * n for n in lengths], answer=["8"] * len(lengths), **parameters)


def overlong(lengths, longest=100, cache=20):
    return of_lengths(soft_overlong_punishment_reward, lengths, max_completion_len=longest, soft_punish_cache=cache)


def by_first_letter(prompts, completions, **columns):
    return [{"r": 1.0, "w": 0.0, "h": 0.5}.get(completion[0]) for completion in completions]


def cosine(completions, lengths, **parameters):
    ids = [np.zeros(n, np.int32) for n in lengths]
    parameters = {"accuracy": by_first_letter, "max_len": 100} | parameters
    return cosine_scaled_reward(["p"] * len(ids), completions, ids, answer=["8"] * len(ids), **parameters)


def repetition(ids, **parameters):
    return repetition_penalty_reward(["p"], ["c"], [ids], level=[1], **parameters)[0]


# ------------------------------------------------------------------------------------------------------- overlong


def test_overlong_is_dapo_s_equation_13():
    assert overlong([0, 1, 79, 80, 81, 90, 99, 100, 101, 500]) == pytest.approx(
        [0, 0, 0, 0, -1 / 20, -0.5, -19 / 20, -1, -1, -1]
    )
    assert overlong([99, 100, 101], cache=0) == [0, 0, -1]
    assert overlong([0, 1, 50, 100], cache=100) == pytest.approx([0, -0.01, -0.5, -1])
    assert overlong([]) == []


@given(st.integers(1, 300), st.integers(0, 300), st.integers(0, 400))
def test_overlong_only_falls(longest, cache, length):
    cache = min(cache, longest)
    here, next_ = overlong([length, length + 1], longest, cache)
    assert -1 <= next_ <= here <= 0
    assert here == 0 or length > longest - cache
    assert (here == -1) == (length >= longest and (cache > 0 or length > longest))


@pytest.mark.parametrize("longest, cache, field", [(0, 0, "max_completion_len=0"), (10, 11, "cache=11"), (9, -1, "-1")])
def test_overlong_settings(longest, cache, field):
    with pytest.raises(ConfigError, match=field):
        overlong([5], longest, cache)


# --------------------------------------------------------------------------------------------------------- cosine


def test_cosine_has_the_paper_s_ends_and_middle():
    assert cosine(["right"] * 4, [0, 50, 99, 100]) == pytest.approx([2.0, 1.5, 1.0, -10.0], abs=1e-3)
    assert cosine(["wrong"] * 4, [0, 50, 99, 100]) == pytest.approx([-10.0, -5.0, 0.0, -10.0], abs=1e-2)
    quarter = 0.5 * (1 + math.cos(math.pi / 4))
    assert cosine(["right", "wrong"], [25, 25]) == pytest.approx([1 + quarter, -10 * quarter])


def test_cosine_leaves_unscored_what_the_grader_does():
    assert cosine(["none", "right", "half", "none"], [10, 0, 0, 200]) == [None, 2.0, -10.0, None]


def test_cosine_values_and_a_grader_by_name():
    values = dict(min_value_wrong=-1.0, max_value_wrong=-0.5, min_value_correct=0.5, max_value_correct=1.0)
    texts = ["<answer>8</answer>", "<answer>9</answer>", "<answer>8</answer>"]
    scores = cosine(texts, [0, 0, 100], accuracy="exact_answer", exceed_length=-2.0, **values)
    assert scores == [1.0, -1.0, -2.0]


@given(st.integers(0, 98), st.sampled_from(["right", "wrong"]))
def test_cosine_prefers_short_when_right_and_long_when_wrong(length, text):
    here, next_ = cosine([text] * 2, [length, length + 1])
    assert next_ < here if text == "right" else next_ > here
    assert (1 <= here <= 2) if text == "right" else (-10 <= here <= 0)


@pytest.mark.parametrize(
    "parameters, message",
    [
        (dict(max_len=0), "max_len=0"),
        (dict(min_value_wrong=0.5), "min_value_wrong=0.5.* max_value_wrong=0.0"),
        (dict(max_value_correct=0.5), "min_value_correct=1.0.* max_value_correct=0.5"),
        (dict(max_value_correct=math.inf), "min_value_correct"),
        (dict(exceed_length=math.nan), "exceed_length"),
        (dict(accuracy="no_such"), "no_such"),
    ],
)
def test_cosine_settings(parameters, message):
    with pytest.raises(ConfigError, match=message):
        cosine(["right"], [5], **parameters)


# ----------------------------------------------------------------------------------------------------- repetition


def test_repetition_by_hand():
    assert repetition([1, 2, 3, 4], ngram_size=2) == 0.0
    assert repetition([5, 5, 5, 5, 5], ngram_size=2) == -0.75  # one of four
    assert repetition([1, 2, 3, 1, 2, 3], max_penalty=-2.0) == -0.5  # 123 231 312 123
    assert repetition([5] * 5, ngram_size=6) == repetition([5] * 5, ngram_size=5) == repetition([]) == 0.0
    assert math.copysign(1, repetition([1, 2, 3])) == 1  # 0.0 and not -0.0


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 5))
def test_repetition_is_what_counting_says(ids, n):
    seen, repeated = set(), 0
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    for gram in grams:
        repeated += gram in seen
        seen.add(gram)
    expected = -repeated / len(grams) if grams else 0.0
    assert repetition(ids, ngram_size=n) == pytest.approx(expected)
    assert repetition(np.array(ids, np.int32), ngram_size=n) == repetition(ids, ngram_size=n)


@pytest.mark.parametrize(
    "parameters, field",
    [(dict(ngram_size=0), "ngram_size=0"), (dict(max_penalty=0.5), "max_penalty=0.5"),
     (dict(max_penalty=-math.inf), "max_penalty=-inf"), (dict(max_penalty=math.nan), "max_penalty=nan")],
)  # fmt: skip
def test_repetition_settings(parameters, field):
    with pytest.raises(ConfigError, match=field):
        repetition([1, 2], **parameters)


# --------------------------------------------------------------------------------------------------- in the loop


def test_the_loop_sends_each_completion_its_own_tokens():
    """With the stop token and without padding: what the lengths of a rollout count."""
    from r1jax.training.loop import GRPOTrainer

    prompts = SimpleNamespace(prompts=["p", "q"], columns={"answer": ["1", "2"]})
    rollout = SimpleNamespace(completions=np.arange(24).reshape(2, 3, 4), lengths=np.array([[4, 1, 0], [2, 3, 4]]))
    pool = SimpleNamespace(submit=lambda *args: args)
    trainer = SimpleNamespace(config=SimpleNamespace(num_generations=3), rewards=pool)
    texts = [["a", "b", "c"], ["d", "e", "f"]]
    repeated, flat, columns, ids = GRPOTrainer._submit(trainer, prompts, texts, rollout)
    assert (repeated, flat, columns) == (["p"] * 3 + ["q"] * 3, list("abcdef"), {"answer": ["1"] * 3 + ["2"] * 3})
    assert [row.tolist() for row in ids] == [[0, 1, 2, 3], [4], [], [12, 13], [16, 17, 18], [20, 21, 22, 23]]
    overlong = soft_overlong_punishment_reward(repeated, flat, ids, max_completion_len=4, soft_punish_cache=2)
    assert overlong == [-1.0, 0.0, 0.0, 0.0, -0.5, -1.0]
