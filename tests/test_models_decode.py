"""Prefill and cached decoding give the full forward's logits at every position of every row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import (
    graphdef,
    make_layout,
    method,
    random_state,
    random_tokens,
    relative_error,
    shard,
    tiny_config,
    tiny_llama3,
    tiny_qwen2,
    wide,
)

from r1jax.models import attention, decoder
from r1jax.models.decoder import Cache
from r1jax.sharding import Layout, use

S, STEPS, GROUP = 8, 10, 2
LENGTHS = np.array([8, 5, 1, 6], np.int32)  # ragged prompts, one of a single token


def problem(prompts=4):
    """Prompts [P, S], padded on the right with a token that is not to be seen, and completions [P, G, STEPS]."""
    lengths = np.resize(LENGTHS, prompts)
    tokens = np.where(np.arange(S) < lengths[:, None], random_tokens((prompts, S), seed=1), 63).astype(np.int32)
    return tokens, lengths, random_tokens((prompts, GROUP, STEPS), seed=2)


def cached_logits(config, state, layout: Layout | None = None, prompts=4, prepared=False):
    """Logits before each completion token and after the last: [P, G, STEPS + 1, V]; `prepared`: the prompts' too."""
    tokens, lengths, completions = problem(prompts)
    mask = np.arange(S) < lengths[:, None]

    @jax.jit
    def run(state, tokens, lengths, completions):
        with use(layout):
            model = nnx.merge(graphdef(config), state)
            if prepared:
                model.prepare_decoding(prompts * GROUP)
            first, entries, *_ = model.prefill(tokens, lengths)
            cache = Cache(entries, model.empty_completions(entries, GROUP, STEPS))
            model.prepare_decoding(prompts * GROUP)

            def step(cache, i):
                positions = jnp.broadcast_to(lengths[:, None] + i, (len(lengths), GROUP))
                logits, cache, _ = model.decode(completions[:, :, i], positions, cache, mask, i)
                return cache, logits

            _, rest = jax.lax.scan(step, cache, jnp.arange(STEPS))
            first = jnp.broadcast_to(first[:, None, None], (*completions.shape[:2], 1, first.shape[-1]))
            return jnp.concatenate([first, jnp.moveaxis(rest, 0, 2)], axis=2)

    if layout is not None:
        tokens = jax.device_put(tokens, layout.sharding(("prompt", "length")))
        completions = jax.device_put(completions, layout.sharding(("prompt", "group", None)))
    return run(shard(state, layout), tokens, lengths, completions)


def full_logits(config, state, prompts=4):
    """The same from forward passes over prompt and completion together."""
    tokens, lengths, completions = problem(prompts)
    rows = np.zeros((prompts, GROUP, S + STEPS), np.int32)
    for p, n in enumerate(lengths):
        rows[p, :, :n] = tokens[p, :n]
        rows[p, :, n : n + STEPS] = completions[p]
    logits = method(config, "__call__")(state, rows.reshape(-1, S + STEPS)).reshape(*rows.shape, -1)
    return np.stack([np.asarray(logits[p, :, n - 1 : n + STEPS]) for p, n in enumerate(lengths)])


# Positions reach 17: past the original YaRN length of 16.
MODELS = {
    "mla": tiny_config(num_nextn_predict_layers=0),
    "mla without q_lora": tiny_config(num_nextn_predict_layers=0, q_lora_rank=None, num_hidden_layers=3),
    "qwen2": tiny_qwen2(),
    "llama3 with norms": tiny_llama3(qk_norm=True),
}


@pytest.mark.parametrize("apart", ["before the loop", "before the prompts", "never"])
@pytest.mark.parametrize("name", MODELS)
def test_decoding_equals_the_full_forward(name, apart, monkeypatch):
    """With each layer cut out of its stack beforehand, and with layers scanned within the loop."""
    monkeypatch.setattr(attention, "DECODE_BUCKET", 4)  # completions of 10 go through buckets of 4, 8 and 10
    monkeypatch.setattr(decoder, "LAYERS_APART", 0 if apart == "never" else 1 << 30)
    config = MODELS[name]
    state = random_state(config)
    got = cached_logits(config, state, prepared=apart == "before the prompts")
    assert relative_error(got, full_logits(config, state)) < 1e-5


@pytest.mark.parametrize("wide_parameters", [True, False])
@pytest.mark.parametrize("name", ["llama3 with norms", "qwen2"])  # routers change their minds for a rounding error
def test_decoding_in_bfloat16_is_as_near_to_float32_as_the_full_forward(name, wide_parameters):
    config = MODELS[name].replace(dtype="bfloat16", param_dtype="float32" if wide_parameters else "bfloat16")
    state = random_state(config)
    exact = full_logits(MODELS[name], jax.tree.map(lambda a: a.astype(jnp.float32), state))
    full, got = full_logits(config, state), cached_logits(config, state, prepared=True)
    assert got.dtype == np.float32
    assert relative_error(got, exact) < 1.5 * relative_error(full, exact) < 0.1


@pytest.mark.parametrize("name", ["mla", "llama3 with norms"])  # with a head of its own and without
def test_layers_are_apart_where_a_copy_for_each_device_is_within_the_limit(name):
    config = MODELS[name]
    model = nnx.merge(graphdef(config), random_state(config))
    embedding_and_norm = (model.embed.weight[...].size + config.hidden_size) * 4
    size = sum(a.nbytes for a in jax.tree.leaves(nnx.state(model))) - embedding_and_norm
    for limit, alone, both in ((size - 1, False, False), (size, True, False), (2 * size, True, True)):
        assert model.layers_apart(limit) is alone
        with use(make_layout({"data": 2}, "sample")):
            assert model.layers_apart(limit) is both
    with use(make_layout({"tensor": 2}, "sample")):
        assert not model.layers_apart(2 * size)  # its weights are split
    model.prepare_decoding(1, limit=size)
    assert model.layers_apart(0)


@pytest.mark.parametrize("name", MODELS)
def test_several_tokens_a_row_at_slots_of_its_own_equal_the_full_forward(name, monkeypatch):
    """Rows advance by one or two; the second token of those that advance by one is wrong, and is written over."""
    monkeypatch.setattr(attention, "DECODE_BUCKET", 4)
    config = MODELS[name]
    state = random_state(config)
    tokens, lengths, completions = problem()
    full = full_logits(config, state)
    mask = np.arange(S) < lengths[:, None]
    run = jax.jit(lambda state, *args: decode_two(config, state, *args))
    _, entries, *_ = method(config, "prefill")(state, tokens, lengths)
    model = nnx.merge(graphdef(config), state)
    cache = Cache(entries, model.empty_completions(entries, GROUP, STEPS))
    at = np.zeros(completions.shape[:2], np.int32)
    rng = np.random.default_rng(0)
    rows = np.arange(4)[:, None], np.arange(GROUP)
    while (at < STEPS).any():
        both = (rng.random(at.shape) < 0.5) & (at + 1 < STEPS)
        first = completions[*rows, np.minimum(at, STEPS - 1)]
        second = completions[*rows, np.minimum(at + 1, STEPS - 1)]
        pair = np.stack([first, np.where(both, second, 63)], axis=-1)
        positions = lengths[:, None, None] + at[..., None] + np.arange(2)
        logits, cache = run(state, pair, positions, cache, mask, at)
        live = at < STEPS
        assert relative_error(logits[:, :, 0][live], full[*rows, np.minimum(at, STEPS - 1) + 1][live]) < 1e-5
        if (both & live).any():
            after = full[*rows, np.minimum(at + 2, STEPS)]
            assert relative_error(logits[:, :, 1][both & live], after[both & live]) < 1e-5
        at = at + live * (1 + both)


def decode_two(config, state, pair, positions, cache, mask, at):
    model = nnx.merge(graphdef(config), state)
    model.prepare_decoding(pair.size)
    hidden, cache, _ = model.decode_several(pair, positions, cache, mask, at)
    return model.logits(hidden), cache


def test_decoding_in_float64_with_one_bucket():
    with jax.enable_x64():
        config = wide(MODELS["mla"])
        state = random_state(config)
        assert relative_error(cached_logits(config, state), full_logits(config, state)) < 1e-10


@pytest.mark.parametrize(
    ("in_place", "visits"), [(False, [4] * 5 + [8] * 4 + [10]), (True, [4] * 4 + [8] * 4 + [10] * 2)]
)
def test_decoding_visits_every_bucket(in_place, visits, monkeypatch):
    monkeypatch.setattr(attention, "DECODE_BUCKET", 4)
    visited = []

    def read(weights, entries, segment):
        if segment == "own" and entries.shape[2] > 1:
            jax.debug.callback(functools.partial(visited.append, entries.shape[2]))
        return jnp.zeros((1, 1, 1, 1, 1))

    def score(entries, segment):
        return jnp.zeros((*entries.shape[:-1], 1, 1, 1) if segment == "shared" else (*entries.shape[:-1], 1, 1))

    completion = jnp.zeros((1, 1, 10, 1))
    args = (jnp.zeros((1, 2, 1)), jnp.ones((1, 2), bool), completion, jnp.zeros((1, 1, 1, 1)))
    run = jax.jit(lambda step: attention.decode_attention(score, read, *args, step, 1.0, in_place)[0])
    for step in range(10):
        jax.block_until_ready(run(step))
    jax.effects_barrier()
    assert visited == visits


def test_decode_returns_the_experts_that_a_replay_reproduces():
    config = MODELS["mla"]
    state = random_state(config)
    tokens = random_tokens((4, 6), seed=9)
    free = method(config, "trunk")(state, tokens)
    replayed = method(config, "trunk")(state, tokens, experts=free.routing.experts)
    np.testing.assert_allclose(replayed.hidden, free.hidden, atol=1e-6)
    assert free.routing.experts.shape == (2, 4, 6, 3)

    _, entries, *_ = method(config, "prefill")(state, tokens[:, :5], np.full(4, 5, np.int32))
    completion = nnx.merge(graphdef(config), state).empty_completions(entries, 1, 3)
    _, _, experts = method(config, "decode")(
        state, tokens[:, 5:], np.full((4, 1), 5), Cache(entries, completion), np.ones((4, 5), bool), 0
    )
    np.testing.assert_array_equal(experts[:, :, 0], free.routing.experts[:, :, 5])


def test_mla_caches_the_latent_and_one_key_only():
    config = MODELS["mla"]
    _, entries, *_ = method(config, "prefill")(random_state(config), *problem()[:2])
    assert [e.shape for e in entries] == [(4, S, 24 + 16)] * 4
