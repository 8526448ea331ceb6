"""The accuracy reward on real data: other projects' verdicts, models' solutions with flags, reference solutions."""

import json
from functools import cache
from pathlib import Path

import pytest

from r1jax.rewards import math_accuracy
from r1jax.rewards.answers import extract_answer, extract_answers
from r1jax.rewards.equivalence import compare, equivalent
from r1jax.rewards.latex import clean, squash

DATA = Path(__file__).parents[2] / "shared/data"

# Graders whose verdicts are not about what an answer means, by the beginning of their names.
OTHER_POLICIES = {
    "dapo-string": "compares strings: rejects equal numbers written otherwise",
    "dapo-strict-box": "wants a box near the end of the text",
    "deepscaler(</think> required)": "wants </think>, whatever the answer",
    "gpqa-letter": "finds a choice letter in prose; nothing is compared",
    "gsm8k-hash-strict-format": "wants a line of #### alone",
    "hendrycks-string": "compares strings: rejects a list in another order",
    "lighteval-indices": "finds a choice letter in prose; nothing is compared",
    "mathd-string": "compares strings",
    "mathd/sympy boxed-required": "wants a box",
    "open-instruct-puzzle-text": "compares prose, without case and punctuation",
    "prm800k-sympy(unreduced fraction rejected)": "rejects fractions that are not in lowest terms",
    "rllm boxed-required": "wants a box",
    "skythought-symbolic(percent ok, rel 1e-3)": "takes 75 for 0.75 and whatever is near by 0.1%",
    "trl reasoning_accuracy_reward(</think> required)": "wants </think>, whatever the answer",
    "tunix-symbolic": "takes 16.67 and 2.3 for repeating decimals",
}
# Rows whose verdict holds under an option that the grader does not have by default.
OPTIONS = {
    123: "strict=False: f(x) may be f(y)",
    207: "precision 1e-4 comes with the problem",
    209: "precision 1e33 comes with the problem",
    210: "precision 0.001 comes with the problem",
}
DISAGREEMENTS = {  # line of cases.jsonl: (this grader's verdict, why)
    15: (True, "the answer is the same number; that grader does not look for $...$ across lines"),
    128: (False, "1 - 1/e is not 1 + 1/e; that grader's parser stops at \\mathrm{e} and keeps the 1 of both"),
    380: (True, "10000 is 10{,}000; that grader did not read the separator"),
}


@cache
def rows(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"needs ../shared/data/{name}, which is no part of this repository")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def graded(row):
    """Gold answers, of which one suffices, against a bare answer or a text to find it in."""
    golds = row["gold"] if isinstance(row["gold"], list) else [row["gold"]]
    if row["kind"] in ("pair", "model_pred"):
        return True in compare(golds, [row["pred"]] * len(golds))
    return 1.0 in math_accuracy([""] * len(golds), [row["pred"]] * len(golds), golds)


def test_other_graders_verdicts():
    cases = rows("grader_cases/cases.jsonl")
    assert {row["grader"] for row in cases} > OTHER_POLICIES.keys()
    judged = {
        line: (graded(row), row["expected"])
        for line, row in enumerate(cases, 1)
        if row["grader"] not in OTHER_POLICIES and line not in OPTIONS
    }
    assert len(judged) == 346
    disagreements = {line: ours for line, (ours, theirs) in judged.items() if ours != theirs}
    assert disagreements == {line: ours for line, (ours, _) in DISAGREEMENTS.items()}
    assert len(disagreements) <= 0.01 * len(judged)


def test_verdicts_under_options_that_are_left_out():
    """What this grader says where the others' options are not its own: never more than they."""
    cases = rows("grader_cases/cases.jsonl")
    assert {line: graded(cases[line - 1]) for line in OPTIONS} == dict.fromkeys(OPTIONS, False)


def test_flags_of_models_gsm8k_solutions():
    """All 1,319 x 4. A solution's last line is "A: 18"; one that was cut off before it is wrong."""
    problems = rows("gsm8k/example_model_solutions.jsonl")
    models = [name for name in problems[0] if name not in ("question", "ground_truth")]
    pairs = [(row, row[model]) for row in problems for model in models]
    scores = math_accuracy(
        [row["question"] for row, _ in pairs],
        [made["solution"] for _, made in pairs],
        [row["ground_truth"].rpartition("A: ")[2] for row, _ in pairs],
    )
    assert len(scores) == 5276
    wrong = [(i // 4 + 1, models[i % 4]) for i, (_, made) in enumerate(pairs) if scores[i] != float(made["is_correct"])]
    assert wrong == []


def test_gsm8k_solutions_have_their_own_answers():
    """The answer column of the published data is the whole solution, which ends in "#### 18"."""
    problems = rows("gsm8k/test.jsonl")
    scores = math_accuracy(
        [row["question"] for row in problems],
        [rf"\boxed{{{row['answer'].rpartition('#### ')[2]}}}" for row in problems],
        [row["answer"] for row in problems],
    )
    assert scores == [1.0] * 1319


def test_math500_solutions_have_their_own_answers():
    problems = rows("math500/test.jsonl")
    prompts, solutions = ([row[name] for row in problems] for name in ("problem", "solution"))
    assert math_accuracy(prompts, solutions, [row["answer"] for row in problems]) == [1.0] * 500


def test_math_solutions_have_their_own_answers():
    problems = rows("math/train_sample3000.jsonl")
    prompts, solutions = ([row[name] for row in problems] for name in ("problem", "solution"))
    golds = [extract_answer(solution) for solution in solutions]
    assert math_accuracy(prompts, solutions, golds) == [1.0] * 3000


# The solutions that box two different things. MATH's own graders take the last box for the gold answer; then these box
# more than it, which no reward can tell from guessing twice.
SEVERAL_BOXES = {
    98: "two angles on the way, and those asked for",
    625: "two points, of which either will do",
    1272: "two values",
    1346: "two values",
    1622: "two values",
    1634: "two points",
    1688: "two angles",
    1730: "a congruence on the way",
    1885: "a vector and its negative, of which either will do",
    2242: "two values",
    2772: "two points",
    2964: "a box on the way",
}


def test_math_solutions_that_box_several_answers():
    problems = rows("math/train_sample3000.jsonl")
    last = [r"\boxed{" + extract_answers(row["solution"])[-1] + "}" for row in problems]
    scores = math_accuracy([""] * 3000, [row["solution"] for row in problems], last)
    assert {line for line, score in enumerate(scores, 1) if score != 1.0} == SEVERAL_BOXES.keys()


@pytest.mark.parametrize(
    ("name", "same_number"),
    [
        # Pairs (line, shift) of problems whose answers are one number, of which one is written as x = 5, in degrees or
        # in percent: the other problem's answer is right.
        ("math500/test.jsonl", {(23, 1)}),
        ("math/train_sample3000.jsonl", {(693, 1), (478, 2), (371, 7), (808, 7), (1348, 7)}),
    ],
)
def test_another_problems_answer_is_wrong(name, same_number):
    problems = rows(name)
    golds = [row.get("answer") or extract_answer(row["solution"]) for row in problems]
    found = set()
    for shift in (1, 2, 7):
        moved = problems[shift:] + problems[:shift]
        scores = math_accuracy([row["problem"] for row in problems], [row["solution"] for row in moved], golds)
        assert None not in scores
        for line, (score, gold, other) in enumerate(zip(scores, golds, golds[shift:] + golds[:shift], strict=True), 1):
            if squash(clean(gold)) == squash(clean(other)):
                assert score == 1.0, line
            elif score == 1.0:
                found.add((line, shift))
    assert found == same_number


def test_competitions_answers_in_their_own_formats():
    """AIME's are strings with leading zeros, AMC's are floats."""
    aime, amc = rows("aime/aime2024.jsonl"), rows("amc23/test.jsonl")
    for problems, kind in ((aime, str), (amc, float)):
        golds = [row["answer"] for row in problems]
        assert all(isinstance(gold, kind) for gold in golds)
        right = [rf"Thus $\boxed{{{int(float(gold))}}}$." for gold in golds]
        wrong = [rf"Thus $\boxed{{{int(float(gold)) + 1}}}$." for gold in golds]
        assert math_accuracy([""] * len(golds), right, golds) == [1.0] * len(golds)
        assert math_accuracy([""] * len(golds), wrong, golds) == [0.0] * len(golds)


def test_aime_solutions_have_their_own_answers():
    problems = rows("aime/aime2024.jsonl")
    scores = math_accuracy([""] * 30, [row["solution"] for row in problems], [row["answer"] for row in problems])
    assert {line for line, score in enumerate(scores, 1) if score != 1.0} == set()


def test_equal_answers_are_equal_either_way():
    """A vote compares answers with each other: no two of these may depend on which comes first."""
    golds = [row["answer"] for row in rows("math500/test.jsonl")][:60]
    for first in golds:
        for second in golds:
            assert equivalent(first, second) is equivalent(second, first), (first, second)
