"""Hugging Face's config.json to and from `ModelConfig`.

Whatever would change the function computed and is not supported is refused by name; nothing is silently dropped.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from r1jax.configs.model import ModelConfig, RopeScaling
from r1jax.errors import CheckpointError, ConfigError

Raw = Mapping[str, Any]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or a `CheckpointError` naming the file."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: point at the folder of a published checkpoint") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): copy it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object: copy it again")
    return value


class _Reader:
    """One config.json, whose complaints name the file and the field."""

    def __init__(self, raw: Raw, where: str):
        self.raw, self.where = raw, where

    def get(self, *names: str, default: Any = None, required: bool = False) -> Any:
        """The first of `names` (an old and a new spelling) that is there and not null."""
        for name in names:
            if self.raw.get(name) is not None:
                return self.raw[name]
        if required:
            raise CheckpointError(f"{self.where} has no {names[0]!r}: copy the published config.json")
        return default

    def only(self, name: str, *allowed: Any) -> None:
        """Refuses a setting that the decoder does not have; absent or null is the first of `allowed`."""
        value = self.get(name, default=allowed[0])
        if value not in allowed:
            raise CheckpointError(
                f"{self.where}: {name}={value!r} is not supported; r1jax loads {' or '.join(map(repr, allowed))}"
            )

    def rope(self) -> tuple[float, RopeScaling | None]:
        """(theta, scaling), from transformers 5's `rope_parameters` or the older `rope_theta` and `rope_scaling`."""
        rope = dict(self.get("rope_parameters", "rope_scaling", default={}))
        theta = float(rope.pop("rope_theta", None) or self.get("rope_theta", default=10_000.0))
        kind = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
        rope.pop("type", None)
        if rope.pop("partial_rotary_factor", None) not in (None, 1, 1.0):
            raise CheckpointError(f"{self.where}: partial_rotary_factor is not supported; r1jax rotates whole heads")
        if kind == "default":
            return theta, None
        if kind not in ("yarn", "llama3"):
            raise CheckpointError(
                f"{self.where}: rope type {kind!r} is not supported; r1jax loads 'default', 'yarn' or 'llama3'"
            )
        if rope.pop("truncate", True) is not True or rope.pop("attention_factor", None) is not None:
            raise CheckpointError(f"{self.where}: YaRN's truncate and attention_factor are not supported; remove them")
        fields = ["factor", "original_max_position_embeddings"]
        fields += ["low_freq_factor", "high_freq_factor"] if kind == "llama3" else ["beta_fast", "beta_slow"]
        rope.setdefault("original_max_position_embeddings", self.get("max_position_embeddings", required=True))
        values = {name: rope[name] for name in fields if rope.get(name) is not None}
        for name in ("factor", *(fields[2:] if kind == "llama3" else ())):
            if name not in values:
                raise CheckpointError(
                    f"{self.where}: rope type {kind!r} needs {name!r}; copy the published config.json"
                )
        if kind == "yarn":  # these defaults are those of DeepSeek's own modeling_deepseek.py
            values |= {"mscale": rope.get("mscale") or 1.0, "mscale_all_dim": rope.get("mscale_all_dim") or 0.0}
        _check_kinds(RopeScaling, values, self.where)
        return theta, RopeScaling(type=kind, **values)


_KINDS = {"int": ((int,), "a whole number"), "float": ((int, float), "a number"), "bool": ((bool,), "true or false")}


def _check_kinds(of: type, values: Mapping[str, Any], where: str) -> None:
    """Refuses what is not of the type that the dataclass `of` declares. No size is negative."""
    for field in dataclasses.fields(of):
        value, (kinds, noun) = values.get(field.name), _KINDS.get(field.type.split(" | ")[0], ((), ""))
        if value is not None and kinds and (type(value) not in kinds or (int in kinds and not value >= 0)):
            raise CheckpointError(f"{where}: {field.name}={value!r} must be {noun}; copy the published config.json")


def _common(c: _Reader) -> dict[str, Any]:
    c.only("hidden_act", "silu")
    theta, scaling = c.rope()
    needed = ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads")
    return {name: c.get(name, required=True) for name in needed} | {
        "rms_norm_eps": c.get("rms_norm_eps", default=1e-6),
        "tie_word_embeddings": c.get("tie_word_embeddings", default=False),
        "initializer_range": c.get("initializer_range", default=0.02),
        "max_position_embeddings": c.get("max_position_embeddings", required=True),
        "rope_theta": theta,
        "rope_scaling": scaling,
    }


def _deepseek_v3(c: _Reader) -> dict[str, Any]:
    for name, allowed in {
        "topk_method": ("noaux_tc",), "scoring_func": ("sigmoid",), "attention_bias": (False,),
        "moe_layer_freq": (1,), "rope_interleave": (True,),
    }.items():  # fmt: skip
        c.only(name, *allowed)
    heads = c.get("num_attention_heads", required=True)
    c.only("num_key_value_heads", heads)
    needed = (
        "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "n_routed_experts", "num_experts_per_tok",
        "moe_intermediate_size", "first_k_dense_replace", "n_group", "topk_group", "routed_scaling_factor",
    )  # fmt: skip
    layers = c.get("num_hidden_layers", required=True)
    values = {name: c.get(name, required=True) for name in needed}
    return values | {
        "attention": "mla",
        "q_lora_rank": c.get("q_lora_rank"),
        "first_k_dense_replace": min(values["first_k_dense_replace"], layers),
        "n_shared_experts": c.get("n_shared_experts", default=0),
        "norm_topk_prob": c.get("norm_topk_prob", default=True),
        "num_nextn_predict_layers": c.get("num_nextn_predict_layers", "num_mtp_layers", default=0),
    }


def _gqa(c: _Reader) -> dict[str, Any]:
    heads = c.get("num_attention_heads", required=True)
    c.only("use_sliding_window", False)
    if sliding := set(c.get("layer_types", default=[])) - {"full_attention"}:
        raise CheckpointError(f"{c.where}: layer_types={sorted(sliding)} is not supported; r1jax attends in full")
    return {
        "attention": "gqa",
        "num_key_value_heads": c.get("num_key_value_heads", default=heads),
        "head_dim": c.get("head_dim", default=c.get("hidden_size", required=True) // heads),
        "first_k_dense_replace": c.get("num_hidden_layers", required=True),
    }


def _qwen2(c: _Reader) -> dict[str, Any]:
    return _gqa(c) | {"attention_bias": True}


def _qwen3(c: _Reader) -> dict[str, Any]:
    c.only("attention_bias", False)
    return _gqa(c) | {"qk_norm": True}


def _qwen3_moe(c: _Reader) -> dict[str, Any]:
    c.only("decoder_sparse_step", 1)
    dense = c.get("mlp_only_layers", default=[])
    if list(dense) != list(range(len(dense))):
        raise CheckpointError(f"{c.where}: mlp_only_layers={dense} is not supported; r1jax's dense layers come first")
    return _qwen3(c) | {
        "first_k_dense_replace": len(dense),
        "n_routed_experts": c.get("num_experts", "num_local_experts", required=True),
        "num_experts_per_tok": c.get("num_experts_per_tok", required=True),
        "moe_intermediate_size": c.get("moe_intermediate_size", required=True),
        "norm_topk_prob": c.get("norm_topk_prob", default=False),
        "scoring_func": "softmax",
    }


def _llama(c: _Reader) -> dict[str, Any]:
    c.only("attention_bias", False)
    c.only("mlp_bias", False)
    return _gqa(c)


ARCHITECTURES: dict[str, Callable[[_Reader], dict[str, Any]]] = {
    "DeepseekV3ForCausalLM": _deepseek_v3,
    "Qwen2ForCausalLM": _qwen2,
    "Qwen3ForCausalLM": _qwen3,
    "Qwen3MoeForCausalLM": _qwen3_moe,
    "LlamaForCausalLM": _llama,
}
MODEL_TYPES = {
    "DeepseekV3ForCausalLM": "deepseek_v3",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "LlamaForCausalLM": "llama",
}


def config_from_hf(raw: Raw, where: str = "config.json") -> ModelConfig:
    """The decoder that a config.json describes, float32 and with default execution settings.

    Raises:
      CheckpointError: an architecture or a setting that the decoder does not have, or a field that is missing.
    """
    name = raw.get("architectures") or [k for k, v in MODEL_TYPES.items() if v == raw.get("model_type")]
    if isinstance(name, list):
        name = name[0] if len(name) == 1 else raw.get("model_type")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise CheckpointError(f"{where}: architecture {name!r} is not known; r1jax loads {', '.join(ARCHITECTURES)}")
    reader = _Reader(raw, where)
    try:
        values = _common(reader) | ARCHITECTURES[name](reader)
        _check_kinds(ModelConfig, values, where)
        return ModelConfig(**values)
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from None
    except (ArithmeticError, TypeError, ValueError) as error:  # a number where a list should be, and the like
        raise CheckpointError(f"{where} cannot be read ({error}): copy the published config.json") from None


def fp8_block(raw: Raw, where: str) -> tuple[int, int] | None:
    """The blocks of an FP8 checkpoint's scales, (rows, columns); None for one that is not quantised."""
    q = raw.get("quantization_config")
    if q is None:
        return None
    q = q if isinstance(q, dict) else {}
    block = q.get("weight_block_size")
    sizes = block if isinstance(block, list) and len(block) == 2 else [0]
    good = all(type(size) is int and size > 0 for size in sizes)
    if not good or q.get("quant_method") != "fp8" or q.get("fmt", "e4m3") != "e4m3":
        raise CheckpointError(
            f"{where}: quantization_config with quant_method={q.get('quant_method')!r} and weight_block_size="
            f"{block} is not supported; r1jax loads fp8 e4m3 in blocks, or unquantised weights"
        )
    return tuple(sizes)


def architecture_of(config: ModelConfig) -> str:
    """The Hugging Face class that computes what this decoder computes.

    Raises:
      ConfigError: there is none.
    """
    moe, dense = config.num_moe_layers > 0, config.num_moe_layers == 0
    if config.attention == "mla" and config.scoring_func == "sigmoid" and not config.tie_word_embeddings:
        return "DeepseekV3ForCausalLM"
    if config.attention == "gqa" and not config.num_nextn_predict_layers:
        plain = config.n_shared_experts == 0 and config.n_group == 1 and config.routed_scaling_factor == 1
        if moe and config.qk_norm and not config.attention_bias and config.scoring_func == "softmax" and plain:
            return "Qwen3MoeForCausalLM"
        if dense and config.qk_norm and not config.attention_bias:
            return "Qwen3ForCausalLM"
        if dense and config.attention_bias and not config.qk_norm:
            return "Qwen2ForCausalLM"
        if dense and not config.qk_norm:
            return "LlamaForCausalLM"
    raise ConfigError(
        f"a decoder with attention={config.attention!r}, scoring_func={config.scoring_func!r}, qk_norm="
        f"{config.qk_norm}, attention_bias={config.attention_bias} and {config.num_moe_layers} MoE layers is none of "
        f"{', '.join(ARCHITECTURES)}: save it with Orbax instead"
    )


def config_to_hf(config: ModelConfig, fp8: bool = False) -> dict[str, Any]:
    """What config.json should hold. Rope settings are in the older spelling, which every tool reads."""
    architecture = architecture_of(config)
    c = config
    out: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": MODEL_TYPES[architecture],
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "num_hidden_layers": c.num_hidden_layers,
        "intermediate_size": c.intermediate_size,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_attention_heads if c.attention == "mla" else c.num_key_value_heads,
        "hidden_act": "silu",
        "rms_norm_eps": c.rms_norm_eps,
        "tie_word_embeddings": c.tie_word_embeddings,
        "initializer_range": 0.02 if c.initializer_range is None else c.initializer_range,
        "max_position_embeddings": c.max_position_embeddings,
        "rope_theta": c.rope_theta,
        "rope_scaling": _rope_to_hf(c.rope_scaling),
        "torch_dtype": c.param_dtype,
        "use_cache": True,
    }
    if architecture == "DeepseekV3ForCausalLM":
        names = (
            "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "n_routed_experts",
            "n_shared_experts", "num_experts_per_tok", "moe_intermediate_size", "first_k_dense_replace", "n_group",
            "topk_group", "routed_scaling_factor", "norm_topk_prob", "num_nextn_predict_layers",
        )  # fmt: skip
        out |= {name: getattr(c, name) for name in names}
        out |= {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1, "attention_bias": False}
    else:
        out |= {"head_dim": c.head_dim}
        out |= {"attention_bias": False, "mlp_bias": False} if architecture == "LlamaForCausalLM" else {}
        out |= {"use_sliding_window": False} if architecture != "LlamaForCausalLM" else {}
    if architecture == "Qwen3MoeForCausalLM":
        out |= {
            "num_experts": c.n_routed_experts,
            "num_experts_per_tok": c.num_experts_per_tok,
            "moe_intermediate_size": c.moe_intermediate_size,
            "norm_topk_prob": c.norm_topk_prob,
            "decoder_sparse_step": 1,
            "mlp_only_layers": list(range(c.first_k_dense_replace)),
        }
    if fp8:
        out["quantization_config"] = {
            "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
        }  # fmt: skip
    return out


def _rope_to_hf(s: RopeScaling | None) -> dict[str, Any] | None:
    if s is None:
        return None
    out = {
        "type": s.type,
        "rope_type": s.type,
        "factor": s.factor,
        "original_max_position_embeddings": s.original_max_position_embeddings,
    }
    names = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")
    if s.type == "llama3":
        names = ("low_freq_factor", "high_freq_factor")
    return out | {name: getattr(s, name) for name in names}
