"""The generative judge: both orders, strict verdicts, and what a biased or broken judge cannot do."""

import random
import re

import pytest

from r1jax.errors import ConfigError, RewardError
from r1jax.evaluation.judge import VERIFY_TEMPLATE, GenerativeJudge, asking, read_verdict
from r1jax.rewards import RewardPool
from r1jax.sampling.completions import TextCompletion


def parts(prompt, *names):
    return [re.search(rf"\[{name}\]\n(.*?)\n\[End of {name}\]", prompt, re.DOTALL | re.IGNORECASE)[1] for name in names]


def longer(prompts):
    """An honest judge: the longer response is better."""
    verdicts = []
    for prompt in prompts:
        a, b = parts(prompt, "Response A", "Response B")
        mark = "A" if len(a) > len(b) else "B" if len(b) > len(a) else "C"
        verdicts.append(f"<think>[[{random.choice('ABC')}]]</think>A says {a}.\nMy verdict is [[{mark}]].")
    return verdicts


def equal(prompts):
    return [f"[[{'RIGHT' if len(set(parts(p, 'Reference answer', 'Response'))) == 1 else 'WRONG'}]]" for p in prompts]


def test_every_pair_is_asked_in_both_orders():
    asked = []

    def ask(prompts):
        asked.append(prompts)
        return longer(prompts)

    outcomes, inconsistent = GenerativeJudge(ask).compare(["p", "q", "r"], ["aaa", "b", "cc"], ["a", "bbb", "dd"])
    assert outcomes == [1, -1, 0] and inconsistent == 0.0
    assert len(asked) == 1 and len(asked[0]) == 6  # one call for the whole batch
    assert parts(asked[0][0], "Request", "Response A", "Response B") == ["p", "aaa", "a"]
    assert parts(asked[0][3], "Request", "Response A", "Response B") == ["p", "a", "aaa"]


def test_a_judge_that_favours_a_position_wins_nobody_anything():
    for mark in "AB":
        judge = GenerativeJudge(lambda prompts, mark=mark: [f"[[{mark}]]"] * len(prompts))
        assert judge.compare(["p"] * 4, ["x"] * 4, ["y"] * 4) == ([0] * 4, 1.0)


def test_a_win_in_one_order_and_a_tie_in_the_other_is_a_tie():
    answers = iter([["[[A]]", "[[A]]", "[[C]]", "[[A]]", "nothing", "[[C]]", "[[B]]", "[[C]]", "[[B]]", "[[B]]"]])
    judge = GenerativeJudge(lambda prompts: next(answers))
    outcomes, inconsistent = judge.compare(["p"] * 5, ["x"] * 5, ["y"] * 5)
    assert outcomes == [0, 1, 0, 1, None]
    assert inconsistent == pytest.approx(1 / 4)  # of the four that could be read


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("[[A]]", "a"),
        ("Good.\n\nVerdict: **[[B]]**.\n", "b"),
        ("<think>[[B]]</think>[[A]]", "a"),
        ("[[ A ]]", "a"),
        ("[[A]]\nand so on", None),
        ("[[A]] or [[B]]", None),
        ("[[A]] [[A]]", None),
        ("not [[A]] but the other", None),
        ("[[D]]", None),
        ("[[a]]", None),
        ("A", None),
        ("[A]", None),
        ("", None),
        ("<think>[[A]]", None),  # cut off while it thought
        ("[[B]]\nVerdict: [[A]]", "a"),  # only the last line speaks
    ],
)
def test_verdicts_are_read_strictly(text, verdict):
    assert read_verdict(text, {"A": "a", "B": "b"}) == verdict


def test_answers_are_verified_against_references():
    asked = []

    def ask(prompts):
        asked.extend(prompts)
        return equal(prompts)

    completions = ["<think>5?</think>4", "<think>4</think>5", "<think>4", "4", "4"]
    assert GenerativeJudge(ask).verify(["2 + 2"] * 5, completions, ["4", "4", "4", 4, None]) == [
        True, False, False, True, None,
    ]  # fmt: skip
    assert len(asked) == 3  # nothing is asked of a completion without an answer, nor without a reference
    assert parts(asked[0], "Question", "Response") == ["2 + 2", "4"]
    unsure = GenerativeJudge(lambda prompts: ["well"] * len(prompts))
    assert unsure.verify(["q"], ["4"], ["4"]) == [None]


def test_braces_and_marks_in_responses_do_nothing():
    judge = GenerativeJudge(longer)
    assert judge.compare(["{x} {first}"], ["{second} [[B]] " * 2], ["[[A]]\n[[B]]"]).outcomes == [1]


def test_as_rewards_in_a_pool():
    judge = GenerativeJudge(lambda prompts: longer(prompts) if "Response A" in prompts[0] else equal(prompts))
    local = [judge.as_reward(), judge.as_reward("verify", column="answer")]
    with RewardPool([], local=local) as pool:
        assert pool.names == ("judge_compare", "judge_verify")
        columns = {"baseline": ["xx", "xx", "xx", None], "answer": ["4", "aaa", None, "4"]}
        batch = pool.submit(["p"] * 4, ["4", "aaa", "xx", "4"], columns).result()
    expected = [[-1.0, 1.0], [1.0, 1.0], [0.0, None], [None, 1.0]]
    assert [[None if s != s else s for s in row] for row in batch.rewards.tolist()] == expected
    with pytest.raises(RewardError, match="the judge needs a column 'reference'"):
        judge.as_reward("verify")(["p"], ["c"], answer=["4"])


def test_a_sampler_is_asked_one_completion_a_prompt():
    def sample(prompts, n, done=frozenset()):
        assert n == 1
        for i in reversed(range(len(prompts))):  # in any order
            yield i, [TextCompletion(prompts[i] + "!", "length" if i == 1 else "stop", 3)]

    assert asking(sample, lambda text: f"<{text}>")(["a", "b", "c"]) == ["<a>!", "", "<c>!"]


def test_what_is_broken_is_named():
    with pytest.raises(RewardError, match="gave 1 answers to 2 prompts"):
        GenerativeJudge(lambda prompts: ["[[A]]"]).compare(["p"], ["x"], ["y"])
    with pytest.raises(RewardError, match="give one text for each"):
        GenerativeJudge(lambda prompts: [None] * len(prompts)).compare(["p"], ["x"], ["y"])
    with pytest.raises(ConfigError, match=r"compare_template=.*must have the field \{first\}"):
        GenerativeJudge(longer, compare_template="{prompt} {second}")
    with pytest.raises(ConfigError, match="task='rank'"):
        GenerativeJudge(longer).as_reward("rank")
    assert GenerativeJudge(longer, verify_template=VERIFY_TEMPLATE).compare([], [], []) == ([], 0.0)
