"""Meshes: the same function on eight devices as on one, and parameters that really are split."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import (
    assert_trees_close,
    graphdef,
    make_layout,
    method,
    random_state,
    random_tokens,
    relative_error,
    shard,
    tiny_config,
    tiny_qwen2,
    value_and_gradients,
)
from jax.sharding import PartitionSpec
from test_models_decode import cached_logits

from r1jax import sharding
from r1jax.configs.training import SamplingConfig
from r1jax.errors import ConfigError
from r1jax.losses.logprobs import next_token_logprobs
from r1jax.sampling.sampler import make_sampler
from r1jax.sharding import make_mesh, state_shardings

MESHES = {
    "data 8": {"data": 8},
    "fsdp 4, expert 2": {"fsdp": 4, "expert": 2},
    "data 2, expert 2, tensor 2": {"data": 2, "expert": 2, "tensor": 2},
}
CONFIG = tiny_config(num_nextn_predict_layers=0)
FEW_EXPERTS = {"fsdp 2, expert 4": {"fsdp": 2, "expert": 4}}
ROUNDING = 2e-5


WITH_MTP = tiny_config(num_hidden_layers=2, first_k_dense_replace=0)  # few kinds of layers: half the time to compile
DENSE_FIRST = tiny_config(num_hidden_layers=2, first_k_dense_replace=1, num_nextn_predict_layers=0)


@functools.cache
def one_device(config):
    return value_and_gradients(config, random_state(config))


@pytest.mark.parametrize(
    "mesh, config, changes",
    [
        ("data 8", WITH_MTP, {}),
        ("fsdp 4, expert 2", DENSE_FIRST, dict(moe_chunk=4)),
        ("fsdp 2, expert 4", DENSE_FIRST, {}),  # fewer experts on a device than a token has
        ("data 2, expert 2, tensor 2", WITH_MTP, dict(moe_chunk=8, remat=True)),
    ],
)
def test_learning_gives_one_devices_gradients(mesh, config, changes):
    layout, state = make_layout((MESHES | FEW_EXPERTS)[mesh]), random_state(config)
    value, gradients = value_and_gradients(config.replace(**changes), state, layout)
    want_value, want = one_device(config)
    assert value == pytest.approx(want_value, rel=ROUNDING)
    assert_trees_close(gradients, want, 5 * ROUNDING)  # of each parameter's own largest


@pytest.mark.parametrize("mode", ["learn", "sample"])
@pytest.mark.parametrize("mesh", list(MESHES)[1:])
def test_logits_on_a_mesh(mesh, mode):
    layout, state, tokens = make_layout(MESHES[mesh], mode), random_state(CONFIG), random_tokens((8, 8))
    want = method(CONFIG, "__call__")(state, tokens)
    on_mesh = jax.device_put(tokens, layout.sharding(("batch", "length")))
    logits = method(CONFIG, "__call__", layout)(shard(state, layout), on_mesh)
    assert len(logits.sharding.device_set) == 8
    assert relative_error(logits, want) < ROUNDING


@pytest.mark.parametrize("mesh", MESHES)
def test_sampling_on_a_mesh(mesh):
    state = random_state(CONFIG)
    want = cached_logits(CONFIG, state, prompts=8)
    assert relative_error(cached_logits(CONFIG, state, make_layout(MESHES[mesh], "sample"), prompts=8), want) < ROUNDING


def test_the_rows_of_a_data_mesh_are_sampled_apart():
    """Devices that each hold all weights tell each other only whether they have ended: `lax.top_k`, which XLA on CPU
    does not split, would gather every router's scores."""
    layout = make_layout(MESHES["data 8"], "sample")
    sampler = make_sampler(graphdef(CONFIG), SamplingConfig(max_completion_length=4, num_generations=1), (1,), 0)

    @jax.jit
    def run(*args):
        with sharding.use(layout):
            return sampler(*args)

    whole, rows = layout.replicated, layout.sharding(("prompt",))
    state, allowed, key = jax.device_put((random_state(CONFIG), np.ones(64, bool), jax.random.key(0)), whole)
    prompts = jax.device_put((random_tokens((8, 6)), np.full(8, 6, np.int32), np.full(8, 4, np.int32)), rows)
    text = run.lower(state, *prompts, allowed, key).compile().as_text()
    assert set(re.findall(r"all-gather|all-to-all|collective-permute|all-reduce", text)) == {"all-reduce"}


def test_a_rollout_needs_no_more_prompts_than_hold_them():
    """Prompts lie on data and fsdp alone: four suffice for eight devices, two of which share each."""
    state, layout = random_state(CONFIG), make_layout({"fsdp": 4, "expert": 2}, "sample")
    assert relative_error(cached_logits(CONFIG, state, layout), cached_logits(CONFIG, state)) < ROUNDING


@pytest.mark.parametrize("length, chunk", [(8, 6), (6, 4)])
def test_a_chunk_that_does_not_divide_is_named(length, chunk):
    """Taken all at once, what the chunk was to bound would be unbounded."""
    state, tokens = random_state(CONFIG), random_tokens((8, length))
    hidden = jnp.zeros((8, length, 32))
    for name, run in {
        "attention_chunk": lambda: method(CONFIG.replace(attention_chunk=chunk), "trunk")(state, tokens),
        "moe_chunk": lambda: method(CONFIG.replace(moe_chunk=7 * chunk), "trunk")(state, tokens),
        "logits_chunk": lambda: next_token_logprobs(hidden, jnp.zeros((32, 64)), tokens, chunk=chunk),
    }.items():
        with pytest.raises(ConfigError, match=f"^{name}={chunk if name != 'moe_chunk' else 7 * chunk}: must divide"):
            run()


def test_gradients_lie_as_their_parameters_do():
    """Unasked for: what scans accumulate them in must be split too."""
    layout = make_layout({"fsdp": 4, "expert": 2})
    params, rest = nnx.split_state(shard(random_state(DENSE_FIRST), layout), nnx.Param, ...)

    @jax.jit
    def gradients(params, tokens):
        def loss(params):
            return nnx.merge(graphdef(DENSE_FIRST), params, rest).trunk(tokens).hidden.sum()

        with sharding.use(layout):
            return sharding.pin(jax.grad(loss)(params))

    tokens = jax.device_put(random_tokens((8, 8)), layout.sharding(("batch", "length")))
    for a, p in zip(jax.tree.leaves(gradients(params, tokens)), jax.tree.leaves(params), strict=True):
        assert a.sharding.is_equivalent_to(p.sharding, p.ndim)


def test_dense_students_on_a_mesh():
    config, state = tiny_qwen2(), random_state(tiny_qwen2())
    want = cached_logits(config, state, prompts=8)
    layout = make_layout({"fsdp": 2, "data": 2, "tensor": 2}, "sample")
    assert relative_error(cached_logits(config, state, layout, prompts=8), want) < ROUNDING


@pytest.mark.parametrize("mode, shape", [("learn", (2, 4, 8, 8)), ("sample", (2, 4, 32, 2))])
def test_parameters_are_split(mode, shape):
    """Experts 8 over 2; 32 x 16 over fsdp 4 on the embedding when learning, on the experts' width when sampling."""
    state = shard(random_state(CONFIG), make_layout({"fsdp": 4, "expert": 2}, mode))
    weight = state["moe_layers"]["mlp"]["gate_proj"][...]
    width = {"learn": 16, "sample": 4}[mode]
    embed = {"learn": 8, "sample": 32}[mode]
    assert weight.sharding.shard_shape(weight.shape) == (2, 4, embed, width)
    assert weight.addressable_shards[0].data.size == weight.size / 8


def test_learning_keeps_no_large_parameter_whole():
    layout = make_layout({"fsdp": 4, "expert": 2})
    state = shard(random_state(tiny_config()), layout)
    for path, a in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path)
        if "norm" not in name and "bias" not in name:
            assert a.addressable_shards[0].data.size <= a.size / 4, name


def test_a_layout_of_one_device_changes_nothing():
    layout = make_layout({"data": 1})
    x = jnp.ones((2, 2))
    with sharding.use(layout):
        assert sharding.constrain(x, "batch", "embed") is x
        assert sharding.current() is layout
    assert sharding.current() is None
    assert layout.spec(("batch", "embed", None)) == PartitionSpec(None, None, None)


def test_use_restores_the_layout_after_an_error():
    with pytest.raises(RuntimeError), sharding.use(make_layout({"data": 1})):
        raise RuntimeError
    assert sharding.current() is None


def test_a_rest_axis_takes_what_is_left():
    mesh = make_mesh({"data": -1, "expert": 2})
    assert dict(mesh.shape) == {"data": 4, "fsdp": 1, "expert": 2, "tensor": 1, "context": 1}
    assert len(np.unique([d.id for d in mesh.devices.flat])) == 8


@pytest.mark.parametrize(
    "shape, words",
    [
        ({"experts": 8}, ["experts", "data, fsdp, expert, tensor, context"]),
        ({"data": 4}, ["'data': 4", "multiply to 4", "8 devices"]),
        ({"data": 3, "fsdp": -1}, ["3", "8 devices"]),
        ({"data": -1, "fsdp": -1}, ["at most may be -1"]),
        ({"data": 0, "fsdp": 8}, ["positive"]),
        ({"data": -8}, ["positive"]),
    ],
)
def test_mesh_errors_say_what_would_be_right(shape, words):
    with pytest.raises(ConfigError) as error:
        make_mesh(shape)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "changes, mesh, words",
    [
        (dict(n_routed_experts=12, n_group=4), {"expert": 8}, ["expert=8", "expert=12", "_proj", "moe_layers"]),
        (dict(num_attention_heads=6), {"tensor": 4, "data": 2}, ["tensor=4", "heads=6", "attention"]),
        (dict(hidden_size=36), {"fsdp": 8}, ["fsdp=8", "embed=36"]),
    ],
)
def test_a_parameter_that_does_not_divide_is_named(changes, mesh, words):
    with pytest.raises(ConfigError) as error:
        state_shardings(random_state(tiny_config(**changes)), make_layout(mesh))
    for word in words:
        assert word in str(error.value)


def test_relay_rounds_what_enters_products_and_keeps_the_rest():
    """The sampler's copy computes with the numbers that the learner computes with."""
    config = tiny_config(dtype="bfloat16", num_nextn_predict_layers=0, num_hidden_layers=1, first_k_dense_replace=0)
    state, layout, tokens = random_state(config), make_layout({"fsdp": 4, "expert": 2}, "sample"), random_tokens((8, 8))
    copy = jax.jit(lambda s: sharding.relay(s, layout, "bfloat16"))(shard(state, make_layout({"fsdp": 4, "expert": 2})))
    mlp = copy["moe_layers"]["mlp"]
    weight = mlp["gate_proj"][...]
    assert weight.dtype == jnp.bfloat16 and weight.sharding.shard_shape(weight.shape) == (1, 4, 32, 4)
    assert mlp["router"]["weight"][...].dtype == mlp["router"]["e_score_correction_bias"][...].dtype == jnp.float32
    assert copy["norm"]["weight"][...].dtype == copy["lm_head"][...].dtype == jnp.float32
    forward = method(config, "__call__")
    here = jax.device_get(copy)
    np.testing.assert_array_equal(forward(here, tokens), forward(state, tokens))
