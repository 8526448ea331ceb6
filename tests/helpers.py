"""What the tests of several rooms share: tiny models with no feature hidden, and meshes for them."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from r1jax.configs.model import ModelConfig, RopeScaling
from r1jax.configs.training import GRPOConfig, SamplingConfig
from r1jax.models.decoder import Decoder
from r1jax.sharding import Layout, make_mesh, state_shardings, use
from r1jax.training.grpo import GRPOBatch, make_logps, make_rollout


def tiny_config(**changes) -> ModelConfig:
    """DeepSeek-V3 with every feature on. No two widths that could be confused are equal; every axis divides 4."""
    config = ModelConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=4, first_k_dense_replace=2, intermediate_size=48,
        num_attention_heads=4, q_lora_rank=20, kv_lora_rank=24, qk_nope_head_dim=12, qk_rope_head_dim=16, v_head_dim=10,
        n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=3, n_group=4, topk_group=2,
        routed_scaling_factor=2.5, moe_intermediate_size=16, num_nextn_predict_layers=1, rope_theta=100.0,
        # The ramp runs over pairs 0..3 of 8; mscale is not mscale_all_dim, so that cos and sin are scaled too.
        rope_scaling=RopeScaling(
            factor=8.0, original_max_position_embeddings=16, beta_fast=4.0, beta_slow=0.5, mscale=0.7
        ),
        max_position_embeddings=32_768,
    )  # fmt: skip
    return config.replace(**changes)


def tiny_qwen2(**changes) -> ModelConfig:
    """Grouped queries with biases, tied embeddings."""
    config = ModelConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, first_k_dense_replace=2, intermediate_size=48,
        num_attention_heads=4, num_key_value_heads=2, head_dim=10, attention="gqa", attention_bias=True,
        tie_word_embeddings=True, rope_theta=10_000.0,
    )  # fmt: skip
    return config.replace(**changes)


def tiny_llama3(**changes) -> ModelConfig:
    """Grouped queries with Llama 3's rope scaling; its three bands of wavelengths are all populated."""
    config = ModelConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, first_k_dense_replace=2, intermediate_size=48,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, attention="gqa", rms_norm_eps=1e-5, rope_theta=500.0,
        rope_scaling=RopeScaling(type="llama3", factor=8.0, original_max_position_embeddings=256),
    )  # fmt: skip
    return config.replace(**changes)


def wide(config: ModelConfig) -> ModelConfig:
    """The same model in float64; use it under `jax.enable_x64()`."""
    return config.replace(dtype="float64", param_dtype="float64")


def _random(rng: np.random.Generator, path: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = rng.standard_normal(shape)
    if "correction_bias" in path:  # many biased scores negative
        return (0.4 * noise - 0.6).astype(np.float32)
    if "norm" in path:
        return 1 + 0.3 * noise
    if "bias" in path:
        return 0.5 * noise
    if "embed" in path:
        return noise
    if "router" in path:
        return noise * 2 / math.sqrt(shape[-2])
    if "o_proj" in path:
        return noise / math.sqrt(shape[-3] * shape[-2])
    heads = any(name in path for name in ("q_proj", "k_proj", "v_proj", "_b_proj"))
    return noise / math.sqrt(shape[-3] if heads else shape[-2])


def graphdef(config: ModelConfig) -> nnx.GraphDef:
    """The decoder without its arrays. Not cached: it holds what a test may have patched (the softmax scale)."""
    return nnx.graphdef(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(params=0))))


def random_state(config: ModelConfig, seed: int = 0) -> nnx.State:
    """Parameters drawn so that nothing starts at an identity that would hide it. The same values in every dtype."""
    state = nnx.state(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(params=0))))
    rng = np.random.default_rng(seed)

    def fill(path, v):
        value = _random(rng, jax.tree_util.keystr(path), v.shape).astype(np.float32)
        return v.replace(jnp.asarray(value, v.dtype))

    return jax.tree_util.tree_map_with_path(fill, state, is_leaf=lambda v: isinstance(v, nnx.Variable))


def random_model(config: ModelConfig, seed: int = 0) -> Decoder:
    return nnx.merge(graphdef(config), random_state(config, seed))


def pure(state: nnx.State) -> dict:
    """Nested dicts of NumPy arrays: what `tests.reference` takes."""
    return jax.tree.map(np.asarray, nnx.to_pure_dict(state))


def make_layout(shape: Mapping[str, int], mode: str = "learn") -> Layout:
    """A layout on the first devices that the axes need."""
    return Layout(make_mesh(shape, jax.devices()[: math.prod(shape.values())]), mode)


def shard(state: nnx.State, layout: Layout | None) -> nnx.State:
    return state if layout is None else jax.device_put(state, state_shardings(state, layout))


@functools.lru_cache(maxsize=64)
def method(config: ModelConfig, name: str, layout: Layout | None = None) -> Any:
    """A decoder's method, jitted: f(state, *args, **kwargs)."""
    definition = graphdef(config)

    @jax.jit
    def call(state, *args, **kwargs):
        with use(layout):
            return getattr(nnx.merge(definition, state), name)(*args, **kwargs)

    return call


def random_tokens(shape: tuple[int, ...], seed: int = 0, vocab: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab, shape).astype(np.int32)


def relative_error(actual: Any, expected: Any) -> float:
    """Largest difference over largest magnitude."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def assert_trees_close(actual: Any, expected: Any, tolerance: float) -> None:
    """Every leaf, relative to the largest magnitude of its own."""
    actual, expected = (jax.tree_util.tree_leaves_with_path(t) for t in (actual, expected))
    for (path, a), (_, e) in zip(actual, expected, strict=True):
        assert np.abs(np.asarray(a) - np.asarray(e)).max() <= tolerance * np.abs(e).max(), jax.tree_util.keystr(path)


def value_and_gradients(
    config: ModelConfig, state: nnx.State, layout: Layout | None = None, shape: tuple[int, int] = (8, 8)
) -> tuple[float, nnx.State]:
    """A loss in which everything takes part (logits, prediction module, balance), and its gradient."""
    tokens = random_tokens(shape, seed=11)
    weights = np.random.default_rng(12).standard_normal((*shape, config.vocab_size)).astype(np.float32)
    if layout is not None:
        tokens = jax.device_put(tokens, layout.sharding(("batch", "length")))
    params, rest = nnx.split_state(shard(state, layout), nnx.Param, ...)

    def loss(params, rest, tokens):
        with use(layout):
            model = nnx.merge(graphdef(config), params, rest)
            trunk = model.trunk(tokens)
            total = jnp.vdot(model.logits(trunk.hidden), weights)
            for hidden, routing in model.mtp_hidden(trunk.hidden, tokens):
                total += jnp.vdot(model.logits(hidden[:, :-1]), weights[:, 1:]) + routing.balance_loss
            return total + trunk.routing.balance_loss.sum()

    # Gradients are asked for as their parameters lie. Unasked, XLA leaves them whole on every device of `fsdp`.
    laid_out = None if layout is None else (layout.replicated, state_shardings(params, layout))
    value, gradients = jax.jit(jax.value_and_grad(loss), out_shardings=laid_out)(params, rest, tokens)
    return float(value), gradients


# ----------------------------------------------------------------------------------------------------- rollouts


@functools.lru_cache(maxsize=64)
def rollout_program(
    config: ModelConfig,
    sampling: SamplingConfig,
    stop_ids: tuple[int, ...],
    pad_id: int,
    mesh: jax.sharding.Mesh | None = None,
    record_experts: bool = False,
) -> Any:
    """`make_rollout`, jitted: f(learner's model state, prompts, lengths, max lengths, allowed, key)."""
    layout = Layout(mesh or make_mesh({"data": 1}, jax.devices()[:1]), "sample")
    rollout = make_rollout(config, graphdef(config), sampling, stop_ids, pad_id, layout, record_experts)

    @jax.jit
    def call(state, prompts, lengths, limits, allowed, key):
        with use(layout):
            return rollout(state, prompts, lengths, limits, allowed, key)

    def put(state, prompts, lengths, limits, allowed, key):
        learn = Layout(layout.mesh, "learn")
        arrays = [(prompts, "prompt", None), (lengths, "prompt"), (limits, "prompt"), (allowed, None)]
        arrays = [jax.device_put(np.asarray(a), learn.sharding(names)) for a, *names in arrays]
        return call(shard(state, learn), *arrays, jax.device_put(key, learn.replicated))

    return put


@functools.lru_cache(maxsize=64)
def logps_program(config: ModelConfig, grpo: GRPOConfig, mesh: jax.sharding.Mesh | None = None) -> Any:
    """`make_logps`, jitted: f(model state, batch)."""
    layout = Layout(mesh or make_mesh({"data": 1}, jax.devices()[:1]), "learn")
    logps = make_logps(config, graphdef(config), grpo)

    @jax.jit
    def call(state, batch):
        with use(layout):
            return logps(state, batch)

    return lambda state, batch: call(shard(state, layout), lay_out_batch(batch, layout))


def lay_out_batch(batch: GRPOBatch, layout: Layout) -> GRPOBatch:
    """A learner's batch on the devices of `layout`, as the loop lays it out."""

    def put(path, a):
        name = path[0].name
        names = {"allowed": (None,), "experts": (None, "batch", "length", None)}.get(
            name, ("batch", "length")[: a.ndim]
        )
        return jax.device_put(np.asarray(a), layout.sharding(names))

    return jax.tree_util.tree_map_with_path(put, batch)
