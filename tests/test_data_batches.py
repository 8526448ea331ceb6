"""Packing and batches: nothing lost, nothing mixed, and any step at any time."""

import functools
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.data import (
    CorpusConfig,
    PretrainBatches,
    PromptBatches,
    corpus_tokenizer,
    documents,
    encode_documents,
    encode_prompts,
    fill_ratio,
    generate,
    pack,
    prefetch,
    render_r1_zero,
)
from r1jax.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return corpus_tokenizer(CorpusConfig(), tmp_path_factory.mktemp("tokenizer") / "nano.model")


def unpack(packed):
    """The documents of a packed batch, each with its loss mask, from its segment ids alone."""
    for r, segments in enumerate(packed["segment_ids"]):
        for segment in range(1, segments.max() + 1):
            at = np.flatnonzero(segments == segment)
            assert (np.diff(at) == 1).all()
            assert packed["positions"][r, at].tolist() == list(range(len(at)))
            yield tuple(packed["tokens"][r, at].tolist()), tuple(packed["loss_mask"][r, at].tolist())


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(1, 500), st.booleans()), min_size=1, max_size=12), max_size=30), st.data()
)
def test_packing_loses_and_splits_nothing(documents, data):
    tokens = [[token for token, _ in document] for document in documents]
    masks = [[mask for _, mask in document] for document in documents]
    length = data.draw(st.integers(12, 40))
    packed = pack(tokens, length, loss_masks=masks)
    assert packed["tokens"].shape == packed["loss_mask"].shape and packed["tokens"].shape[1] == length
    expected = sorted((tuple(t), (False, *m[1:])) for t, m in zip(tokens, masks, strict=True))
    assert sorted(unpack(packed)) == expected
    padding = packed["segment_ids"] == 0
    assert not packed["tokens"][padding].any() and not packed["loss_mask"][padding].any()
    # First fit: a document opens a new row only where no row before it had room, so two rows half empty cannot be.
    assert ((~padding).sum(1)[:-1] > length - 12).all()


def test_packing_into_given_rows_takes_a_prefix():
    packed = pack([[1] * 6, [2] * 6, [3] * 3, [4] * 5, [5]], length=10, rows=2)
    # The 4s fit nowhere; the 5 would, but skipping ahead to short documents would change the corpus.
    assert packed["tokens"].tolist() == [[1] * 6 + [3] * 3 + [0], [2] * 6 + [0] * 4]
    assert pack([[1]], length=4, rows=3)["tokens"].shape == (3, 4)
    assert fill_ratio(packed) == 15 / 20


def test_packing_errors():
    with pytest.raises(DataError, match="document 1 has 5 tokens"):
        pack([[1], [2] * 5], length=4)
    with pytest.raises(DataError, match="document 0 has 0 tokens"):
        pack([[]], length=4)
    with pytest.raises(DataError, match="loss mask of 2"):
        pack([[1]], length=4, loss_masks=[[True, True]])


def test_prompt_batches_are_right_padded_and_carry_columns(tokenizer):
    problems = generate(0, 8, "train")
    batch = encode_prompts(problems, tokenizer, 32)
    assert batch.tokens.dtype == batch.lengths.dtype == np.int32 and batch.tokens.shape == (8, 32)
    for i, problem in enumerate(problems):
        ids = batch.tokens[i, : batch.lengths[i]].tolist()
        assert ids == [tokenizer.bos_id, *tokenizer.encode(render_r1_zero(problem.question))]
        assert (batch.tokens[i, batch.lengths[i] :] == tokenizer.pad_id).all()
        assert batch.prompts[i] == render_r1_zero(problem.question)
        assert batch.columns["answer"][i] == problem.answer
    assert set(batch.columns) == {"question", "answer", "terms", "level", "kind"}


def test_every_epoch_is_a_new_permutation(tokenizer):
    problems = generate(0, 10, "train")
    batches = PromptBatches(problems, tokenizer, batch_size=4, max_prompt_length=32, seed=0)
    stream = [question for step in range(15) for question in batches[step].columns["question"]]
    epochs = [stream[i : i + 10] for i in range(0, 60, 10)]
    questions = [problem.question for problem in problems]
    assert all(sorted(epoch) == sorted(questions) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [questions, *epochs]}) == 7
    other = PromptBatches(problems, tokenizer, batch_size=4, max_prompt_length=32, seed=1)
    assert [question for step in range(15) for question in other[step].columns["question"]] != stream


def test_a_resumed_stream_goes_on_where_it_stopped(tokenizer):
    # NeMo-RL #3599, tunix #2288: prompts skipped or repeated after a restart.
    def make():
        prompts = PromptBatches(generate(0, 37, "train"), tokenizer, batch_size=5, max_prompt_length=32, seed=3)
        return prompts, PretrainBatches(functools.partial(documents, CorpusConfig(), 3), tokenizer, rows=2, length=64)

    whole = [list(prefetch(batches, 0, 12)) for batches in make()]
    resumed = [list(prefetch(batches, 7, 12)) for batches in make()]
    for before, after in zip(whole[0][7:], resumed[0], strict=True):
        assert before.prompts == after.prompts
    for before, after in zip(whole[1][7:], resumed[1], strict=True):
        for name in before:
            np.testing.assert_array_equal(before[name], after[name])


def test_prompts_that_are_too_long(tokenizer):
    with pytest.raises(DataError, match=r"makes a prompt of \d+ tokens: raise max_prompt_length=8"):
        PromptBatches(generate(0, 4, "train"), tokenizer, batch_size=1, max_prompt_length=8, seed=0)[0]
    with pytest.raises(ConfigError, match=r"len\(problems\)=0"):
        PromptBatches([], tokenizer, batch_size=1, max_prompt_length=8, seed=0)
    with pytest.raises(DataError, match="step -1"):
        PromptBatches(generate(0, 4, "train"), tokenizer, batch_size=1, max_prompt_length=32, seed=0)[-1]


def test_pretrain_batches_are_full_and_of_one_shape(tokenizer):
    config = CorpusConfig()
    batches = PretrainBatches(functools.partial(documents, config, 0), tokenizer, rows=8, length=256)
    seen = set()
    for step in range(5):
        batch = batches[step]
        assert {value.shape for value in batch.values()} == {(8, 256)}
        assert fill_ratio(batch) > 0.9
        mine = encode_documents(
            documents(config, 0, step * batches.documents_per_step, batches.documents_per_step), tokenizer
        )
        found = [document for document, _ in unpack(batch)]
        assert sorted(found) == sorted(map(tuple, mine[: len(found)]))  # a prefix of the step's own documents
        assert all(document[0] == tokenizer.bos_id and document[-1] == 3 for document in found)
        assert np.array_equal(batch["loss_mask"], (batch["segment_ids"] > 0) & (batch["positions"] > 0))
        seen.add(batch["tokens"].tobytes())
    assert len(seen) == 5


def test_prefetch_raises_where_the_batch_failed_and_ends_its_thread():
    class Batches:
        def __getitem__(self, step):
            if step == 3:
                raise DataError("step 3 is bad")
            return step

    got = []
    with pytest.raises(DataError, match="step 3 is bad"):
        for step in prefetch(Batches(), 0, 5):
            got.append(step)
    assert got == [0, 1, 2]
    endless = prefetch(range(10**9), 5)
    assert [next(endless), next(endless)] == [5, 6]
    endless.close()
    deadline = time.monotonic() + 5
    while any(thread.name == "prefetch" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())
