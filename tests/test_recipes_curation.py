"""Filters of responses: each removes what it is for, is counted, and leaves what is only near to it."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.data.decontamination import words_of
from r1jax.data.sources import read_rows
from r1jax.errors import ConfigError
from r1jax.recipes.curation import FILTERS, REASONS, Curation, chain_of_thought, curate

DATA = Path(__file__).parents[2] / "shared" / "data"
EN = "First we add the two numbers and then we check the sum once more."
ZH = "我们先把两个数加起来，然后再检查一遍结果。"
OFF = Curation(
    format=None, min_language_share=None, max_paragraph=None, code_blocks=True, max_repetition=None, duplicates=None
)


def row(completion, question="q", **fields):
    return {"question": question, "completion": completion, **fields}


def think(thought, summary="It is 3."):
    return f"<think>{thought}</think>{summary}"


CASES = {  # filter: (rows that it removes, rows that it leaves), under the settings that follow
    "truncated": (
        [row(think(EN), finish_reason="length")],
        [row(think(EN), finish_reason="stop"), row(think(EN))],
        {},
    ),
    "format": (
        [
            row(text)
            for text in (EN, think(" "), think(EN, ""), "<think>a<answer>3</answer>", "x" + think(EN), think(EN) * 2)
        ],
        [row(think(EN))],
        {"format": "think"},
    ),
    "mixed languages": (
        [row(think(EN + ZH), language="en"), row(think(EN), language="zh"), row(think(ZH + EN), language="zh-CN")],
        [
            row(think(EN, ZH), language="en"),  # the chain of thought alone is asked about
            row(think(ZH), language="zh"),
            row(think("1+1=2"), language="zh"),
            row(think(EN + ZH), language=None),
            row(think(EN + ZH)),
        ],
        {"min_language_share": 0.9},
    ),
    "long paragraph": (
        [row(think("x" * 11)), row(think("ok\n" + "x" * 11 + "\nok"))],
        [row(think("x" * 10 + "\n" + "x" * 10, "y" * 99)), row(think(""))],
        {"max_paragraph": 10},
    ),
    "code block": (
        [row(think("try\n```python\nx\n```\n")), row(think("```", "```python\nx\n```"))],
        [row(think("`x`", "```python\nx\n```"))],
        {"code_blocks": False},
    ),
    "repetition": (
        [row(think("so we add one and two. " * 9)), row(think("先加一再加二" * 9))],
        [row(think(EN)), row(think("so we add one and two. " * 1)), row("a b c")],
        {"max_repetition": 0.5, "repetition_ngram": 4},
    ),
    "length": ([row("x" * 4), row("x" * 11)], [row("x" * 5), row("x" * 10)], {"min_length": 5, "max_length": 10}),
}


def switched(**changes):
    return Curation(**{**OFF.__dict__, **changes})


@pytest.mark.parametrize("name", FILTERS)
def test_each_filter_removes_what_it_is_for(name):
    bad, good, changes = CASES[name]
    rows = [*bad, *good]
    curated = curate(rows, switched(**changes))
    assert curated.reasons == [name] * len(bad) + [None] * len(good)
    assert curated.rows == good and curated.removed == dict.fromkeys(REASONS, 0) | {name: len(bad)}
    if changes:  # switched off, it lets them pass
        assert curate(rows, OFF).rows == rows


def test_a_row_counts_for_the_first_filter_that_it_fails():
    rows = [row(EN, finish_reason="length"), row("x"), row(think(ZH + EN + "```"), language="en"), row(think(EN))]
    curated = curate(rows, Curation())
    assert curated.reasons == ["truncated", "format", "mixed languages", None]
    assert list(curated.removed) == list(REASONS)


def test_zero_s_format():
    good = "<think>a</think><answer>3</answer>"
    assert curate([row(good), row(think("a"))], switched(format="answer")).rows == [row(good)]


def test_duplicates():
    texts = ["3+5 = 8.", "3+5=8", "3-5=8", "3+5 = 8."]
    rows = [row(text, question) for question in "ab" for text in texts]
    assert curate(rows, switched(duplicates="exact")).reasons == [None, None, None, "duplicate"] * 2
    assert curate(rows, switched(duplicates="normalised")).reasons == [None, "duplicate", None, "duplicate"] * 2


def test_a_duplicate_of_what_is_removed_is_kept():
    rows = [row("3 + 5", finish_reason="length"), row("3+5")]
    assert curate(rows, switched(duplicates="normalised")).reasons == ["truncated", None]


@pytest.mark.parametrize(
    ("choose", "count", "kept"),
    [
        ("first", 2, [5, 1]),
        ("shortest", 2, [1, 2]),
        ("shortest", 1, [1]),
        ("spread", 1, [1]),
        ("spread", 2, [5, 1]),
        ("spread", 3, [5, 1, 3]),
        ("spread", 9, [5, 1, 4, 2, 3]),
    ],
)
def test_responses_of_each_length(choose, count, kept):
    rows = [row("x" * n, question) for question in "ab" for n in (5, 1, 4, 2, 3)]
    curated = curate(rows, switched(per_prompt=count, choose=choose))
    assert [(r["question"], len(r["completion"])) for r in curated.rows] == [(q, n) for q in "ab" for n in kept]
    assert curated.removed["per prompt"] == 2 * (5 - len(kept))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.text("xy ", max_size=6)), max_size=12),
    st.integers(1, 4),
    st.sampled_from(["shortest", "first", "spread"]),
)
def test_every_row_is_accounted_for_and_order_is_kept(pairs, count, choose):
    rows = [row(text, question, number=i) for i, (question, text) in enumerate(pairs)]
    curated = curate(rows, switched(per_prompt=count, choose=choose, duplicates="normalised"))
    assert sum(curated.removed.values()) + len(curated.rows) == len(rows)
    assert [r["number"] for r in curated.rows] == [i for i, reason in enumerate(curated.reasons) if reason is None]
    for question in "abc":
        texts = [r["completion"] for r in curated.rows if r["question"] == question]
        different = {text.replace(" ", "") for q, text in pairs if q == question}
        assert len(texts) == min(count, len(different)) == len({text.replace(" ", "") for text in texts})


@pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not here")
def test_what_people_wrote_passes_and_mixtures_of_it_do_not():
    def rows_in(name, field, language, **kwargs):
        texts = [fields[field] for fields in read_rows(DATA / name, **kwargs)][:100]
        return [row(think(text), text, language=language) for text in texts]

    english = rows_in("math500", "solution", "en")
    chinese = rows_in("mgsm/mgsm_zh.tsv", "question", "zh", columns=("question", "answer"))
    assert curate(english + chinese, Curation()).removed == dict.fromkeys(REASONS, 0)
    prose = [e for e in english if len(words_of(e["question"])) > 80]
    pairs = list(zip(prose, chinese, strict=False))
    mixed = [row(think(e["question"] + c["question"]), language=to) for e, c in pairs for to in ("en", "zh")]
    assert len(pairs) > 20 and curate(mixed, Curation()).removed["mixed languages"] >= 0.9 * len(mixed)


def test_chain_of_thought():
    assert chain_of_thought("<think>a</think>b</think>c") == "a</think>b"
    assert chain_of_thought("<think>open") == "open" and chain_of_thought("none") == "none"


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "xml"},
        {"min_language_share": 1.5},
        {"max_paragraph": 0},
        {"per_prompt": 0},
        {"min_length": -1},
        {"choose": "longest"},
        {"duplicates": "fuzzy"},
        {"max_repetition": -0.1},
    ],
)
def test_settings_are_checked(changes):
    (name,) = changes
    with pytest.raises(ConfigError, match=f"{name}="):
        Curation(**changes)
