"""Arithmetic counted from shapes, against what XLA counts in the compiled program."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from helpers import tiny_config, tiny_llama3

from r1jax.configs.training import GRPOConfig
from r1jax.models.decoder import Decoder
from r1jax.models.flops import active_weights, forward_flops, grpo_step_flops

DENSE = tiny_llama3(
    vocab_size=384, hidden_size=128, intermediate_size=256, num_attention_heads=8, num_key_value_heads=4, head_dim=16,
    num_hidden_layers=2, first_k_dense_replace=2, scan_unroll=2,
)  # fmt: skip


def test_a_forward_pass_takes_what_xla_counts():
    """One token a sequence: attention, of which XLA counts the masked half too, takes next to nothing."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Decoder(DENSE, nnx.Rngs(params=0))))
    tokens = jax.ShapeDtypeStruct((64, 1), jnp.int32)
    compiled = jax.jit(lambda state, tokens: nnx.merge(graph, state)(tokens)).lower(state, tokens).compile()
    assert forward_flops(DENSE, 64, 1) == pytest.approx(compiled.cost_analysis()["flops"], rel=0.05)


def test_only_active_experts_count():
    config = tiny_config()
    more = config.replace(n_routed_experts=4 * config.n_routed_experts)
    trunk, head = active_weights(config)
    routers = 3 * config.n_routed_experts * config.hidden_size * config.num_moe_layers
    assert active_weights(more) == (trunk + routers, head)


def test_a_grpo_step_is_an_update_of_three_passes_a_reference_and_a_rollout():
    config = GRPOConfig(num_prompts=2, num_generations=4, max_completion_length=8, num_iterations=2)
    parts = grpo_step_flops(DENSE, config, 5)
    full = forward_flops(DENSE, 8, 13)
    assert parts["update"] == 6 * full and parts["logps"] == full
    assert parts["prefill"] == forward_flops(DENSE, 2, 5)
    assert parts["decode"] == 2 * 8 * 8 * sum(active_weights(DENSE))
    assert grpo_step_flops(DENSE, GRPOConfig(beta=0.0), 5)["logps"] == 0
