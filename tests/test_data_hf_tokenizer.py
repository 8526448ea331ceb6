"""Tokenizers of checkpoint folders: the ids their authors meant, any text there and back, and streams of it."""

import numpy as np
import pytest
from hf_folders import (
    ASSISTANT,
    BOS,
    EOS,
    LLAMA3_SPECIAL,
    TEXTS,
    USER,
    deepseek_folder,
    llama2_folder,
    llama3_folder,
    qwen_folder,
    write_files,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from r1jax.data import (
    Document,
    HFTokenizer,
    SentencePieceTokenizer,
    check_fits,
    decode_stream,
    encode_documents,
    encode_prompts,
    load_tokenizer,
)
from r1jax.errors import DataError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    makers = {"deepseek": deepseek_folder, "llama3": llama3_folder, "qwen": qwen_folder, "llama2": llama2_folder}
    made = {name: make(root / name) for name, make in makers.items()}
    return made | {"stripping": llama2_folder(root / "stripping", remove_extra_whitespaces=True)}


@pytest.fixture(scope="module")
def loaded(folders):
    return {name: load_tokenizer(folder) for name, folder in folders.items()}


def id_of(folder, token):
    return Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(token)


def test_encode_adds_nothing_and_recognises_special_tokens(folders, loaded):
    tokenizer, folder = loaded["deepseek"], folders["deepseek"]
    ids = tokenizer.encode(f"{BOS}{USER}The cat sat on the mat.{ASSISTANT}<think>\n")
    assert ids[:2] == [id_of(folder, BOS), id_of(folder, USER)]
    assert ids[-3:-1] == [id_of(folder, ASSISTANT), id_of(folder, "<think>")]
    # tokenizer.json would put bos first, cut at 4 ids and pad to 8.
    assert tokenizer.bos_id not in tokenizer.encode("hi") and len(tokenizer.encode("hi")) <= 2
    assert len(tokenizer.encode("abcdefghijkl, cat")) > 4
    assert tokenizer.encode_batch(["hi", "the cat"]) == [tokenizer.encode("hi"), tokenizer.encode("the cat")]


def test_decode_leaves_out_what_is_special_and_nothing_else(loaded):
    text = f"{USER}Why?{ASSISTANT}<think>\n😀</think> Because."
    assert loaded["deepseek"].decode(loaded["deepseek"].encode(f"{BOS}{text}{EOS}{EOS}")) == text
    assert loaded["llama3"].decode(loaded["llama3"].encode("".join(LLAMA3_SPECIAL) + "日本")) == "日本"
    assert loaded["qwen"].decode(np.array([2, 0, 10_000], np.int32)) == ""


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text() | st.sampled_from(["<think>", "</think>", USER, " ", "  "])).map("".join))
def test_any_text_round_trips(loaded, text):
    tokenizer = loaded["deepseek"]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    pieces = list(decode_stream(tokenizer, ids))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@pytest.mark.parametrize("name", ["deepseek", "llama3", "llama2", "stripping"])
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_stream_of_any_ids_joins_to_their_text(loaded, name, data):
    tokenizer = loaded[name]
    often = [*tokenizer.eos_ids, *tokenizer.encode("the  cat")]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1) | st.sampled_from(often)))
    assert "".join(decode_stream(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", ["deepseek", "llama2"])
def test_a_stream_tells_text_at_once_and_characters_whole(loaded, name):
    tokenizer, drawn = loaded[name], []

    def sample():
        for i in tokenizer.encode("The cat 🦜 sat"):
            drawn.append(i)
            yield i

    told = ""
    for piece in decode_stream(tokenizer, sample()):
        told += piece
        assert told == tokenizer.decode(drawn) and "\ufffd" not in piece
        if told == "The cat 🦜":
            break
    assert 4 < len(drawn) < len(tokenizer.encode("The cat 🦜 sat"))


def test_a_stream_outlives_bytes_that_are_no_character(tmp_path):
    # tokenizers.DecodeStream raises here: the decoder takes back a character it has told.
    vocabulary = {"</s>": 0, "<0x41>": 1, "<0xFF>": 2, "b": 3}
    path = {"type": "BPE", "vocab": vocabulary, "merges": [], "byte_fallback": True}
    write_files(tmp_path, {"tokenizer.json": {"model": path, "decoder": {"type": "ByteFallback"}, "added_tokens": []}})
    write_files(tmp_path, {"generation_config.json": {"eos_token_id": 0}})
    assert "".join(decode_stream(load_tokenizer(tmp_path), [1, 2, 3])) == "A\ufffdb"


def test_every_eos_id_is_a_stop_and_the_tokenizers_own_comes_first(folders, loaded):
    ids = [id_of(folders["llama3"], token) for token in ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>")]
    assert list(loaded["llama3"].eos_ids) == ids
    assert loaded["llama3"].pad_id == ids[0]  # it has none of its own
    assert loaded["qwen"].eos_ids == (2, 0) and loaded["qwen"].pad_id == 0
    deepseek = loaded["deepseek"]
    assert deepseek.eos_ids == (deepseek.pad_id,) == (id_of(folders["deepseek"], EOS),)


def test_ids_from_config_json_where_nothing_names_a_token(tmp_path):
    llama3_folder(tmp_path)
    stops = [id_of(tmp_path, "<|end_of_text|>"), id_of(tmp_path, "<|eot_id|>")]
    gone = {name: None for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")}
    config = {"bos_token_id": 0, "eos_token_id": stops, "pad_token_id": -1}
    tokenizer = load_tokenizer(write_files(tmp_path, {**gone, "config.json": config}))
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (0, tuple(stops), stops[0])
    tokenizer = load_tokenizer(write_files(tmp_path, {"config.json": config | {"pad_token_id": 7}}))
    assert tokenizer.pad_id == 7


def test_an_older_special_tokens_map_goes_first(tmp_path):
    llama3_folder(tmp_path)
    write_files(tmp_path, {"special_tokens_map.json": {"eos_token": {"content": "<|eom_id|>"}}})
    assert load_tokenizer(tmp_path).eos_ids[0] == id_of(tmp_path, "<|eom_id|>")
    config = {"eos_token": "<|eot_id|>", "added_tokens_decoder": {}}
    write_files(tmp_path, {"tokenizer_config.json": config})
    assert load_tokenizer(tmp_path).eos_ids[0] == id_of(tmp_path, "<|eot_id|>")


def test_what_ends_a_completion_is_not_part_of_its_text(tmp_path):
    deepseek_folder(tmp_path)
    stop = id_of(tmp_path, "</think>")
    write_files(tmp_path, {"generation_config.json": {"eos_token_id": [id_of(tmp_path, EOS), stop]}})
    tokenizer = load_tokenizer(tmp_path)
    assert stop in tokenizer.eos_ids and tokenizer.decode([*tokenizer.encode("cat"), stop]) == "cat"


def test_prompts_and_documents_begin_with_bos_once_or_not_at_all(loaded):
    def encode(tokenizer, template):
        batch = encode_prompts([{"question": "the cat"}], tokenizer, 64, lambda row: template(row["question"]))
        prompt = batch.tokens[0, : batch.lengths[0]].tolist()
        (document,) = encode_documents([Document(template("the cat"), " sat", "worked")], tokenizer)
        assert document == [*prompt, *tokenizer.encode(" sat"), tokenizer.eos_ids[0]]
        return prompt

    deepseek, qwen = loaded["deepseek"], loaded["qwen"]
    expected = [deepseek.bos_id, *deepseek.encode("the cat")]
    assert encode(deepseek, str) == encode(deepseek, lambda question: BOS + question) == expected
    assert qwen.bos_id is None and encode(qwen, str) == qwen.encode("the cat")


def test_valid_ids_and_size_of_a_vocabulary_with_holes(tmp_path):
    Tokenizer(models.BPE({"</s>": 0, "a": 3, "b": 6}, [])).save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(write_files(tmp_path, {"tokenizer_config.json": {"eos_token": "</s>"}}))
    assert tokenizer.vocab_size == 7
    assert np.flatnonzero(tokenizer.valid_ids(10)).tolist() == [0, 3, 6]
    assert tokenizer.valid_ids(10).dtype == bool and tokenizer.valid_ids(10).shape == (10,)
    check_fits(tokenizer, 7, tmp_path)
    with pytest.raises(DataError, match=rf"{tmp_path}.* ids up to 6, .* vocab_size=6"):
        check_fits(tokenizer, 6, tmp_path)


def test_a_sentencepiece_folder(folders, loaded, tmp_path):
    tokenizer = loaded["llama2"]
    assert isinstance(tokenizer, SentencePieceTokenizer)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (1, (2,), 2)
    assert np.flatnonzero(~tokenizer.valid_ids(tokenizer.vocab_size + 2)).tolist() == [
        0, 1, tokenizer.vocab_size, tokenizer.vocab_size + 1,
    ]  # fmt: skip
    for text in (*TEXTS, "🦜"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    model = (folders["llama2"] / "tokenizer.model").read_bytes()
    (tmp_path / "nano.model").write_bytes(model)
    write_files(tmp_path, {"generation_config.json": {"eos_token_id": [2, 9, 10_000]}})
    assert load_tokenizer(tmp_path).eos_ids == (2, 9)
    (tmp_path / "other.model").write_bytes(b"")
    with pytest.raises(DataError, match=r"has nano\.model, other\.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(model)
    assert load_tokenizer(tmp_path).eos_ids == (2, 9)
    deepseek_folder(tmp_path)
    assert isinstance(load_tokenizer(tmp_path), HFTokenizer)
    assert load_tokenizer(llama2_folder(tmp_path / "no_bos", bos_id=-1)).bos_id is None
    with pytest.raises(DataError, match=r"tokenizer\.model' has no eos id"):
        load_tokenizer(llama2_folder(tmp_path / "no_eos", eos_id=-1))


def test_errors_name_the_file(tmp_path):
    with pytest.raises(DataError, match=rf"{tmp_path}.* needs a tokenizer\.json or a tokenizer\.model"):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match=r"tokenizer\.json' cannot be read"):
        HFTokenizer(tmp_path)
    deepseek_folder(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_text()
    for damaged in (whole[: len(whole) // 2], "", "{}", "[]"):
        with pytest.raises(DataError, match=r"tokenizer\.json' cannot be read"):
            load_tokenizer(write_files(tmp_path, {"tokenizer.json": damaged}))
    write_files(tmp_path, {"tokenizer.json": whole})
    for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json"):
        files = {name: "{", "generation_config.json": {}} | ({name: "{"})
        with pytest.raises(DataError, match=rf"{name}' cannot be read"):
            load_tokenizer(write_files(deepseek_folder(tmp_path), files))
        with pytest.raises(DataError, match=rf"{name}' holds a list"):
            load_tokenizer(write_files(tmp_path, {name: []}))
        write_files(tmp_path, {name: {}})
    for name in ("bos_token", "eos_token"):
        write_files(tmp_path, {"tokenizer_config.json": {"bos_token": BOS, "eos_token": EOS, name: "<other>"}})
        with pytest.raises(DataError, match=rf"has no token '<other>', which its folder names as {name}"):
            load_tokenizer(tmp_path)
    with pytest.raises(DataError, match="has no eos: name its eos_token"):
        load_tokenizer(write_files(tmp_path, {"tokenizer_config.json": {"bos_token": BOS}}))


@pytest.mark.parametrize("name", ["deepseek", "llama3", "qwen"])
def test_ids_and_text_parity(folders, loaded, name):
    transformers = pytest.importorskip("transformers")
    theirs, mine = transformers.AutoTokenizer.from_pretrained(folders[name]), loaded[name]
    assert theirs.bos_token_id == mine.bos_id and theirs.eos_token_id == mine.eos_ids[0]
    assert theirs.pad_token_id in (None, mine.pad_id) and len(theirs) == mine.valid_ids(mine.vocab_size).sum()
    for text in (*TEXTS, f"{BOS}{USER}a  b{ASSISTANT}<think>\n{EOS}", "".join(LLAMA3_SPECIAL), "<|im_end|>\n", ""):
        ids = mine.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ids
        assert theirs.decode(ids, skip_special_tokens=True) == mine.decode(ids)
