"""The decoder's one configuration: DeepSeek-V3's architecture, and Qwen2/Llama's as a special case."""

from __future__ import annotations

import dataclasses
from typing import Literal

from r1jax.errors import check_field


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Rotary position scaling. Names are Hugging Face's `rope_scaling` keys."""

    type: Literal["yarn", "llama3"] = "yarn"
    factor: float = 40.0
    original_max_position_embeddings: int = 4096
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    mscale: float = 1.0  # yarn: cos and sin are scaled by m(mscale) / m(mscale_all_dim), m(s) = 0.1 s ln(factor) + 1
    mscale_all_dim: float = 1.0  # yarn with MLA: the softmax scale is multiplied by m(mscale_all_dim)^2
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape and numerics of a decoder. Names are Hugging Face's (`DeepseekV3Config`, `Qwen2Config`, `LlamaConfig`).

    `attention="mla"` is DeepSeek's multi-head latent attention, `"gqa"` grouped-query attention. With
    `first_k_dense_replace == num_hidden_layers` every layer is dense.
    """

    # Shape
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    attention: Literal["mla", "gqa"] = "mla"
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    initializer_range: float | None = None  # None: 1 / sqrt(fan in)
    # Multi-head latent attention
    q_lora_rank: int | None = None
    kv_lora_rank: int = 0
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0
    # Grouped-query attention
    num_key_value_heads: int = 0
    head_dim: int = 0
    attention_bias: bool = False
    qk_norm: bool = False
    # Rotary positions
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    max_position_embeddings: int = 4096
    # Mixture of experts
    first_k_dense_replace: int = 0
    n_routed_experts: int = 0
    n_shared_experts: int = 0
    num_experts_per_tok: int = 0
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = True
    scoring_func: Literal["sigmoid", "softmax"] = "sigmoid"  # the router's affinities: DeepSeek-V3's, Qwen3-MoE's
    routed_scaling_factor: float = 1.0
    moe_intermediate_size: int = 0
    # Multi-token prediction
    num_nextn_predict_layers: int = 0
    # Numerics and execution: these change rounding and speed, never the function computed
    dtype: str = "float32"  # of activations and of the weights as they enter a product
    param_dtype: str = "float32"  # of the weights as stored
    remat: bool = False  # recompute each layer in the backward pass instead of keeping its activations
    scan_unroll: int = 1  # layers per scan step; the number of layers unrolls the scan
    moe_backend: Literal["auto", "tiled", "ragged"] = "auto"  # tiles on CPU, `lax.ragged_dot` on TPU and GPU
    moe_chunk: int = 0  # tokens a device routes at a time, bounding the dispatch buffers; 0: all at once
    attention_chunk: int = 0  # query positions attended at a time; 0: all at once
    logits_chunk: int = 0  # positions whose logits exist at a time in the learner; 0: all at once

    def __post_init__(self):
        c = check_field
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads"):
            c(getattr(self, name) > 0, name, getattr(self, name), "must be positive")
        c(self.attention in ("mla", "gqa"), "attention", self.attention, 'must be "mla" or "gqa"')
        if self.attention == "mla":
            for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
                c(getattr(self, name) > 0, name, getattr(self, name), "must be positive with attention='mla'")
        else:
            c(self.head_dim > 0, "head_dim", self.head_dim, "must be positive with attention='gqa'")
            c(
                self.num_key_value_heads > 0 and self.num_attention_heads % self.num_key_value_heads == 0,
                "num_key_value_heads",
                self.num_key_value_heads,
                f"must be positive and divide num_attention_heads={self.num_attention_heads}",
            )
        c(self.rope_dim % 2 == 0, "qk_rope_head_dim / head_dim", self.rope_dim, "must be even: rope rotates pairs")
        c(
            0 <= self.first_k_dense_replace <= self.num_hidden_layers,
            "first_k_dense_replace",
            self.first_k_dense_replace,
            f"must lie in 0..num_hidden_layers={self.num_hidden_layers}",
        )
        if self.num_moe_layers:
            c(self.n_routed_experts > 0, "n_routed_experts", self.n_routed_experts, "must be positive with MoE layers")
            c(self.moe_intermediate_size > 0, "moe_intermediate_size", self.moe_intermediate_size, "must be positive")
            scoring = ("sigmoid", "softmax")
            c(self.scoring_func in scoring, "scoring_func", self.scoring_func, 'must be "sigmoid" or "softmax"')
            c(
                self.n_group > 0 and self.n_routed_experts % self.n_group == 0,
                "n_group",
                self.n_group,
                f"must divide n_routed_experts={self.n_routed_experts}",
            )
            c(1 <= self.topk_group <= self.n_group, "topk_group", self.topk_group, f"must lie in 1..{self.n_group}")
            eligible = self.n_routed_experts // self.n_group * self.topk_group
            c(
                1 <= self.num_experts_per_tok <= eligible,
                "num_experts_per_tok",
                self.num_experts_per_tok,
                f"must lie in 1..{eligible}, the experts in topk_group={self.topk_group} groups",
            )
        c(self.scan_unroll >= 1, "scan_unroll", self.scan_unroll, "must be at least 1")
        for name in ("dtype", "param_dtype"):
            c(
                getattr(self, name) in ("float32", "bfloat16", "float64"),
                name,
                getattr(self, name),
                'must be "float32", "bfloat16" or "float64"',
            )

    @property
    def num_moe_layers(self) -> int:
        return self.num_hidden_layers - self.first_k_dense_replace

    @property
    def rope_dim(self) -> int:
        return self.qk_rope_head_dim if self.attention == "mla" else self.head_dim

    @property
    def yarn_active(self) -> bool:
        """DeepSeek's own code applies YaRN only to a model configured past its original length; Qwen's always."""
        s = self.rope_scaling
        if s is None or s.type != "yarn":
            return False
        return self.attention == "gqa" or self.max_position_embeddings > s.original_max_position_embeddings

    def replace(self, **changes) -> ModelConfig:
        return dataclasses.replace(self, **changes)
