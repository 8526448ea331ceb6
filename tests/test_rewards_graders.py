"""The exact answer's reward: every known way to be paid without earning it."""

import time

import pytest

from r1jax.errors import ConfigError
from r1jax.rewards import exact_answer_reward, format_reward, get_reward

GOOD = "<think>3+5=8</think><answer>8</answer>"


def exact(completion, answer="8"):
    return exact_answer_reward(["p"], [completion], answer=[answer], level=[1])[0]


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        (GOOD, 1.0),
        ("<answer> +8\n</answer>", 1.0),
        ("<answer>08</answer>", 1.0),
        ("<answer>8</answer> so <answer>8</answer>", 1.0),
        ("8", 0.0),
        ("", 0.0),
        ("<answer></answer>", 0.0),
        ("<answer>9</answer>", 0.0),
        ("<answer>-8</answer>", 0.0),
        ("<answer>8 or 9</answer>", 0.0),
        ("<answer>8.0</answer>", 0.0),
        ("<answer>5+3</answer>", 0.0),
        ("<answer>0_8</answer>", 0.0),
        ("<answer>８</answer>", 0.0),
        ("<answer>9</answer><answer>8</answer>", 0.0),
        ("<answer>eight</answer><answer>8</answer>", 0.0),
        ("<answer>8</answer><answer>9", 0.0),
        ("<answer>9 <answer>8</answer>", 0.0),
        ("<answer>8</answer></answer>", 0.0),
        (f"<answer>{'8' * 5000}</answer>", 0.0),
    ],
)
def test_exact_answer(completion, score):
    assert exact(completion) == score


def test_gold_answers():
    assert exact("<answer>-7</answer>", "-7") == 1.0
    assert exact("<answer>7</answer>", 7) == 1.0
    # A gold answer that cannot be read is nobody's fault: never a 1 (open-r1 #86) and never a 0.
    assert exact(GOOD, "eight") is None
    assert exact("<answer>eight</answer>", "eight") is None


def test_time_is_linear_in_the_text():
    start = time.perf_counter()
    for tag in ("<think>", "<answer>", "<answer></answer>", "</think>"):
        exact(tag * 200_000)
    assert time.perf_counter() - start < 5


def test_get_reward():
    assert get_reward("format") is format_reward
    assert get_reward("r1jax.rewards.arithmetic:exact_answer_reward") is exact_answer_reward
    for name in ("no_such", "no_such_module:f", "r1jax.rewards.arithmetic:no_such", "r1jax.rewards:__all__", ":f"):
        with pytest.raises(ConfigError, match=name):
            get_reward(name)
