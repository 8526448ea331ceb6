"""Named model shapes. Sources: each checkpoint's published config.json."""

from r1jax.configs.model import ModelConfig, RopeScaling
from r1jax.errors import ConfigError

# A chunk of logits gathers the head and reduces its gradient: as few as memory allows.
_BF16 = dict(dtype="bfloat16", remat=True, moe_backend="ragged", attention_chunk=512, logits_chunk=1024)


def _qwen2(
    hidden: int, layers: int, inter: int, heads: int, kv_heads: int, tie: bool, vocab: int, math: bool = False
) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab, hidden_size=hidden, num_hidden_layers=layers, first_k_dense_replace=layers,
        intermediate_size=inter, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=hidden // heads,
        attention="gqa", attention_bias=True, tie_word_embeddings=tie, max_position_embeddings=131_072,
        # The paper distils into Qwen2.5-Math at 1.5B and 7B, whose rope and epsilon differ from those of 14B and 32B.
        rope_theta=10_000.0 if math else 1_000_000.0, rms_norm_eps=1e-6 if math or hidden < 3584 else 1e-5,
        initializer_range=0.02, **_BF16,
    )  # fmt: skip


def _llama3(hidden: int, layers: int, inter: int, heads: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=128_256, hidden_size=hidden, num_hidden_layers=layers, first_k_dense_replace=layers,
        intermediate_size=inter, num_attention_heads=heads, num_key_value_heads=8, head_dim=hidden // heads,
        attention="gqa", rms_norm_eps=1e-5, rope_theta=500_000.0, max_position_embeddings=131_072,
        rope_scaling=RopeScaling(type="llama3", factor=8.0, original_max_position_embeddings=8192),
        initializer_range=0.02, **_BF16,
    )  # fmt: skip


MODEL_PRESETS: dict[str, ModelConfig] = {
    # The miniature: DeepSeek-V3's architecture at a size that learns to add on two CPU cores in minutes.
    "nano": ModelConfig(
        vocab_size=256, hidden_size=128, num_hidden_layers=4, first_k_dense_replace=1, intermediate_size=256,
        num_attention_heads=4, q_lora_rank=64, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=16,
        v_head_dim=32, n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=2, n_group=4, topk_group=2,
        routed_scaling_factor=1.0, moe_intermediate_size=64, num_nextn_predict_layers=1, max_position_embeddings=512,
        scan_unroll=4,
    ),
    # The miniature's distillation student: Qwen2's architecture, a third of nano's parameters.
    "nano-qwen2": ModelConfig(
        vocab_size=256, hidden_size=96, num_hidden_layers=4, first_k_dense_replace=4, intermediate_size=256,
        num_attention_heads=4, num_key_value_heads=2, head_dim=24, attention="gqa", attention_bias=True,
        tie_word_embeddings=True, max_position_embeddings=512, scan_unroll=4,
    ),
    # The shape on which other projects were measured.
    "mini": ModelConfig(
        vocab_size=512, hidden_size=256, num_hidden_layers=6, first_k_dense_replace=2, intermediate_size=768,
        num_attention_heads=8, q_lora_rank=96, kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16,
        v_head_dim=32, n_routed_experts=16, n_shared_experts=1, num_experts_per_tok=4, n_group=4, topk_group=2,
        routed_scaling_factor=2.5, moe_intermediate_size=128, num_nextn_predict_layers=1,
        max_position_embeddings=4096,
    ),
    "deepseek-v3-671b": ModelConfig(
        vocab_size=129_280, hidden_size=7168, num_hidden_layers=61, first_k_dense_replace=3, intermediate_size=18_432,
        num_attention_heads=128, q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64,
        v_head_dim=128, n_routed_experts=256, n_shared_experts=1, num_experts_per_tok=8, n_group=8, topk_group=4,
        routed_scaling_factor=2.5, moe_intermediate_size=2048, num_nextn_predict_layers=1, rope_scaling=RopeScaling(),
        max_position_embeddings=163_840, initializer_range=0.006, moe_chunk=1024, **_BF16,
    ),
    # What a laptop runs.
    "qwen2.5-0.5b": _qwen2(896, 24, 4864, 14, 2, tie=True, vocab=151_936).replace(max_position_embeddings=32_768),
    # R1's distillation students (arXiv 2501.12948, table 15).
    "qwen2.5-1.5b": _qwen2(1536, 28, 8960, 12, 2, tie=True, vocab=151_936, math=True),
    "qwen2.5-7b": _qwen2(3584, 28, 18_944, 28, 4, tie=False, vocab=152_064, math=True),
    "qwen2.5-14b": _qwen2(5120, 48, 13_824, 40, 8, tie=False, vocab=152_064),
    "qwen2.5-32b": _qwen2(5120, 64, 27_648, 40, 8, tie=False, vocab=152_064),
    "llama3.1-8b": _llama3(4096, 32, 14_336, 32),
    "llama3.3-70b": _llama3(8192, 80, 28_672, 64),
}  # fmt: skip


def model_preset(name: str) -> ModelConfig:
    """The shape called `name`, or a `ConfigError` that lists the names there are."""
    if name not in MODEL_PRESETS:
        raise ConfigError(f"preset={name!r}: must be one of {', '.join(sorted(MODEL_PRESETS))}")
    return MODEL_PRESETS[name]
