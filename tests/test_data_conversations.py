"""Examples for supervised fine-tuning: every token's label, as sampling would see it, and batches of whole epochs."""

import numpy as np
import pytest
from hf_folders import deepseek_folder, llama3_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data_batches import unpack
from test_data_chat import LLAMA3, R1_FORCED, R1_OPEN

from r1jax.data import ChatTemplate, load_tokenizer
from r1jax.data.conversations import Encoder, Example, encode_rows
from r1jax.data.iterators import SFTBatches
from r1jax.data.sources import iterate_all_rows
from r1jax.data.templates import R1_CHAT_TEMPLATE, R1_ZERO_CHAT_TEMPLATE
from r1jax.errors import ConfigError, DataError

CHAT = [
    {"role": "user", "content": "one and one?"},
    {"role": "assistant", "content": "<think>\n1+1=2\n</think>\n\ntwo"},
    {"role": "user", "content": "and one?"},
    {"role": "assistant", "content": "<think>\n2+1=3\n</think>\n\nthree"},
]


@pytest.fixture(scope="module")
def deepseek(tmp_path_factory):
    return load_tokenizer(deepseek_folder(tmp_path_factory.mktemp("deepseek")))


def parts(tokenizer, example):
    """(text that is read only, text that is learned without its end, the last id)."""
    border = example.mask.index(True)
    assert not any(example.mask[:border]) and all(example.mask[border:])
    assert len(example.tokens) == len(example.mask)
    return tokenizer.decode(example.tokens[:border]), tokenizer.decode(example.tokens[border:-1]), example.tokens[-1]


@pytest.mark.parametrize("source", [R1_OPEN, R1_FORCED])
def test_each_turn_is_learned_after_the_prompt_that_it_would_be_sampled_from(deepseek, source):
    """R1's template takes the thinking out of what was said, and of a last turn too: there it must not be lost."""
    template = ChatTemplate(source, {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"})
    for think in (False, True):
        examples = Encoder(deepseek, template, think=think)({"messages": CHAT})
        assert len(examples) == 2
        for i, example in zip((1, 3), examples, strict=True):
            prompt = template.render(CHAT[:i], think=think)
            read = len(deepseek.encode(prompt))
            assert example.tokens[:read] == deepseek.encode(prompt) and example.mask.index(True) == read
            _, learned, end = parts(deepseek, example)
            opened = prompt.endswith("<think>\n")
            assert opened == (think or source is R1_FORCED)
            assert learned == (CHAT[i]["content"].removeprefix("<think>\n") if opened else CHAT[i]["content"])
            assert end == deepseek.eos_ids[0]
            assert example.tokens.count(deepseek.bos_id) == 1
    assert "1+1" not in parts(deepseek, examples[1])[0]
    (last,) = Encoder(deepseek, template, turns="last", think=True)({"messages": CHAT})
    assert last == examples[1]


def test_a_turn_ends_with_the_stop_that_the_template_writes(tmp_path):
    tokenizer = load_tokenizer(llama3_folder(tmp_path))
    template = ChatTemplate.find(tmp_path) or ChatTemplate(LLAMA3, {"bos_token": "<|begin_of_text|>"})
    (example,) = Encoder(tokenizer, template)({"messages": CHAT[:2]})
    end = tokenizer.encode("<|eot_id|>")
    assert [example.tokens[-1]] == end and end[0] in tokenizer.eos_ids
    (plain,) = Encoder(tokenizer)({"prompt": "a", "completion": "b"})
    assert plain.tokens[-1] == tokenizer.eos_ids[0]


def test_other_forms_of_rows(deepseek):
    encoder = Encoder(deepseek)
    (pair,) = encoder({"prompt": "2+2=", "completion": "4", "id": 7})
    assert parts(deepseek, pair) == ("2+2=", "4", deepseek.eos_ids[0])
    (text,) = encoder({"text": "all of it"})
    assert parts(deepseek, text)[1] == "all of it" and text.mask == [False, *[True] * (len(text.tokens) - 1)]  # bos
    template = ChatTemplate(R1_OPEN, {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"})
    chat = Encoder(deepseek, template)
    assert chat({"prompt": CHAT[:3], "completion": CHAT[3:]}) == chat({"messages": CHAT})[1:]


BAD = {
    "no field": ({"question": "a"}, "its fields are question"),
    "nothing to learn": ({"prompt": "a", "completion": " "}, "nothing to learn"),
    "ends with the user": ({"messages": CHAT[:3]}, "user, assistant, user"),
    "nobody asked": ({"messages": CHAT[1:2]}, "roles are assistant"),
    "no messages": ({"messages": []}, "roles are none"),
    "a message is no object": ({"messages": ["hi"]}, "roles are str"),
    "content is none": ({"messages": [CHAT[0], {"role": "assistant", "content": None}]}, "must be text"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_row_is_named_and_skipped_only_if_allowed(deepseek, name):
    row, words = BAD[name]
    template = ChatTemplate(R1_OPEN, {"bos_token": "", "eos_token": "<｜end▁of▁sentence｜>"})
    encoder, good = Encoder(deepseek, template), {"prompt": "a", "completion": "b"}
    with pytest.raises(DataError, match="data.jsonl, row 2: .*" + words):
        encode_rows([good, row], encoder, "data.jsonl", 100)
    examples, counts = encode_rows([good, row], encoder, "data.jsonl", 100, skip_malformed=True)
    assert examples == encoder(good)
    assert counts == {"rows": 2, "examples": 1, "malformed": 1, "too_long": 0}


def test_messages_as_tfds_and_parquet_give_them(deepseek, tmp_path):
    """TFDS gives a sequence of objects as an object of lists."""
    template = ChatTemplate(R1_OPEN, {"bos_token": "", "eos_token": "<｜end▁of▁sentence｜>"})
    encoder = Encoder(deepseek, template)
    lists = {name: [message[name] for message in CHAT] for name in ("role", "content")}
    assert encoder({"messages": lists}) == encoder({"messages": CHAT})
    for wrong in ({"role": ["user"], "content": []}, {"role": "user"}):
        with pytest.raises(DataError, match="its fields are messages"):
            encoder({"messages": wrong})
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": CHAT}]), tmp_path / "chats.parquet")
    examples, counts = encode_rows(iterate_all_rows(tmp_path), encoder, "d", 100)
    assert examples == encoder({"messages": CHAT}) and counts["rows"] == 1


def test_malformed_lines_of_a_file_are_named_and_skipped_only_if_allowed(deepseek, tmp_path):
    (tmp_path / "d.jsonl").write_text('{"text": "a"}\n{"text"\n\n{"text": " "}\n{"text": "b"}\n')
    encoder = Encoder(deepseek)
    with pytest.raises(DataError, match=r"^\S+/d\.jsonl:2: not JSON"):
        encode_rows(iterate_all_rows(tmp_path), encoder, "d", 100)
    examples, counts = encode_rows(iterate_all_rows(tmp_path), encoder, "d", 100, skip_malformed=True)
    assert examples == [*encoder({"text": "a"}), *encoder({"text": "b"})]
    assert counts == {"rows": 4, "examples": 2, "malformed": 2, "too_long": 0}
    (tmp_path / "d.jsonl").write_text('{"text": "a"}\n\n{"text": " "}\n')
    with pytest.raises(DataError, match=r"^\S+/d\.jsonl:3: its completion is ' '"):
        encode_rows(iterate_all_rows(tmp_path), encoder, "d", 100)


def test_what_is_too_long_is_left_out_whole_and_counted(deepseek):
    encoder, rows = Encoder(deepseek), [{"prompt": "a", "completion": "b" * n} for n in (1, 50)]
    examples, counts = encode_rows(rows, encoder, "x", len(encoder(rows[0])[0].tokens))
    assert examples == encoder(rows[0]) and counts["too_long"] == 1
    with pytest.raises(DataError, match=r"none of its 1 rows .*1 of more than 5 tokens"):
        encode_rows(rows[1:], encoder, "x", 5)


def test_messages_without_a_template(tmp_path, deepseek):
    with pytest.raises(DataError, match="no chat template"):
        Encoder(deepseek)({"messages": CHAT})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=25), st.integers(1, 3), st.integers(1, 3), st.integers(0, 5))
def test_every_example_is_learned_once_an_epoch(lengths, rows, epochs, seed):
    examples = [Example([i + 1] * n, [False] * (n // 2) + [True] * (n - n // 2)) for i, n in enumerate(lengths)]
    batches = SFTBatches(examples, rows, 10, epochs, seed)
    found = [document for step in range(len(batches)) for document in unpack(batches[step])]
    expected = [(tuple(e.tokens), (False, *e.mask[1:])) for e in examples] * epochs
    assert sorted(found) == sorted(expected)
    again = SFTBatches(examples, rows, 10, epochs, seed)
    for step in (len(batches) - 1, 0):
        for name, array in batches[step].items():
            assert array.shape == (rows, 10)
            np.testing.assert_array_equal(array, again[step][name])


def test_orders_differ_by_epoch_and_by_seed():
    examples = [Example([i], [True]) for i in range(1, 65)]
    order = lambda seed: [SFTBatches(examples, 1, 64, 2, seed)[step]["tokens"][0].tolist() for step in (0, 1)]  # noqa: E731
    (a, b), (c, _) = order(0), order(1)
    assert a != b and a != c and sorted(a) == sorted(b)


def test_batches_know_their_number():
    examples = [Example([1, 2, 3], [False, True, True])] * 5
    batches = SFTBatches(examples, rows=2, length=6, epochs=1, seed=0)
    assert len(batches) == 2 and len(list(unpack(batches[1]))) == 1
    with pytest.raises(IndexError):
        batches[2]
    with pytest.raises(ConfigError, match="length=2: the longest example has 3 tokens"):
        SFTBatches(examples, 2, 2, 1, 0)


def test_a_template_that_drops_what_was_said_before_is_refused(deepseek):
    """R1-Zero's shows one question: of a conversation its last turn would be learned as if nothing had been said."""
    encoder = Encoder(deepseek, ChatTemplate(R1_ZERO_CHAT_TEMPLATE))
    one = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    assert len(encoder({"messages": one})) == 1
    for more in (one * 2, [{"role": "system", "content": "Be brief."}, *one]):
        with pytest.raises(DataError, match="shows nothing of what was said before message"):
            encoder({"messages": more})
    repeated = [one[0], one[1], one[0], one[1]]  # the same question again is shown with what came before
    assert len(Encoder(deepseek, ChatTemplate(R1_CHAT_TEMPLATE))({"messages": repeated})) == 2
