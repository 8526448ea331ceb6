"""How several rewards become one, and parameters of reward functions from a configuration."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from r1jax.errors import ConfigError
from r1jax.rewards import REWARDS, combine, get_reward, with_parameters

NAN = float("nan")


def total(rewards, weights, gate=None, applies=None):
    applies = None if applies is None else np.array(applies, bool)
    return combine(np.array(rewards, np.float32), np.array(weights, np.float32), gate, applies)


def test_addition_and_weights():
    rows = [[1, 0.5, -1], [0, 1, 0], [NAN, 1, 0], [1, 1, NAN]]
    np.testing.assert_array_equal(total(rows, [1, 1, 1]), [0.5, 1, NAN, NAN])
    np.testing.assert_array_equal(total(rows, [2, 0, 0.5]), [1.5, 0, NAN, NAN])
    np.testing.assert_array_equal(total(rows, [0, 2, 0]), [1, 2, 2, 2])  # weight 0 is only observed
    assert total(rows, [1, 1, 1]).dtype == np.float32
    assert total(np.zeros((0, 2)), [1, 1]).shape == (0,)


def test_a_gate_keeps_what_is_earned_from_who_fails_it():
    """Columns: accuracy, format, overlong punishment."""
    rows = [[1, 1, 0], [1, 0, 0], [0, 1, -0.5], [1, 1, -0.5], [0, 0, -1], [1, 0, -1]]
    np.testing.assert_allclose(total(rows, [1, 0.25, 1], gate=1), [1.25, 0, -0.25, 0.75, -1, -1])
    np.testing.assert_allclose(total(rows, [1, 0, 1], gate=1), [1, 0, -0.5, 0.5, -1, -1])
    # A penalty may be a positive score of negative weight as well.
    np.testing.assert_allclose(total([[1, 0, 1], [1, 1, 1]], [1, 0, -1], gate=1), [-1, 0])


def test_a_gate_that_is_a_share_needs_all_of_it():
    np.testing.assert_allclose(total([[1, 0.99], [1, 1]], [1, 1], gate=1), [0.99, 2])


def test_what_cannot_be_scored_stays_so_under_a_gate():
    rows = [[1, NAN], [NAN, 1], [NAN, 0], [NAN, NAN]]
    np.testing.assert_array_equal(total(rows, [1, 1], gate=1), [NAN] * 4)
    np.testing.assert_array_equal(total([[1, NAN], [0, NAN]], [1, 0], gate=1), [NAN] * 2)  # whatever its weight
    np.testing.assert_array_equal(total([[NAN, 1], [NAN, 0]], [0, 1], gate=1), [1, 0])  # what is only observed


def test_a_function_that_is_not_meant_for_a_row_is_absent_there():
    rows = [[1, NAN, 0.5], [NAN, 2, 0.5], [NAN, NAN, 0.5], [1, 2, 0.5]]
    applies = [[1, 0, 1], [0, 1, 1], [0, 1, 1], [0, 0, 1]]
    np.testing.assert_array_equal(total(rows, [1, 1, 1], applies=applies), [1.5, 2.5, NAN, 0.5])
    # A row that nothing is meant for has no reward: it is not worth 0.
    np.testing.assert_array_equal(total([[1, 2], [1, 2]], [1, 0], applies=[[0, 1], [1, 0]]), [NAN, 1])


def test_a_gate_that_is_not_meant_for_a_row_is_open_there():
    rows = [[1, 0], [1, NAN], [1, NAN], [-1, 0]]
    applies = [[1, 1], [1, 0], [1, 1], [1, 1]]
    np.testing.assert_array_equal(total(rows, [1, 1], gate=1, applies=applies), [0, 1, NAN, -1])


SCORES = hnp.arrays(np.float32, (5, 3), elements=st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0, NAN]))
WEIGHTS = hnp.arrays(np.float32, 3, elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0]))


@given(SCORES, WEIGHTS, st.integers(0, 2))
def test_a_gate_changes_only_rows_that_fail_it_and_never_upwards(rewards, weights, gate):
    added, gated = combine(rewards, weights), combine(rewards, weights, gate)
    passed = rewards[:, gate] >= 1
    np.testing.assert_allclose(gated[passed], added[passed])
    failed = ~passed & ~np.isnan(gated)
    assert (gated[failed] <= added[failed] + 1e-6).all()
    np.testing.assert_array_equal(np.isnan(gated), np.isnan(added) | np.isnan(rewards[:, gate]))


@given(SCORES, WEIGHTS, hnp.arrays(bool, (5, 3)), st.none() | st.integers(0, 2))
def test_absent_is_what_a_pool_without_the_function_would_give(rewards, weights, applies, gate):
    for row, meant, value in zip(rewards, applies, combine(rewards, weights, gate, applies), strict=True):
        left = np.flatnonzero(meant)
        if not (weights[left] != 0).any() and (weights != 0).any():
            assert np.isnan(value)
            continue
        there = None if gate is None or not meant[gate] else int(np.flatnonzero(left == gate)[0])
        np.testing.assert_allclose(value, combine(row[None, left], weights[left], there)[0], rtol=1e-6)


@given(SCORES, WEIGHTS)
def test_addition_is_a_sum_row_by_row(rewards, weights):
    for row, value in zip(rewards, combine(rewards, weights), strict=True):
        expected = sum(float(w) * float(r) for w, r in zip(weights, row, strict=True) if w)
        assert value == pytest.approx(expected, nan_ok=True)


# ------------------------------------------------------------------------------------------------------ parameters


def mine(prompts, completions, answer, scale=1.0, **columns):
    return [scale * float(text == gold) for text, gold in zip(completions, answer, strict=True)]


MINE = f"{__name__}:mine"
SOFT = {"max_completion_len": 10, "soft_punish_cache": 4}


def test_parameters_are_bound():
    soft = with_parameters("soft_overlong_punishment", SOFT)
    assert soft(prompts=["p"], completions=["c"], completion_ids=[[1] * 8], level=[1]) == [-0.5]
    assert with_parameters(MINE, {"scale": 2})(prompts=["p"], completions=["8"], answer=["8"]) == [2.0]
    english = with_parameters("language_consistency", {"language": "en"})
    assert english(prompts=["p"], completions=["four apples and three pears"]) == [1.0]
    assert english(prompts=["p"], completions=["四个苹果"], language=["zh"]) == [1.0]  # a column counts
    cosine = with_parameters("cosine_scaled", {"accuracy": "exact_answer", "max_len": 10})
    assert cosine(prompts=["p"], completions=["<answer>8</answer>"], completion_ids=[[]], answer=["8"]) == [2.0]


def test_without_parameters_a_function_is_itself():
    for name in ("format", "exact_answer", "language_consistency", "repetition_penalty", MINE):
        assert with_parameters(name, {}) is get_reward(name)


@pytest.mark.parametrize(
    "name, parameters, message",
    [
        ("formatt", {}, "reward='formatt'"),
        ("format", {"strict": True}, "'format' has no parameter 'strict'; it takes none"),
        ("repetition_penalty", {"ngram": 3}, "no parameter 'ngram'; it takes ngram_size, max_penalty"),
        ("repetition_penalty", {"completion_ids": []}, "no parameter 'completion_ids'"),
        (MINE, {"scales": 3}, "no parameter 'scales'; it takes answer, scale"),
        ("soft_overlong_punishment", {}, "needs max_completion_len and soft_punish_cache; give a value for each"),
        ("soft_overlong_punishment", {"max_completion_len": 4}, "needs soft_punish_cache; give"),
        ("soft_overlong_punishment", SOFT | {"soft_punish_cache": 11}, "cannot work with .*soft_punish_cache=11"),
        ("soft_overlong_punishment", SOFT | {"soft_punish_cache": "4"}, "cannot work with .*'<' not supported|'<='"),
        ("repetition_penalty", {"ngram_size": 0}, "cannot work with .*ngram_size=0"),
        ("cosine_scaled", {"accuracy": "exact_anser", "max_len": 9}, "cannot work with .*exact_anser"),
    ],
)
def test_parameters_that_cannot_work_are_named(name, parameters, message):
    with pytest.raises(ConfigError, match=message):
        with_parameters(name, parameters)


def test_every_function_takes_trl_s_arguments_and_a_batch_of_none():
    """What TRL passes, whatever columns there are; and what the check of parameters relies on."""
    import inspect

    for name, function in REWARDS.items():
        arguments = inspect.signature(function).parameters
        assert list(arguments)[:2] == ["prompts", "completions"], name
        assert any(a.kind is a.VAR_KEYWORD for a in arguments.values()), name
