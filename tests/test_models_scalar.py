"""The scalar head: read at each sequence's last token, on any decoder and any mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import make_layout, method, random_state, random_tokens, relative_error, shard, tiny_config, tiny_qwen2

from r1jax.models.scalar import ScalarModel, initial_score, scalar_config, scalar_state
from r1jax.sharding import Layout, use
from r1jax.training.state import model_graph

MLA = tiny_config(num_hidden_layers=2, first_k_dense_replace=1)
GQA = tiny_qwen2()
LENGTHS = np.array([9, 1, 4, 8, 2, 7, 3, 5], np.int32)
SCORE = np.random.default_rng(3).standard_normal((32, 1)).astype(np.float32)


@functools.cache
def program(config, layout):
    """(scores of tokens and lengths, the state that they are of)."""
    graph = model_graph(config, ScalarModel)
    state = shard(scalar_state(config, random_state(config), jnp.asarray(SCORE)), layout)

    @jax.jit
    def score(state, tokens, lengths):
        with use(layout):
            return nnx.merge(graph, state)(tokens, lengths)

    return score, state


def scores_of(config, tokens, lengths, layout: Layout | None = None):
    if layout is not None:
        tokens = jax.device_put(tokens, layout.sharding(("batch", "length")))
        lengths = jax.device_put(lengths, layout.sharding(("batch",)))
    score, state = program(config, layout)
    return score(state, tokens, lengths)


@pytest.mark.parametrize("config", [MLA, GQA], ids=["mla moe mtp", "gqa tied"])
def test_it_is_the_last_token_s_state_times_the_head_whatever_lies_behind(config):
    tokens = random_tokens((8, 9), seed=1)
    scores = scores_of(config, tokens, LENGTHS)
    assert scores.shape == (8,) and scores.dtype == np.float32
    hidden = np.asarray(method(config, "trunk")(random_state(config), tokens).hidden, np.float64)
    expected = hidden[np.arange(8), LENGTHS - 1] @ SCORE[:, 0]
    assert relative_error(scores, expected) < 1e-5
    padded = np.where(np.arange(9) < LENGTHS[:, None], tokens, 5)
    np.testing.assert_allclose(scores_of(config, padded, LENGTHS), scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [{"data": 2, "fsdp": 4}, {"fsdp": 2, "expert": 2, "tensor": 2}], ids=str)
def test_on_a_mesh_it_is_the_same(shape):
    tokens = random_tokens((8, 9), seed=1)
    there = scores_of(MLA, tokens, LENGTHS, make_layout(shape))
    np.testing.assert_allclose(there, scores_of(MLA, tokens, LENGTHS), rtol=1e-4, atol=1e-5)


def test_it_has_no_idle_weights_and_a_small_float32_head():
    assert scalar_config(MLA).num_nextn_predict_layers == 0
    narrow = MLA.replace(param_dtype="bfloat16", dtype="bfloat16", hidden_size=512)
    inputs = random_tokens((2, 9)), LENGTHS[:2]
    model = nnx.eval_shape(lambda: ScalarModel(narrow, nnx.Rngs(params=0)))
    names = {path[1] for path, _ in nnx.to_flat_state(nnx.state(model)) if path[0] == "decoder"}
    assert "lm_head" not in names and "mtp" not in names and "moe_layers" in names
    assert model.score.get_value().dtype == jnp.float32
    assert model.decoder.norm.weight.get_value().dtype == jnp.bfloat16
    assert nnx.eval_shape(lambda: ScalarModel(narrow, nnx.Rngs(params=0))(*inputs)).dtype == jnp.float32
    head = initial_score(narrow, jax.random.key(0))
    assert head.shape == (512, 1) and float(head.std()) == pytest.approx(1 / np.sqrt(513), rel=0.1)
