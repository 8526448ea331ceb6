"""Cold-start data: four ways of collecting, one readable format, and a person's word over all filters."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampled import FakeSample, Stop, boxed

from r1jax.data.cards import read_card
from r1jax.data.templates import fill, render_completion, render_r1_zero
from r1jax.errors import ConfigError, DataError
from r1jax.files import file_hash
from r1jax.recipes.cold_start import (
    FEW_SHOT_STOP,
    cold_start_data,
    few_shot,
    merge_edits,
    readable,
    refined,
    refined_by_model,
    reflection,
    zero_outputs,
)
from r1jax.recipes.curation import Curation
from r1jax.rewards import math_accuracy, think_format_reward

PROBLEMS = [
    {"question": "1+1?", "answer": "2", "kind": "sum", "language": "en", "level": 1},
    {"question": "2+2是多少？", "answer": "4", "kind": "sum", "language": "zh", "level": 2},
    {"question": "Add one {to} x.", "answer": "ok", "kind": "program", "language": "en", "level": 3},
]
EXAMPLES = [
    {"question": "1+1?", "response": "<think>never shown to itself</think>2", "language": "en"},
    {"question": "3+3?", "response": "<think>Three and three.</think>6", "language": "en"},
    {"question": "4+4?", "response": "<think>Four and four.</think>8", "language": "en"},
    {"question": "5+5是多少？", "response": "<think>五加五。</think>10", "language": "zh"},
]


def zero(think, answer):
    return render_completion(think, answer)


def folder(parent):
    """Another folder."""
    (parent / "other").mkdir()
    return parent / "other"


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# ------------------------------------------------------------------------------------------------------ the four ways


def test_few_shot_prompts_show_long_examples_in_the_problem_s_language(tmp_path):
    said = "<think>It is {question}.</think>so" + FEW_SHOT_STOP + " 9+9?\n\nResponse: 18"
    sample = FakeSample(lambda prompt, number: f"{said}{number}" if number else "<think>cut off...")
    rows = few_shot(PROBLEMS, EXAMPLES, sample, 2, tmp_path, shots=1)
    english, chinese, program = (rows[i]["prompt"] for i in (0, 2, 4))
    assert "Question: 3+3?\n\nResponse: <think>Three and three.</think>6\n\nQuestion: 1+1?\n\nResponse:" in english
    assert english.endswith("Question: 1+1?\n\nResponse:") and "4+4" not in english and "never shown" not in english
    assert "五加五" in chinese and "3+3" not in chinese
    assert "1+1?" in program and program.endswith("Question: Add one {to} x.\n\nResponse:")
    # A base model goes on with a question of its own: that is cut, and then nothing is missing.
    assert [rows[i]["completion"] for i in (0, 1)] == ["<think>cut off...", "<think>It is {question}.</think>so"]
    assert [rows[i]["finish_reason"] for i in (0, 1)] == ["length", "stop"]
    assert {row["way"] for row in rows} == {"few_shot"} and [row["level"] for row in rows] == [1, 1, 2, 2, 3, 3]
    with pytest.raises(DataError, match=r"'2\+2是多少？': of 4 examples 1 are for its language 'zh'; give shots=2"):
        few_shot(PROBLEMS, EXAMPLES, sample, 2, tmp_path)


def test_prompts_of_one_s_own(tmp_path):
    sample = FakeSample(lambda prompt, number: prompt)
    rows = few_shot(
        PROBLEMS[:1], EXAMPLES, sample, 1, tmp_path, shots=1, render=lambda p, e: f"{e[0]['question']} {p['question']}"
    )
    assert rows[0]["completion"] == "3+3? 1+1?"
    (row,) = reflection(PROBLEMS[:1], sample, 1, tmp_path, render=lambda problem: f"{problem['question']}<think>\n")
    assert row["completion"] == "<think>1+1?<think>\n" and row["prompt"] == "1+1?<think>\n"
    (row,) = reflection(PROBLEMS[2:], sample, 1, folder(tmp_path))
    assert (
        row["prompt"].startswith("Add one {to} x.\n\n") and "verify" in row["prompt"] and "\\boxed{}" in row["prompt"]
    )


def test_zero_s_outputs_become_thinking_and_a_summary(tmp_path):
    texts = {
        "1+1?": [zero("one and one", "2"), "<think>no end", zero("x", " \\boxed{3} ")],
        "2+2是多少？": [zero("二加二", "4")] * 3,
        "Add one {to} x.": [zero("easy", "def f(x):\n    return {x} + 1"), zero("e", "```python\nx\n```"), "no"],
    }
    prompts = {render_r1_zero(question): question for question in texts}
    rows = zero_outputs(PROBLEMS, FakeSample(lambda prompt, number: texts[prompts[prompt]][number]), 3, tmp_path)
    assert [row["completion"] for row in rows] == [
        "<think>one and one</think>The answer is \\boxed{2}.",
        "<think>no end",
        "<think>x</think>\\boxed{3}",
        *["<think>二加二</think>答案是\\boxed{4}。"] * 3,
        "<think>easy</think>```python\ndef f(x):\n    return {x} + 1\n```",
        "<think>e</think>```python\nx\n```",
        "no",
    ]
    assert math_accuracy(["q"] * 4, [row["completion"] for row in rows[:4]], ["2", "2", "3", "4"]) == [1, 0, 1, 1]
    (row, *_) = zero_outputs(
        PROBLEMS[:1],
        FakeSample(lambda *_: zero("a", "2")),
        1,
        folder(tmp_path),
        summarise=lambda row, a: f"{row['level']}:{a}",
    )
    assert row["completion"] == "<think>a</think>1:2"


TEXT = st.text(st.sampled_from("ab1{} \n\\$"), max_size=8)


@settings(max_examples=100, deadline=None)
@given(TEXT, TEXT, st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", ""]))
def test_what_is_readable_is_in_the_format_and_keeps_the_thinking(think, answer, tag):
    said = readable({"completion": zero(think + tag, answer)})
    if tag or not any(c.isalnum() for c in think) or not any(c.isalnum() for c in answer):
        assert said is None
    else:
        assert said.startswith(f"<think>{think}</think>") and answer.strip() in said
        assert think_format_reward([""], [said]) == [1.0]


def test_refining(tmp_path):
    rows = zero_outputs(
        PROBLEMS[:2], FakeSample(lambda prompt, number: zero(f"t{number}...", "2") + "..."), 2, tmp_path
    )
    assert rows[0]["finish_reason"] == "length"

    def refine(row):
        return None if row["language"] == "zh" else {"completion": row["completion"].replace("t", "T", 1)}

    better = refined(rows, refine)
    assert [row["completion"] for row in better] == [row["completion"].replace("t", "T", 1) for row in rows[:2]]
    assert {(row["way"], row["finish_reason"], row["tokens"]) for row in better} == {("refined", None, None)}
    assert len({row["id"] for row in [*rows, *better]}) == 6 and rows[0]["way"] == "zero"
    asked = FakeSample(lambda prompt, number: "<think>better</think>\\boxed{2}")
    by_model = refined_by_model(rows, asked, tmp_path)
    assert [row["completion"] for row in by_model] == ["<think>better</think>\\boxed{2}"] * 4
    assert "in English only" in by_model[0]["prompt"] and "in Chinese only" in by_model[2]["prompt"]
    assert rows[0]["completion"] in by_model[0]["prompt"] and by_model[0]["answer"] == "2"
    assert len({row["id"] for row in [*rows, *by_model]}) == 8


def test_ids_are_the_same_in_every_run_and_drawing_goes_on(tmp_path):
    problems = [*PROBLEMS, PROBLEMS[0]]  # the same prompt twice

    def draw(name, sample):
        (tmp_path / name).mkdir(exist_ok=True)
        return reflection(problems, sample, 2, tmp_path / name, settings={"model": "a"})

    whole = draw("whole", FakeSample(lambda prompt, number: f"{prompt}{number}"))
    assert len({row["id"] for row in whole}) == 8
    with pytest.raises(Stop):
        draw("again", FakeSample(lambda prompt, number: f"{prompt}{number}", stop=2))
    rest = FakeSample(lambda prompt, number: f"{prompt}{number}")
    assert draw("again", rest) == whole and len(rest.calls) == 2
    with pytest.raises(ConfigError, match="other prompts or settings"):
        reflection(problems, rest, 3, tmp_path / "again", settings={"model": "a"})


def test_fill_leaves_other_braces_alone():
    assert fill("{a}{b}\\boxed{}{{a}}", a="{b}") == "{b}{b}\\boxed{}{{b}}"


# ------------------------------------------------------------------------------------------------------- the data set


def candidate(identity, way="zero", thought="I think.", answer="2", question="1+1?", **fields):
    completion = f"<think>{thought}</think>The answer is \\boxed{{{answer}}}."
    return {"question": question, "answer": "2", "language": "en", "kind": "sum", "way": way, "id": identity,
            "prompt": "p", "completion": completion, "finish_reason": "stop", "tokens": 9} | fields  # fmt: skip


ROWS = [
    candidate("good"),
    candidate("wrong", answer="3"),
    candidate("mixed", thought="We see 我们把两个数加起来看看"),
    candidate("other", way="few_shot", thought="Another thought."),
    candidate("code", way="refined", thought="```x```"),
]


def edits_file(folder, edits):
    path = folder / "edits.jsonl"
    path.write_text("".join(f"{json.dumps(edit)}\n" if edit != "" else "\n" for edit in edits))
    return path


def make(folder, rows=ROWS, edits=None, **changes):
    path = None if edits is None else edits_file(folder, edits)
    return cold_start_data(rows, boxed, folder / "cold.jsonl", edits=path, sources={"zero/model": "ab"}, **changes)


def test_what_is_kept_and_told(tmp_path):
    card = make(tmp_path)
    assert [(row["id"], row["source"], row["domain"]) for row in lines(tmp_path / "cold.jsonl")] == [
        ("good", "cold start, zero", "reasoning"),
        ("other", "cold start, few_shot", "reasoning"),
    ]
    assert card == read_card(tmp_path / "cold.jsonl") and card.sources == {"zero/model": "ab"}
    assert {name: count for name, count in card.removed.items() if count} == {
        "wrong": 1, "mixed languages": 1, "code block": 1,
    }  # fmt: skip
    assert card.counts["by way"]["zero"] == {
        "prompts": 1, "prompts without a correct response": 0, "responses": 3, "correct responses": 2,
        "kept responses": 1,
    }  # fmt: skip
    shown = lines(tmp_path / "cold.candidates.jsonl")
    assert [row["removed"] for row in shown] == [None, "wrong", "mixed languages", None, "code block"]
    assert shown[1] == ROWS[1] | {"removed": "wrong"}
    card = make(tmp_path, curation=Curation(per_prompt=1))
    assert card.rows == 1 and card.removed["per prompt"] == 1
    with pytest.raises(DataError, match="id='good': 2 candidates have it"):
        make(tmp_path, rows=[*ROWS, ROWS[0]])
    with pytest.raises(DataError, match=r"no row is left to write \(1 by 'wrong'\)"):
        make(folder(tmp_path), rows=ROWS[1:2])


MINE = "<think>My own way.</think>It is \\boxed{2}."


def test_a_person_s_edits(tmp_path):
    edits = [
        {"id": "good", "edit": {"completion": MINE}},
        "",
        {"id": "mixed", "edit": {"completion": MINE, "language": "zh"}},
        {"id": "other", "drop": True},
        {"new": {"question": "2+2?", "completion": MINE, "language": "en", "kind": "sum"}},
        {"new": {"question": "2+2?", "completion": MINE + " Yes."}},
    ]
    card = make(tmp_path, edits=edits)
    rows = lines(tmp_path / "cold.jsonl")
    said = [(row["source"], row["messages"][0]["content"], row["messages"][1]["content"]) for row in rows]
    assert said == [
        ("cold start, zero", "1+1?", MINE),
        ("cold start, zero", "1+1?", MINE),
        ("cold start, person", "2+2?", MINE),
        ("cold start, person", "2+2?", MINE + " Yes."),
    ]
    assert [row["id"] for row in rows[:2]] == ["good", "mixed"] and rows[1]["language"] == "zh"
    assert len({row["id"] for row in rows}) == 4
    assert card.counts["edits"] == {"edited": 2, "brought back": 1, "dropped": 1, "new": 2}
    assert card.sources["edits.jsonl"] == file_hash(tmp_path / "edits.jsonl")
    before = (tmp_path / "cold.jsonl").read_bytes()
    make(tmp_path, edits=edits)
    assert (tmp_path / "cold.jsonl").read_bytes() == before and ROWS[0] == candidate("good")


WRONG = {
    "an id that is none": ({"id": "nobody", "drop": True}, "id='nobody' is no candidate's"),
    "twice": ({"id": "good", "drop": True}, "id='good' was edited at .*edits.jsonl:1; say it once"),
    "no form": ({"id": "wrong"}, "its fields are id; give"),
    "both": ({"id": "wrong", "drop": True, "edit": {}}, "its fields are id, drop, edit"),
    "not dropped": ({"id": "wrong", "drop": False}, "its fields are id, drop"),
    "nothing": ({"id": "wrong", "edit": {}}, "edit={}: give an object"),
    "a field that is none": ({"id": "wrong", "edit": {"text": "x"}}, "field 'text' cannot be edited; .* has question"),
    "a field that is ours": ({"id": "wrong", "edit": {"way": "x"}}, "field 'way' cannot be edited"),
    "no text": ({"id": "wrong", "edit": {"question": 3}}, "question='3'; give text"),
    "another format": ({"id": "wrong", "edit": {"completion": "2"}}, "completion='2' is not <think>"),
    "half a row": ({"new": {"completion": MINE}}, "new has no 'question'"),
    "a new one in another format": ({"new": {"question": "q", "completion": "x"}}, "completion='x' is not <think>"),
    "no object": ({"new": 3}, "its fields are new; give"),
}


@pytest.mark.parametrize("name", WRONG)
def test_edits_that_cannot_be_made_are_named_by_line(tmp_path, name):
    edit, told = WRONG[name]
    with pytest.raises(DataError, match=r"^\S+/edits\.jsonl:3: " + told):
        merge_edits(ROWS, [None] * 5, edits_file(tmp_path, [{"id": "good", "edit": {"completion": MINE}}, "", edit]))


def test_other_formats_may_be_edited_where_none_is_asked_for(tmp_path):
    path = edits_file(tmp_path, [{"id": "good", "edit": {"completion": "2"}}])
    rows, _ = merge_edits(ROWS, [None] * 5, path, check_format=False)
    assert [row["completion"] for row in rows] == ["2", *(row["completion"] for row in ROWS[1:])]


def test_a_mistake_in_the_edits_does_not_wait_for_the_judging(tmp_path):
    with pytest.raises(DataError, match="no candidate's"):
        make(tmp_path, edits=[{"id": "nobody", "drop": True}])
    assert not list(tmp_path.glob("*.judged.jsonl"))
