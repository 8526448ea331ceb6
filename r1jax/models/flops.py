"""How much arithmetic a model's passes take: the products that the architecture needs, and no others."""

from __future__ import annotations

from r1jax.configs.model import ModelConfig
from r1jax.configs.training import GRPOConfig


def active_weights(c: ModelConfig) -> tuple[int, int]:
    """Weights that one token is multiplied by: (in the trunk, in the head)."""
    d, h = c.hidden_size, c.num_attention_heads
    if c.attention == "mla":
        qk = c.qk_nope_head_dim + c.qk_rope_head_dim
        q = d * c.q_lora_rank + c.q_lora_rank * h * qk if c.q_lora_rank else d * h * qk
        kv = d * (c.kv_lora_rank + c.qk_rope_head_dim) + c.kv_lora_rank * h * (c.qk_nope_head_dim + c.v_head_dim)
        attention = q + kv + h * c.v_head_dim * d
    else:
        attention = d * c.head_dim * (2 * h + 2 * c.num_key_value_heads)
    dense = 3 * d * c.intermediate_size
    moe = 3 * d * c.moe_intermediate_size * (c.num_experts_per_tok + c.n_shared_experts) + d * c.n_routed_experts
    layers = c.num_hidden_layers * attention + c.first_k_dense_replace * dense + c.num_moe_layers * moe
    return layers, d * c.vocab_size


def forward_flops(c: ModelConfig, sequences: int, length: int) -> float:
    """Of a forward pass over whole sequences, causal attention counted by half."""
    trunk, head = active_weights(c)
    if c.attention == "mla":
        per_pair = c.num_attention_heads * (c.qk_nope_head_dim + c.qk_rope_head_dim + c.v_head_dim)
    else:
        per_pair = c.num_attention_heads * 2 * c.head_dim
    attention = c.num_hidden_layers * per_pair * length * (length + 1)  # 2 x pairs, pairs = T (T + 1) / 2
    return sequences * (2 * length * (trunk + head) + attention)


def grpo_step_flops(c: ModelConfig, config: GRPOConfig, prompt_length: int) -> dict[str, float]:
    """Of each part of a GRPO step whose completions all have their full length; an update is three forward passes."""
    full = forward_flops(c, config.batch_size, prompt_length + config.max_completion_length)
    return {
        "prefill": forward_flops(c, config.num_prompts, prompt_length),
        "decode": config.batch_size * config.max_completion_length * 2.0 * sum(active_weights(c)),
        "logps": full if config.beta else 0.0,
        "update": 3 * full * config.num_iterations,
    }
