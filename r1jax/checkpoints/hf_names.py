"""Which tensor of a published checkpoint each of the decoder's parameters is, and how it is laid out there.

Published matrices are [out, in], one for each layer and expert. The decoder's are [in, out] with heads as axes of their
own, and layers and experts stacked in front.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from flax import nnx

from r1jax.configs.model import ModelConfig

Path = tuple[str | int, ...]

_TOP = {"embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight", "lm_head": "lm_head.weight"}
_MLP = ("gate_proj", "up_proj", "down_proj")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "q_a_proj", "q_b_proj", "kv_b_proj")
_BLOCK = {  # under model.layers.N
    "input_norm.weight": "input_layernorm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    **{f"attention.{name}": f"self_attn.{name}.weight" for name in _ATTENTION},
    **{f"attention.{name}_bias": f"self_attn.{name}_proj.bias" for name in "qkv"},
    **{f"attention.{name}_norm.weight": f"self_attn.{name}_norm.weight" for name in "qk"},
    "attention.q_a_norm.weight": "self_attn.q_a_layernorm.weight",
    "attention.kv_a_proj": "self_attn.kv_a_proj_with_mqa.weight",
    "attention.kv_a_norm.weight": "self_attn.kv_a_layernorm.weight",
    **{f"mlp.{name}": f"mlp.{name}.weight" for name in _MLP},
    **{f"mlp.shared.{name}": f"mlp.shared_experts.{name}.weight" for name in _MLP},
    "mlp.router.weight": "mlp.gate.weight",
    "mlp.router.e_score_correction_bias": "mlp.gate.e_score_correction_bias",
}
_EXPERTS = {f"mlp.{name}": f"mlp.experts.{{expert}}.{name}.weight" for name in _MLP}
_MTP = {  # under model.layers.N for the N after the last layer
    "enorm.weight": "enorm.weight",
    "hnorm.weight": "hnorm.weight",
    "eh_proj": "eh_proj.weight",
    "norm.weight": "shared_head.norm.weight",
}


class Source(NamedTuple):
    """The published tensors that one parameter is made of."""

    names: np.ndarray  # of str: [layers], [layers, experts], [experts] or [], the axes stacked in front
    inputs: int = 0  # of a matrix: leading axes of a piece that a product contracts
    table: bool = False  # an embedding: stored as it is; what is neither is a vector, stored with its axes flattened

    def shape(self, piece: tuple[int, ...]) -> tuple[int, ...]:
        """The published shape of a piece, [out, in] for a matrix."""
        if self.table:
            return piece
        if not self.inputs:
            return (math.prod(piece),)
        return (math.prod(piece[self.inputs :]), math.prod(piece[: self.inputs]))


def sources(config: ModelConfig, state: nnx.State) -> dict[Path, Source | None]:
    """The source of every parameter in `state`; None for one that this architecture does not store (it is zero)."""
    layers, dense = config.num_hidden_layers, config.first_k_dense_replace

    def one(path: Path) -> Source | None:
        if path[0] == "dense_layers":
            return block(path[1:], range(dense), moe=False)
        if path[0] == "moe_layers":
            return block(path[1:], range(dense, layers), moe=True)
        if path[0] != "mtp":
            name = ".".join(map(str, path))
            return Source(np.array(_TOP[name], object), int(name == "lm_head"), name == "embed.weight")
        if path[2] == "block":
            whole = block(path[3:], range(layers + path[1], layers + path[1] + 1), config.num_moe_layers > 0)
            return whole and Source(np.asarray(whole.names[0]), whole.inputs)
        name = ".".join(path[2:])
        return Source(np.array(f"model.layers.{layers + path[1]}.{_MTP[name]}", object), int(name == "eh_proj"))

    def block(path: Path, numbers: range, moe: bool) -> Source | None:
        name = ".".join(map(str, path))
        if config.scoring_func == "softmax" and name.endswith("e_score_correction_bias"):
            return None
        vector = name.endswith((".weight", "_bias")) and name != "mlp.router.weight"
        inputs = 0 if vector else 2 if name == "attention.o_proj" else 1
        if moe and name in _EXPERTS:
            experts = range(config.n_routed_experts)
            names = [[f"model.layers.{i}.{_EXPERTS[name].format(expert=e)}" for e in experts] for i in numbers]
        else:
            names = [f"model.layers.{i}.{_BLOCK[name]}" for i in numbers]
        return Source(np.array(names, object), inputs)

    return {path: one(path) for path, _ in nnx.to_flat_state(state)}


def copies(config: ModelConfig) -> dict[str, str]:
    """Published tensors that repeat another, by name: the prediction modules share the trunk's embedding and head."""
    head = _TOP["embed.weight" if config.tie_word_embeddings else "lm_head"]
    out = {_TOP["lm_head"]: head} if config.tie_word_embeddings else {}
    for k in range(config.num_nextn_predict_layers):
        prefix = f"model.layers.{config.num_hidden_layers + k}"
        out |= {f"{prefix}.embed_tokens.weight": _TOP["embed.weight"], f"{prefix}.shared_head.head.weight": head}
    return out
