"""The decoder against an independent NumPy implementation, and every way of running it against every other."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from helpers import (
    assert_trees_close,
    graphdef,
    method,
    pure,
    random_state,
    random_tokens,
    relative_error,
    tiny_config,
    tiny_llama3,
    tiny_qwen2,
    value_and_gradients,
    wide,
)
from jax import lax

from r1jax.configs.model import RopeScaling
from r1jax.configs.presets import model_preset
from r1jax.models import attention, mla, rope
from r1jax.models.moe import Router

T = 12
# Attention sees differences of positions only, so that a test beyond the original length (16, and DeepSeek's 4096) has
# to jump there within a sequence.
POSITIONS = np.array([[0, 1, 2, 5, 15, 16, 17, 40, 300, 4095, 4097, 9001], range(T)], np.int32)
TOKENS = random_tokens((2, T))

MODELS = {
    "deepseek": tiny_config(),
    "no q_lora, 2 shared experts": tiny_config(q_lora_rank=None, n_shared_experts=2),
    "no shared expert, no groups, not normalised": tiny_config(
        n_shared_experts=0, n_group=1, topk_group=1, norm_topk_prob=False
    ),
    "qwen2": tiny_qwen2(),
    "llama3": tiny_llama3(),
    "qwen3": tiny_qwen2(qk_norm=True, attention_bias=False, tie_word_embeddings=False),
}


def run(config, name, state, **kwargs):
    """(logits, prediction module's logits) of TOKENS."""

    def both(state, tokens, positions):
        model = nnx.merge(graphdef(config), state)
        hidden = model.trunk(tokens, positions=positions, **kwargs).hidden
        if not config.num_nextn_predict_layers:
            return model.logits(hidden), None
        ((ahead, _),) = model.mtp_hidden(hidden, tokens, positions=positions)
        return model.logits(hidden), model.logits(ahead[:, :-1])

    return jax.jit(both)(state, TOKENS, POSITIONS)


def expected(config, state):
    return reference.forward(pure(state), config, TOKENS, POSITIONS)


@pytest.mark.parametrize("name", MODELS)
def test_float64_equals_the_reference(name):
    config = MODELS[name]
    with jax.enable_x64():
        state = random_state(wide(config))
        logits, ahead = run(wide(config), name, state)
        assert logits.dtype == jnp.float64
    want = expected(config, state)
    assert relative_error(logits, want.logits) < 1e-10
    if config.num_nextn_predict_layers:
        assert relative_error(ahead, want.mtp_logits) < 1e-10


def test_public_calls_equal_the_reference():
    config = tiny_config()
    state = random_state(config)
    want = reference.forward(pure(state), config, TOKENS)
    assert relative_error(method(config, "__call__")(state, TOKENS), want.logits) < 5e-5
    assert relative_error(method(config, "mtp_logits")(state, TOKENS), want.mtp_logits) < 5e-5


@pytest.mark.parametrize("name", ["deepseek", "qwen2", "llama3"])
def test_float32_equals_the_reference(name):
    config = MODELS[name]
    state = random_state(config)
    want = expected(config, state)
    logits, ahead = run(config, name, state)
    assert logits.dtype == jnp.float32
    # Float32 angles (exact to position * 2^-24, as in DeepSeek's own table) are part of the error at position 9001.
    assert relative_error(logits, want.logits) < 5e-5
    if ahead is not None:
        assert relative_error(ahead, want.mtp_logits) < 5e-5


def test_bfloat16_is_near_and_returns_float32_logits():
    config = tiny_config(dtype="bfloat16")
    state = random_state(config)
    # Routing is replayed: bfloat16 activations may choose other experts, which is another function, not rounding.
    experts = [[sorted(e) for row in layer for e in row] for layer in expected(config, state).experts]
    experts = jnp.array(experts, jnp.int32).reshape(config.num_moe_layers, *TOKENS.shape, -1)
    logits, _ = run(config.replace(num_nextn_predict_layers=0), "bf16", _trunk_only(state), experts=experts)
    assert logits.dtype == jnp.float32
    assert relative_error(logits, expected(config, state).logits) < 0.05


def _trunk_only(state):
    """The same parameters without the prediction module."""
    return nnx.State({k: v for k, v in state.items() if k != "mtp"} | {"mtp": nnx.State({})})


# Bugs that other projects have shipped. The reference must tell each of them.


def _mask_with_zero(self, scores):
    biased = scores + self.e_score_correction_bias[...]
    groups = biased.reshape(*biased.shape[:-1], self.n_group, -1)
    best = lax.top_k(groups, 2)[0].sum(axis=-1)
    kept = jax.nn.one_hot(lax.top_k(best, self.topk_group)[1], self.n_group, dtype=bool).any(axis=-2)
    return lax.top_k(jnp.where(kept[..., None], groups, 0).reshape(biased.shape), self.top_k)[1]


def _bias_as_weight(self, x):
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jax.nn.sigmoid(x.astype(wide) @ self.weight[...].astype(wide)) + self.e_score_correction_bias[...]


def _select_twice_unbiased(self, scores):
    """Goes with `_bias_as_weight`, whose scores hold the bias already."""
    bias = self.e_score_correction_bias[...]
    return _right_select(self, scores - bias)


_right_select, _right_frequencies, _right_rotate = Router.select, rope.inverse_frequencies, rope.rotate


def _without_ramp(config):
    return _right_frequencies(config.replace(rope_scaling=None))


def _without_mscale(config):
    return (config.qk_nope_head_dim + config.qk_rope_head_dim) ** -0.5


def _halves(x, cos, sin, interleaved):
    return _right_rotate(x, cos, sin, not interleaved)


MUTATIONS = {
    "groups left out masked with 0": [(Router, "select", _mask_with_zero)],
    "correction bias in the weights": [(Router, "scores", _bias_as_weight), (Router, "select", _select_twice_unbiased)],
    "YaRN's scale without its ramp": [(rope, "inverse_frequencies", _without_ramp)],
    "YaRN's ramp without its scale": [(mla, "softmax_scale", _without_mscale)],
    "halves rotated in place of pairs": [(mla, "rotate", _halves)],
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_reference_catches(mutation, monkeypatch):
    # One MoE layer and the ordinary positions 0..T-1 but for the last five: no bug may need a large model to be seen.
    config = tiny_config(num_hidden_layers=1, first_k_dense_replace=0, num_nextn_predict_layers=0)
    state = random_state(config)
    for where, what, bug in MUTATIONS[mutation]:
        monkeypatch.setattr(where, what, bug)
    logits, _ = run(config, mutation, state)
    assert relative_error(logits, expected(config, state).logits) > 1e-2


# Ways of running that must not change the function.

MOE_ONLY = tiny_config(num_hidden_layers=2, first_k_dense_replace=0)  # half the time to compile


@pytest.fixture(scope="module")
def plain():
    state = random_state(MOE_ONLY)
    return state, *value_and_gradients(MOE_ONLY, state)


@pytest.mark.parametrize(
    "changes",
    [dict(scan_unroll=2, attention_chunk=4), dict(remat=True, moe_chunk=16), dict(moe_backend="ragged")],
    ids=["unrolled, attention chunked", "remat, experts chunked", "ragged"],
)
def test_execution_settings_do_not_change_the_function(plain, changes):
    state, value, gradients = plain
    other_value, other = value_and_gradients(MOE_ONLY.replace(**changes), state)
    assert other_value == pytest.approx(value, rel=1e-5)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients)), "a parameter without a gradient shows nothing"
    assert_trees_close(other, gradients, 5e-5)


@pytest.mark.parametrize("name, chunk", [("moe only", 3), ("qwen2", 0)])
def test_packed_examples_equal_separate_ones(name, chunk):
    """No example sees another or the padding, forwards or backwards."""
    config = (MOE_ONLY if name == "moe only" else MODELS[name]).replace(
        attention_chunk=chunk, num_nextn_predict_layers=0
    )
    state = random_state(config)
    tokens = random_tokens((1, T), seed=3)
    segments = np.array([[1] * 4 + [2] * 6 + [0] * 2], np.int32)
    positions = np.array([[*range(4), *range(6), 0, 0]], np.int32)

    params, rest = nnx.split_state(state, nnx.Param, ...)
    weights = np.random.default_rng(7).standard_normal((1, 6, 64)).astype(np.float32)

    def loss_of_second(params, tokens, **kwargs):
        model = nnx.merge(graphdef(config), params, rest)
        logits = model.logits(model.trunk(tokens, **kwargs).hidden)
        return jnp.vdot(logits[:, -8:-2] if kwargs else logits, weights), logits

    gradients = jax.jit(jax.grad(loss_of_second, has_aux=True))
    packed, logits = gradients(params, tokens, positions=positions, segment_ids=segments)
    alone, second = gradients(params, tokens[:, 4:10])
    first = method(config.replace(attention_chunk=0), "__call__")(state, tokens[:, :4])
    assert relative_error(logits[:, :4], first) < 1e-5
    assert relative_error(logits[:, 4:10], second) < 1e-5
    # The table's gradient is the most telling: any look at another example's tokens would fill their rows.
    assert_trees_close(packed, alone, 5e-5)


# Facts about YaRN and the presets


def test_yarn_at_deepseeks_size():
    config = model_preset("deepseek-v3-671b")
    assert reference.yarn_range(64, 10_000.0, 4096, 32, 1) == (10, 23)
    plain = 10_000.0 ** -(np.arange(0, 64, 2) / 64)
    ratio = rope.inverse_frequencies(config) / plain
    np.testing.assert_allclose(ratio[:11], 1)
    np.testing.assert_allclose(ratio[23:], 1 / 40)
    np.testing.assert_allclose(ratio[10:24], 1 - (1 - 1 / 40) * np.arange(14) / 13)
    np.testing.assert_allclose(rope.inverse_frequencies(config), reference.frequencies(config), rtol=1e-12)
    assert rope.softmax_scale(config) == pytest.approx(0.135234, abs=5e-7)
    cos, sin = rope.cos_sin(config.replace(dtype="float32"), jnp.arange(5000))
    np.testing.assert_allclose(cos**2 + sin**2, 1, rtol=1e-5)


def test_yarn_waits_for_a_model_longer_than_the_original():
    config = model_preset("deepseek-v3-671b").replace(max_position_embeddings=4096)
    np.testing.assert_array_equal(
        rope.inverse_frequencies(config), rope.inverse_frequencies(config.replace(rope_scaling=None))
    )
    assert rope.softmax_scale(config) == 192**-0.5
    assert rope.softmax_scale(config.replace(max_position_embeddings=4097)) > 192**-0.5


def test_yarn_ramp_with_both_ends_at_one_pair():
    """A range of width 0 is a step, not a division by zero."""
    scaling = RopeScaling(original_max_position_embeddings=16, beta_fast=32, beta_slow=3)
    config = tiny_config(rope_scaling=scaling)
    assert reference.yarn_range(16, 100.0, 16, 32, 3) == (0, 0)
    np.testing.assert_allclose(rope.inverse_frequencies(config), reference.frequencies(config))


def test_llama3_bands():
    config = model_preset("llama3.1-8b")
    frequencies = rope.inverse_frequencies(config)
    np.testing.assert_allclose(frequencies, reference.frequencies(config), rtol=1e-12)
    ratio = frequencies * 500_000.0 ** (np.arange(0, 128, 2) / 128)
    assert ratio[0] == 1 and ratio[-1] == pytest.approx(1 / 8)
    assert any(1 / 8 < r < 1 for r in ratio)


def test_preset_sizes():
    """Parameters of the whole, counted from shapes: 671B (plus the prediction module), and the distilled students."""
    from r1jax.models.decoder import Decoder

    def count(name, skip="mtp"):
        state = nnx.state(nnx.eval_shape(lambda: Decoder(model_preset(name), nnx.Rngs(params=0))), nnx.Param)
        leaves = jax.tree_util.tree_leaves_with_path(state)
        return sum(math.prod(v.shape) for path, v in leaves if skip not in jax.tree_util.keystr(path))

    assert count("deepseek-v3-671b") / 1e9 == pytest.approx(671.03, abs=0.01)
    assert count("qwen2.5-0.5b") / 1e9 == pytest.approx(0.494, abs=0.001)
    assert count("qwen2.5-1.5b") / 1e9 == pytest.approx(1.544, abs=0.001)
    assert count("llama3.1-8b") / 1e9 == pytest.approx(8.030, abs=0.001)


def test_decode_buckets_hold_every_step():
    for capacity in (1, 127, 128, 129, 256, 1000):
        buckets = attention.decode_buckets(capacity)
        assert buckets[-1] == capacity and list(buckets) == sorted(set(buckets))
