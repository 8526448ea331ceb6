"""A configuration that cannot work is refused by name, before any array exists."""

import dataclasses

import pytest
from helpers import tiny_config, tiny_qwen2

from r1jax.configs.presets import MODEL_PRESETS, model_preset
from r1jax.errors import ConfigError


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(vocab_size=0), ["vocab_size=0", "positive"]),
        (dict(attention="mqa"), ["attention='mqa'", "mla", "gqa"]),
        (dict(kv_lora_rank=0), ["kv_lora_rank=0", "mla"]),
        (dict(qk_rope_head_dim=15), ["qk_rope_head_dim", "15", "even"]),
        (dict(first_k_dense_replace=5), ["first_k_dense_replace=5", "4"]),
        (dict(n_routed_experts=0), ["n_routed_experts=0"]),
        (dict(moe_intermediate_size=0), ["moe_intermediate_size=0"]),
        (dict(n_group=3), ["n_group=3", "n_routed_experts=8"]),
        (dict(topk_group=5), ["topk_group=5", "1..4"]),
        (dict(num_experts_per_tok=5), ["num_experts_per_tok=5", "1..4", "topk_group=2"]),
        (dict(scan_unroll=0), ["scan_unroll=0"]),
        (dict(dtype="float16"), ["dtype='float16'", "bfloat16"]),
        (dict(param_dtype="int8"), ["param_dtype='int8'"]),
    ],
)
def test_a_field_that_cannot_work_is_named(changes, words):
    with pytest.raises(ConfigError) as error:
        tiny_config(**changes)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("kv_heads", [0, 3])
def test_key_value_heads_must_divide_the_heads(kv_heads):
    with pytest.raises(ConfigError, match=f"num_key_value_heads={kv_heads}.*num_attention_heads=4"):
        tiny_qwen2(num_key_value_heads=kv_heads)


def test_fields_of_experts_are_free_without_moe_layers():
    assert tiny_qwen2().num_moe_layers == 0
    assert tiny_config(first_k_dense_replace=4, n_routed_experts=0).num_moe_layers == 0


def test_a_config_is_frozen_and_hashable():
    """It is a static argument of jitted functions."""
    assert hash(tiny_config()) == hash(tiny_config()) and tiny_config() == tiny_config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_config().vocab_size = 1


def test_presets():
    assert all(model_preset(name) is config for name, config in MODEL_PRESETS.items())
    with pytest.raises(ConfigError, match=r"preset='nona': must be one of .*deepseek-v3-671b.*nano"):
        model_preset("nona")
    big = model_preset("deepseek-v3-671b")
    assert big.yarn_active and big.num_moe_layers == 58
    for name in ("dtype", "remat", "moe_backend", "attention_chunk", "logits_chunk"):
        assert getattr(big, name) == getattr(model_preset("llama3.3-70b"), name)
