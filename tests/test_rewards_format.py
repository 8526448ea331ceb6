"""Format rewards: every known way to be paid for tags without using them for what they are."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.data.templates import render_r1_zero
from r1jax.rewards import format_reward, think_format_reward

CASES = Path(__file__).parents[2] / "shared" / "data" / "grader_cases" / "format_cases.jsonl"
GOOD = "<think>3+5=8</think><answer>8</answer>"
SUMMARY = "<think>3+5=8</think>The answer is 8."
R1_ZERO_PROMPT = render_r1_zero("What is 3+5?")
R1_PROMPT = "<｜User｜>What is 3+5?<｜Assistant｜><think>\n"


def formatted(completion, prompt=R1_ZERO_PROMPT):
    return format_reward([prompt], [completion], answer=["8"])[0]


def thought(completion, prompt="<｜User｜>What is 3+5?<｜Assistant｜>"):
    return think_format_reward([prompt], [completion], answer=["8"])[0]


@pytest.mark.parametrize(
    "completion", [GOOD, f" \n{GOOD}\n", "<think>\nlong\n\nthought\n</think>\n\n<answer> 8 </answer>\n"]
)
def test_format_accepts(completion):
    assert formatted(completion) == 1.0


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "8",
        "<answer>8</answer>",
        "<think>3</think>",
        "<think>3</think><think>5</think><answer>8</answer>",
        "<think><think>3</think></think><answer>8</answer>",
        "<think>3<think>5</think><answer>8</answer>",
        "<think>3</think><answer>9<answer>8</answer>",
        "<think></think><answer>8</answer>",
        "<think> \n</think><answer>8</answer>",
        "<think>3</think><answer></answer>",
        "<think>3</think><answer> </answer>",
        "<think>3</think><answer>8</answer><answer>8</answer>",
        f"{GOOD} and so on",
        f"Well, {GOOD}",
        "<think>3</think> so <answer>8</answer>",
        "<answer>8</answer><think>3</think>",
        "<think>3<answer>8</answer></think>",
        "<think>3<answer></think>8</answer>",
        "</think>3<think><answer>8</answer>",
        "<think>3</think><answer>8",
        "<Think>3</Think><answer>8</answer>",
        "3</think><answer>8</answer>",
        SUMMARY,
    ],
)
def test_format_rejects(completion):
    assert formatted(completion) == 0.0


@pytest.mark.parametrize(
    "completion",
    [SUMMARY, f" \n{SUMMARY}\n", "<think>\nlong\n\nthought\n</think>\n\n**8**, since $3+5=8$ and 3 < 5\n"],
)
def test_summary_accepts(completion):
    assert thought(completion) == 1.0


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "8",
        "The answer is 8.",
        "<think>3+5=8</think>",
        "<think>3+5=8</think>\n ",
        "<think>3+5=8",
        "3+5=8</think>8",
        "<think></think>8",
        "<think> \n</think>8",
        "So: <think>3+5=8</think>8",
        "<think>3</think><think>5</think>8",
        "<think>3</think>8<think>5</think>",
        "<think><think>3</think></think>8",
        "<think>3<think>5</think>8",
        "<think>3</think>8</think>",
        "</think>3<think>8",
        GOOD,
        "<think>3</think>8</answer>",
        "<think>3<answer></think>8",
        "<Think>3</Think>8",
    ],
)
def test_summary_rejects(completion):
    assert thought(completion) == 0.0


@pytest.mark.parametrize("reward, whole", [(format_reward, GOOD), (think_format_reward, SUMMARY)])
def test_a_block_that_the_prompt_has_opened(reward, whole):
    """DeepSeek makes R1's prompts end with <think>: the completion starts inside the block."""
    rest = whole.removeprefix("<think>")
    for prompt in (R1_PROMPT, R1_PROMPT.rstrip(), f"{R1_PROMPT}\n "):
        assert reward([prompt], [rest]) == [1.0]
        assert reward([prompt], [f"\n{rest}\n"]) == [1.0]
        assert reward([prompt], [whole]) == [0.0]  # two openings
        assert reward([prompt], [rest.replace("3+5=8", " \n")]) == [0.0]
        assert reward([prompt], [f"{rest}<think>"]) == [0.0]
    for prompt in ("", "User: what does <think> mean?", "<think>\n</think>", "<think>so"):
        assert reward([prompt], [rest]) == [0.0]
        assert reward([prompt], [whole]) == [1.0]


def test_a_prompt_that_opens_the_block_is_its_own_row_s():
    assert think_format_reward(["p", R1_PROMPT, "p"], [SUMMARY, "x</think>y", "x</think>y"]) == [1.0, 1.0, 0.0]


# Rows whose verdict is another project's policy, by line: TRL's pattern takes an empty think block; ours is strict.
OTHER_POLICY = {3: "the think block is empty"}


@pytest.mark.skipif(not CASES.exists(), reason=f"{CASES} is not here")
def test_cases_of_other_projects():
    rewards = {"think_answer_tags": format_reward, "think_then_answer_text": think_format_reward}
    disagree = {}
    for number, line in enumerate(CASES.read_text(encoding="utf-8").splitlines(), start=1):
        case = json.loads(line)
        if rewards[case["format"]](["p"], [case["text"]]) != [float(case["expected"])]:
            disagree[number] = case
    assert disagree.keys() == OTHER_POLICY.keys()


TAGS = st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", " ", "\n", "x", "<", "think>"])


@given(st.lists(TAGS, max_size=9))
def test_no_text_has_both_formats_and_each_says_what_it_promises(parts):
    text = "".join(parts)
    answered, summarised = formatted(text) == 1.0, thought(text) == 1.0
    assert not (answered and summarised)
    if answered or summarised:
        assert text.count("<think>") == text.count("</think>") == 1
        assert text.lstrip().startswith("<think>")
        inside, _, after = text.partition("<think>")[2].partition("</think>")
        assert inside.strip() and after.strip()
        assert answered == after.strip().startswith("<answer>") == after.strip().endswith("</answer>")


def test_time_is_linear_in_the_text():
    start = time.perf_counter()
    for tag in ("<think>", "<answer>", "<answer></answer>", "</think>", "<", "<think>x</think>"):
        for prompt in ("p", R1_PROMPT):
            formatted(tag * 200_000, prompt)
            thought(tag * 200_000, prompt)
    thought(f"<think>{'x' * 10_000_000}</think>8")
    assert time.perf_counter() - start < 5
