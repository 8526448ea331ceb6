"""The world's accuracy reward: both layouts, programs in the sandbox, no way to answer twice."""

import pytest

from r1jax.rewards import get_reward
from r1jax.rewards.world import request_accuracy, world_accuracy, world_answer

TESTS = ["assert [f(x) for x in (0, 7, 46)] == [3, 10, 49]"]


def score(completion, answer="6", tests=None):
    return world_accuracy([""], [completion], [answer], None if tests is None else [tests])[0]


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("<think>x</think><answer>6</answer>", True),
        ("<think>x</think><answer> 06 </answer>", True),
        ("<think>x</think><answer>7</answer>", False),
        ("<think>x</think><answer>6 or 7</answer>", False),
        ("<answer>7</answer><answer>6</answer>", False),
        ("<answer>6</answer><answer>6</answer>", True),
        ("<answer>6", False),
        ("<answer>6</answer></answer>", False),
        ("<answer></answer>", False),
        ("<think>x</think>The answer is \\boxed{6}.", True),
        ("<think>\\boxed{6}</think>The answer is \\boxed{7}.", False),
        ("<think>\\boxed{6}", False),
        ("<think>x</think>\\boxed{7} \\boxed{6}", True),
        ("<think>x</think>6", True),
        ("<think>x</think>", False),
        ("6", False),  # a summary comes after the thinking
        ("", False),
    ],
)
def test_where_the_answer_is(completion, right):
    assert score(completion) == float(right)


def test_what_is_no_integer_is_compared_as_it_stands():
    assert score("<think>x</think>coins Tom", "coins Tom") == 1.0
    assert score("<think>x</think>coins  Tom", "coins Tom") == 0.0
    assert score("<answer>Eva</answer>", "Eva") == 1.0
    assert request_accuracy([""], ["<think>x</think>苹果"], ["苹果"], kind=["translate"]) == [1.0]


def test_programs_are_run():
    program = "def f(x): return x+3"
    assert score(f"<think>x</think><answer>{program}</answer>", program, TESTS) == 1.0
    assert score(f"<think>x</think>```python\n{program}\n```", program, TESTS) == 1.0
    assert score("<think>x</think><answer>def f(x): return 3+x</answer>", program, TESTS) == 1.0  # another, as good
    assert score("<think>x</think><answer>def f(x): return x-3</answer>", program, TESTS) == 0.0
    assert score("<think>x</think><answer>def f(x): retur</answer>", program, TESTS) == 0.0
    assert score(f"<answer>{program}</answer><answer>def f(x): return x</answer>", program, TESTS) == 0.0


def test_votes():
    assert world_answer("<answer>007</answer>") == world_answer("<think>x</think>\\boxed{7}") == "7"
    assert world_answer("<answer>7</answer><answer>8</answer>") is None
    assert world_answer("<think>7") is None


def test_it_is_known_by_name():
    assert get_reward("world_accuracy") is world_accuracy and get_reward("request_accuracy") is request_accuracy
