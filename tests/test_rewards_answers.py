"""The final answer of a completion: where it stands, which policy several answers meet, and in how much time."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.rewards.answers import extract_answer, extract_answers, gold_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1/2}", "1/2"),
        (r"So $x = \boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"\boxed{\{x : \sqrt{x^{2}} < \frac{1}{2}\}}", r"\{x : \sqrt{x^{2}} < \frac{1}{2}\}"),
        (r"\boxed{a\}b}", r"a\}b"),
        (r"\boxed {5}", "5"),
        (r"$\boxed 5$ apples", "5"),
        (r"\boxed 12. Done", "12"),
        (r"\fbox{7}", "7"),
        (r"\\boxed{7}", "7"),
        (r"\boxed{\boxed{5}}", r"\boxed{5}"),
        (r"\boxed{5 \boxed{6}}", r"5 \boxed{6}"),
        (r"put it within \boxed{}: \boxed{5}", "5"),
        (r"{unbalanced \boxed{5} } } {", "5"),
        ("<think>6</think><answer>5</answer>", "5"),
        (r"<answer>So it is $\boxed{5}$ apples</answer>", "5"),
        ("<answer>The answer is 5.</answer>", "5"),
        ("<answer>5", "5"),  # a stop string is not part of the completion
        ("<answer> New York </answer>", "New York"),
        (r"The answer is $\frac12$.", r"$\frac12$"),
        ("Therefore, the final answer is: **42**.", "42"),
        ("The answer is 5 because 2 + 3 = 5, and 1 + 1 = 2", "5"),
        ("The answer is C.", "C"),
        ("The answer: D, since A and B do not hold", "D"),
        ("Reasoning\n#### 1,234", "1,234"),
        ("2 + 2 = 4", "2 + 2 = 4"),
        ("x = 3", "x = 3"),
        ("So we get 3 + 10 = 13 birds.", "13"),
        ("首先 3 + 4 = 7。所以一共有3 + 10 = 13只鸟。", "13"),
        ("It costs $5 and $7.50 with tax.", "$5, $7.50"),
        ("that makes 1,000.99€", "1,000.99"),
        ("a loss of 25 percent then", "25 percent"),
        ("that is 3 million people", "3 million"),
        ("We find that $x = 2$ or $x = 3$.", "$x = 2$ or $x = 3$"),
        (r"where $n=1$, thus \(m = 7\)", r"\(m = 7\)"),
        ("AZYUK2A", "AZYUK2A"),
        ("", None),
        (" \n", None),
        (" ... ", None),
        (r"\boxed{}", None),
        (r"\boxed{ }", None),
        (r"I am sure that it must be \boxed{\frac{1}{2}", None),
        ("I don't know what to say about this one here", None),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        # Thinking is not the answer: not its boxes, not its tags.
        (r"<think>\boxed{4}</think>\boxed{5}", ["5"]),
        (r"\boxed{4}</think>\boxed{5}", ["5"]),
        (r"<think>maybe \boxed{4}</think> I cannot say anything definite about it", []),
        (r"<think>maybe \boxed{4}", []),
        (r"<think>so \boxed{4}</think>", ["4"]),  # nothing came after it
        (r"\boxed{5} <think>or \boxed{4}", ["5"]),
        # Everything in the final part counts.
        (r"\boxed{4} ... no, \boxed{5}", ["4", "5"]),
        (r"\boxed{5} and again \boxed{ 5 }, that is \boxed{\dfrac{10}{2}}", ["5", r"\dfrac{10}{2}"]),
        ("<answer>4</answer> <answer>5</answer>", ["4", "5"]),
        (r"<answer>4</answer> \boxed{5}", ["4", "5"]),
        (r"so $k=\boxed{5}$ or $k=\boxed{-3}$", ["5", "-3"]),
        # What comes before the final part does not.
        (r"First \boxed{200}. Final Answer: The final answer is $455$.", ["$455$"]),
        ("\\boxed{1}\n**Final Answer**\n\\boxed{2}", ["2"]),
        ("### Final Answer:\n\\boxed{2}\n\n### Final Answer:\n\\boxed{3}", ["2", "3"]),
        (r"\boxed{1} is the final answer: see above, all of it", ["1"]),
        (r"\boxed{3} <answer>5</answer>", ["5"]),
        # Numbers in a row may be options to choose from.
        ("It could be 3, 4, or 5", ["3, 4, 5"]),
        ("1 2 3 4 5", ["1 2 3 4 5"]),
        ("perhaps 4? 5? 6", ["4, 5, 6"]),
        # Words around a number that take it back.
        ("I can say for certain that it is not 5", []),
        ("I would say 5 or anything", []),
        ("print(5) gives the result of the program", []),
    ],
)
def test_policy(text, answers):
    assert extract_answers(text) == answers


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (42, "42"),
        (27.0, "27"),
        (0.00001, "0.00001"),
        (float("nan"), ""),
        (float("inf"), ""),
        (None, ""),
        ("025", "025"),
        (r"\boxed{4} and later \boxed{5}", "5"),
        (r"$x=\boxed{1}$ and $x=\boxed{-2}$", "1 and -2"),
        (r"\boxed{1} no no no \boxed{2}", "2"),
        ("Natalia sold 48/2 = 24.\n#### 72", "72"),
        (r"\text{The midpoints form a regular hexagon}", r"\text{The midpoints form a regular hexagon}"),
        ("New York City", "New York City"),
        ("Answer is forty two.", ""),
        ("I really do not know", ""),
    ],
)
def test_gold_answer(gold, answer):
    assert gold_answer(gold) == answer


contents = st.recursive(
    st.text("abx12+-=<>., $", min_size=1, max_size=6),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(lambda parts: "{" + "".join(parts) + "}"),
    max_leaves=12,
).filter(str.strip)


@given(contents, st.text("ab \\{}$<>\n", max_size=30))
def test_balanced_boxes_come_back_whole(content, before):
    text = before.replace("\\", "") + r"\boxed{" + content + "}"
    assert extract_answers(text) == [content.strip()]


@given(st.text("\\boxed{}<>/answerthink $5()[]\n.,#", max_size=200))
def test_any_text_has_answers(text):
    answers = extract_answers(text)
    assert all(answers) and (extract_answer(text) is None) == (not answers)
    assert isinstance(gold_answer(text), str)


@pytest.mark.parametrize(
    "piece",
    ["\\boxed{", "}", "{", "$", "\\[", "<answer>", "</answer>", "<think>", "</think>", "\\boxed{5}", "\\boxed ", "5,",
     "\\", "answer is ", "answer: ", "final answer:", "1 000 ", "#### ", "\\frac{", "or ", "x_1=", " "],
)  # fmt: skip
def test_time_is_linear_in_the_text(piece):
    start = time.perf_counter()
    extract_answers(piece * (400_000 // len(piece)))
    gold_answer(piece * (400_000 // len(piece)))
    assert time.perf_counter() - start < 5


def test_the_last_of_very_many_answers_are_looked_at():
    assert extract_answers("".join(rf"\boxed{{{n}}}" for n in range(1000))) == [str(n) for n in range(936, 1000)]
