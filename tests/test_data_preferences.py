"""Rows of preferences as tokens: every form of them, the summary alone or all of it, what is malformed, the batches."""

import numpy as np
import pytest
from hf_folders import deepseek_folder, write_files
from hypothesis import given, settings
from hypothesis import strategies as st
from test_commands import TEMPLATE

from r1jax.data.chat import ChatTemplate
from r1jax.data.conversations import Encoder, encode_rows
from r1jax.data.hf_tokenizer import load_tokenizer
from r1jax.data.preferences import (
    PreferenceBatches,
    PreferenceEncoder,
    PreferenceExample,
    padded_length,
    without_thinking,
)
from r1jax.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = deepseek_folder(tmp_path_factory.mktemp("tokenizer"))
    return write_files(folder, {"chat_template.jinja": TEMPLATE})


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def make(folder, tokenizer):
    return lambda kind="pairs", summary_only=False, **options: PreferenceEncoder(
        Encoder(tokenizer, ChatTemplate.find(folder), turns="last", **options), kind, summary_only
    )


def said(content, role="assistant"):
    return {"role": role, "content": content}


def texts(tokenizer, example):
    return [tokenizer.decode(ids) for ids in example.sequences]


def test_the_three_forms_of_a_pair_are_one(make, folder, tokenizer):
    question = [said("2 + 1", "user")]
    prompt = ChatTemplate.find(folder).render(question)
    forms = [
        {"prompt": prompt, "chosen": "3", "rejected": "4"},
        {"prompt": question, "chosen": [said("3")], "rejected": [said("4")]},
        {"chosen": [*question, said("3")], "rejected": [*question, said("4")]},
    ]
    first, *others = [make()(form) for form in forms]
    assert others == [first, first]
    (example,) = first
    assert example.target == 0.0
    whole = Encoder(tokenizer, ChatTemplate.find(folder))({"messages": [*question, said("3")]})[0]
    assert example.sequences[0] == whole.tokens  # as the policy's own conversations are encoded
    assert [ids[-1] for ids in example.sequences] == [tokenizer.eos_ids[0]] * 2
    assert texts(tokenizer, example)[1].endswith("4")
    (example,) = make()(forms[0] | {"margin": 0.5, "other": "column"})
    assert example.target == 0.5


def test_the_summary_alone_or_the_whole_response(make, tokenizer):
    row = {"prompt": "Q:", "chosen": "<think>so</think>\n\nA", "rejected": "<think>hm</think>B"}
    shown = texts(tokenizer, make(summary_only=True)(row)[0])
    assert shown == ["Q:A", "Q:B"]
    assert "so" in texts(tokenizer, make()(row)[0])[0]
    label = {"prompt": "Q:", "completion": "<think>so</think>A", "label": True}
    (safe,) = make("pointwise")(label)
    assert len(safe.sequences) == 1 and safe.target == 1.0 and "so" in texts(tokenizer, safe)[0]
    for value, target in ((0, 0.0), (1, 1.0), (False, 0.0), ("False", 0.0), ("1", 1.0), (" true", 1.0)):
        assert make("pointwise")(label | {"label": value})[0].target == target


@pytest.mark.parametrize(
    ("prompt", "completion", "shown"),
    [
        ("Q", "<think>a</think>\nb", ("Q", "b")),
        ("Q", "b", ("Q", "b")),  # it did not think
        ("Q", "a</think>b</think>c", ("Q", "c")),
        ("Q<think>\n", "a</think>b", ("Q", "b")),
        ("Q<think>\n", "a", ("Q", "")),  # cut off while it thought
        ("Q", "<think>a", ("Q", "")),
        ("Q", "<think>a</think>b<think>c", ("Q", "")),
        ("Q", "<think>a</think>", ("Q", "")),
    ],
)
def test_without_thinking(prompt, completion, shown):
    assert without_thinking(prompt, completion) == shown


def test_an_opened_think_of_the_template_is_closed_again(make, folder, tokenizer):
    question = [said("2 + 1", "user")]
    row = {"prompt": question, "chosen": [said("<think>so</think>3")], "rejected": [said("<think>hm</think>4")]}
    opened, plain = make(summary_only=True, think=True), make(summary_only=True)
    assert opened(row) == plain(row)
    assert make(think=True)(row) != make()(row)  # the whole response keeps it


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("pairs", {"prompt": "Q", "chosen": "a"}, 'its fields are prompt, chosen: give "prompt", "chosen"'),
        ("pairs", {"chosen": "Q a", "rejected": "Q b"}, "or the last two as whole conversations"),
        ("pairs", {"prompt": "Q", "chosen": " ", "rejected": "b"}, r"its response is empty \(' '\)"),
        ("pairs", {"prompt": "Q", "chosen": "a", "rejected": "a"}, "are the same"),
        ("pairs", {"prompt": "Q", "chosen": "a", "rejected": "b", "margin": "1"}, "its margin is '1'"),
        ("pairs", {"prompt": "Q", "chosen": [said("a")], "rejected": [said("b")]}, "make it a dict with a 'role'"),
        (
            "pairs",
            {"chosen": [said("Q", "user"), said("a")], "rejected": [said("P", "user"), said("b")]},
            "differ before their last message",
        ),
        ("pointwise", {"prompt": "Q", "completion": "a"}, 'give "prompt", "completion" and "label"'),
        ("pointwise", {"prompt": "Q", "completion": "a", "label": "safe"}, "its label is 'safe'"),
        ("pointwise", {"prompt": "Q", "completion": "a", "label": 2}, "its label is 2"),
        ("pointwise", {"prompt": "Q", "completion": "", "label": 1}, "its response is empty"),
    ],
)
def test_malformed_rows(make, kind, row, message):
    with pytest.raises(DataError, match=message):
        make(kind)(row)
    good = {"prompt": "Q", "chosen": "a", "rejected": "b", "completion": "c", "label": 1}
    with pytest.raises(DataError, match=f"prefs.jsonl, row 2: .*{message}"):
        encode_rows([good, row], make(kind), "prefs.jsonl", 64)
    examples, counts = encode_rows([good, row, good], make(kind), "prefs.jsonl", 64, skip_malformed=True)
    assert len(examples) == 2 and counts == {"rows": 3, "examples": 2, "malformed": 1, "too_long": 0}


def test_a_pair_is_as_long_as_its_longer_response(make):
    row = {"prompt": "Q", "chosen": "a", "rejected": "b" * 30}
    (example,) = make()(row)
    assert len(example) == len(example.sequences[1]) > len(example.sequences[0])
    _, counts = encode_rows([row, row | {"rejected": "b"}], make(), "d", len(example) - 1)
    assert counts["too_long"] == 1


def example(i, size=3):
    return PreferenceExample(([i] * size, [i + 100]), i / 10)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 3), st.integers(0, 5))
def test_every_example_is_in_every_epoch_once(count, rows, epochs, seed):
    batches = PreferenceBatches([example(i) for i in range(1, count + 1)], rows, epochs, seed)
    seen = []
    for step in range(len(batches)):
        batch = batches[step]
        assert batch["tokens"].shape == (rows, 2, 8) and batch["lengths"].tolist() == [[3, 1]] * rows
        assert (batch["tokens"][:, 0, 0] + 100 == batch["tokens"][:, 1, 0]).all()
        assert not batch["tokens"][:, 1, 1:].any()
        np.testing.assert_allclose(batch["targets"] * 10, batch["tokens"][:, 0, 0], rtol=1e-6)
        seen += batch["tokens"][batch["counted"], 0, 0].tolist()
    assert [sorted(seen[e * count : (e + 1) * count]) for e in range(epochs)] == [list(range(1, count + 1))] * epochs
    assert len(seen) == count * epochs
    with pytest.raises(IndexError):
        batches[len(batches)]


def test_batches_are_as_wide_as_the_longest_needs():
    assert PreferenceBatches([example(1, 16)], 1, 1, 0)[0]["tokens"].shape == (1, 2, 16)
    assert PreferenceBatches([example(1, 17), example(2)], 1, 1, 0)[0]["tokens"].shape == (1, 2, 24)
    assert [padded_length(n) for n in (1, 16, 17, 100)] == [16, 16, 32, 128]
    assert padded_length(100, most=120) == 120
