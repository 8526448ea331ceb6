"""Checkpoints of transformers in r1jax and the other way round, live: needs `pip install -e '.[test,parity]'`."""

import functools

import numpy as np
import pytest
from helpers import random_tokens, relative_error
from parity import DEEPSEEK_TOLERANCE, GRADIENT_TOLERANCE, MESH, Loaded, layer_report, tolerance

from r1jax.checkpoints import hf
from r1jax.sharding import make_mesh

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from goldens import make  # noqa: E402

SEED = 5  # other weights than those of the goldens
TOKENS = random_tokens((2, make.LENGTH), seed=6)


@pytest.fixture(scope="module", autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """name -> (folder, transformers' model of it, r1jax's model of it)."""

    @functools.cache
    def one(name):
        path = tmp_path_factory.mktemp(name)
        make.random_reference(make.CONFIGS[name](), SEED).save(path, shards=2)
        return path, make.Reference.load(path), Loaded(path)

    return one


def assert_same_logits(ours, theirs, tokens, limit, spans=(slice(None),)):
    """The trunk's and the prediction module's, to `limit` of the largest logit in each span of positions."""
    for got, want in zip(ours.logits(tokens), theirs.logits(tokens), strict=True):
        assert (got is None) == (want is None)
        for span in spans if want is not None else ():
            error = relative_error(got[:, span], want[:, span])
            assert error <= limit, layer_report(ours.hidden_states(tokens), theirs.hidden_states(tokens))


@pytest.mark.parametrize("name", make.CONFIGS)
def test_logits(name, checkpoint):
    """At positions below and past the original lengths of scaled ropes, 32 and 64."""
    _, theirs, ours = checkpoint(name)
    assert_same_logits(ours, theirs, TOKENS, tolerance(name), (slice(0, 32), slice(32, 64), slice(64, None)))


def test_logits_past_deepseeks_original_length(tmp_path):
    """YaRN with DeepSeek's own numbers, on both sides of position 4096."""
    config = make.CONFIGS["deepseek_v3"]()
    config.num_hidden_layers, config.first_k_dense_replace, config.max_position_embeddings = 2, 1, 163_840
    config.rope_parameters |= {"original_max_position_embeddings": 4096, "rope_theta": 10_000.0}
    make.random_reference(config, SEED).save(tmp_path)
    ours, theirs = Loaded(tmp_path, attention_chunk=600), make.Reference.load(tmp_path)
    spans = (slice(0, 4096), slice(4096, None))
    assert_same_logits(ours, theirs, random_tokens((1, 4200), seed=7), DEEPSEEK_TOLERANCE, spans)


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen2"])
def test_gradients(name, checkpoint):
    _, theirs, ours = checkpoint(name)
    got = ours.gradients(TOKENS)
    for key, want in theirs.gradients(TOKENS).items():
        assert np.linalg.norm(want) > 0, f"{key} takes no part"
        assert np.linalg.norm(got[key] - want) <= GRADIENT_TOLERANCE * np.linalg.norm(want), key


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen2"])
def test_greedy_continuations(name, checkpoint):
    """64 tokens after ragged prompts: padded on the right here, on the left there."""
    _, theirs, ours = checkpoint(name)
    want = make.ragged_prompts(theirs)
    got = ours.greedy(want["prompts"], want["prompt_lengths"], make.COMPLETION)
    np.testing.assert_array_equal(got, want["completions"])


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen2"])
def test_logits_on_a_mesh(name, checkpoint):
    path, theirs, _ = checkpoint(name)
    # Rows for each of the mesh's batch axes.
    assert_same_logits(Loaded(path, make_mesh(MESH)), theirs, np.tile(TOKENS, (2, 1)), tolerance(name))


@pytest.mark.parametrize("name", make.CONFIGS)
def test_export_is_what_transformers_reads(name, checkpoint, tmp_path):
    """`Reference.load` asserts that no key is missing or left over, MtpModel that the prediction module is whole."""
    _, theirs, ours = checkpoint(name)
    hf.save(tmp_path / "export", ours.model, ours.config)
    exported = make.Reference.load(tmp_path / "export")
    for got, want in zip(exported.logits(TOKENS), theirs.logits(TOKENS), strict=True):
        np.testing.assert_array_equal(got, want)
    got, want = exported.config.to_dict(), theirs.config.to_dict()
    assert want.pop("rope_parameters").items() <= got["rope_parameters"].items()
    # Where the files came from and a tokenizer's ids are not the model's to know.
    elsewhere = {"_name_or_path", "transformers_version", "bos_token_id", "eos_token_id", "pad_token_id"}
    assert {k: got.get(k) for k in want.keys() - elsewhere} == {k: want[k] for k in want.keys() - elsewhere}
