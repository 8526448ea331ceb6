"""DeepSeek-V3, Qwen2 and Llama 3 in float64 NumPy, one token and one expert at a time.

Written from the papers (arXiv 2405.04434, 2412.19437, 2309.00071) and from deepseek-ai/DeepSeek-V3's
`inference/model.py`, to be read against them and not against `r1jax.models`. It shares nothing with the models but the
names of the parameters and of the configuration's fields.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from r1jax.configs.model import ModelConfig


class Output(NamedTuple):
    logits: np.ndarray  # [B, T, V]
    mtp_logits: np.ndarray | None  # [B, T - 1, V]
    experts: list  # [MoE layer][sequence][position] -> the set of experts chosen


def norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def swiglu(x: np.ndarray, p: dict) -> np.ndarray:
    return (silu(x @ p["gate_proj"]) * (x @ p["up_proj"])) @ p["down_proj"]


def mscale(factor: float, multiplier: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1


def yarn_range(dim: int, base: float, length: int, fast: float, slow: float) -> tuple[int, int]:
    def dimension(rotations):
        return dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(base))

    return max(math.floor(dimension(fast)), 0), min(math.ceil(dimension(slow)), dim - 1)


def frequencies(c: ModelConfig) -> list[float]:
    dim = c.qk_rope_head_dim if c.attention == "mla" else c.head_dim
    out = []
    for pair in range(dim // 2):
        f = 1 / c.rope_theta ** (2 * pair / dim)
        s = c.rope_scaling
        if s is not None and s.type == "yarn" and c.max_position_embeddings > s.original_max_position_embeddings:
            low, high = yarn_range(dim, c.rope_theta, s.original_max_position_embeddings, s.beta_fast, s.beta_slow)
            ramp = (pair - low) / (high - low if high != low else 0.001)
            smooth = 1 - min(max(ramp, 0), 1)
            f = f / s.factor * (1 - smooth) + f * smooth
        elif s is not None and s.type == "llama3":
            # transformers' modeling_rope_utils, as Meta's `apply_scaling` has it
            wavelength = 2 * math.pi / f
            if wavelength > s.original_max_position_embeddings / s.low_freq_factor:
                f = f / s.factor
            elif wavelength >= s.original_max_position_embeddings / s.high_freq_factor:
                ratio = s.original_max_position_embeddings / wavelength
                smooth = (ratio - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
                f = (1 - smooth) * f / s.factor + smooth * f
        out.append(f)
    return out


def rope_amplitude(c: ModelConfig) -> float:
    """DeepSeek's published modeling_deepseek.py scales cos and sin by this ratio: 1 in every released model."""
    s = c.rope_scaling
    if s is None or s.type != "yarn" or c.max_position_embeddings <= s.original_max_position_embeddings:
        return 1.0
    return mscale(s.factor, s.mscale) / mscale(s.factor, s.mscale_all_dim)


def rotate_interleaved(x: np.ndarray, position: int, c: ModelConfig) -> np.ndarray:
    """One vector [dim]: (x0, x1), (x2, x3) ... as complex numbers."""
    y = np.empty_like(x)
    for pair, f in enumerate(frequencies(c)):
        z = complex(x[2 * pair], x[2 * pair + 1]) * np.exp(1j * position * f) * rope_amplitude(c)
        y[2 * pair], y[2 * pair + 1] = z.real, z.imag
    return y


def rotate_halves(x: np.ndarray, position: int, c: ModelConfig) -> np.ndarray:
    """One vector [dim]: (x0, x_dim/2), (x1, x_dim/2+1) ..."""
    y, half = np.empty_like(x), len(x) // 2
    for pair, f in enumerate(frequencies(c)):
        z = complex(x[pair], x[pair + half]) * np.exp(1j * position * f) * rope_amplitude(c)
        y[pair], y[pair + half] = z.real, z.imag
    return y


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, segments: np.ndarray) -> np.ndarray:
    """One head of one sequence: [T, K], [T, K], [T, V] -> [T, V]."""
    out = np.zeros((len(q), v.shape[-1]))
    for t in range(len(q)):
        seen = [s for s in range(t + 1) if segments[s] == segments[t]]
        scores = np.array([q[t] @ k[s] * scale for s in seen])
        weights = np.exp(scores - scores.max())
        out[t] = weights / weights.sum() @ v[seen]
    return out


def mla(x: np.ndarray, p: dict, c: ModelConfig, positions: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Plain form: keys and values of every head are formed from the latent. One sequence [T, D]."""
    nope, rank = c.qk_nope_head_dim, c.kv_lora_rank
    eps = 1e-6  # of the latent norms, whatever the configuration says: inference/model.py leaves them the default
    if c.q_lora_rank is None:
        q = np.einsum("td,dhk->thk", x, p["q_proj"])
    else:
        q = np.einsum("tr,rhk->thk", norm(x @ p["q_a_proj"], p["q_a_norm"]["weight"], eps), p["q_b_proj"])
    compressed = x @ p["kv_a_proj"]
    latent = norm(compressed[:, :rank], p["kv_a_norm"]["weight"], eps)
    key_rope = np.array([rotate_interleaved(compressed[t, rank:], n, c) for t, n in enumerate(positions)])
    scale = 1 / math.sqrt(nope + c.qk_rope_head_dim)
    s = c.rope_scaling
    if s is not None and s.type == "yarn" and c.max_position_embeddings > s.original_max_position_embeddings:
        scale *= mscale(s.factor, s.mscale_all_dim) ** 2
    y = np.zeros_like(x)
    for h in range(c.num_attention_heads):
        expanded = latent @ p["kv_b_proj"][:, h]
        query_rope = np.array([rotate_interleaved(q[t, h, nope:], n, c) for t, n in enumerate(positions)])
        query = np.concatenate([q[:, h, :nope], query_rope], axis=1)
        key = np.concatenate([expanded[:, :nope], key_rope], axis=1)
        y += attend(query, key, expanded[:, nope:], scale, segments) @ p["o_proj"][h]
    return y


def gqa(x: np.ndarray, p: dict, c: ModelConfig, positions: np.ndarray, segments: np.ndarray) -> np.ndarray:
    y = np.zeros_like(x)

    def head(kind: str, h: int) -> np.ndarray:
        z = x @ p[f"{kind}_proj"][:, h]
        if c.attention_bias:
            z = z + p[f"{kind}_bias"][h]
        if kind == "v":
            return z
        if c.qk_norm:
            z = norm(z, p[f"{kind}_norm"]["weight"], c.rms_norm_eps)
        return np.array([rotate_halves(z[t], n, c) for t, n in enumerate(positions)])

    for h in range(c.num_attention_heads):
        shared = h * c.num_key_value_heads // c.num_attention_heads
        values = attend(head("q", h), head("k", shared), head("v", shared), c.head_dim**-0.5, segments)
        y += values @ p["o_proj"][h]
    return y


def route(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, c: ModelConfig) -> dict[int, float]:
    """{expert: weight} for one token [D]."""
    scores = 1 / (1 + np.exp(-(x @ weight)))
    biased = scores + bias
    size = c.n_routed_experts // c.n_group
    groups = [list(range(g * size, (g + 1) * size)) for g in range(c.n_group)]
    if c.n_group > 1:
        groups.sort(key=lambda g: sum(sorted(biased[g])[-2:]), reverse=True)
        groups = groups[: c.topk_group]
    eligible = [e for g in groups for e in g]
    chosen = sorted(eligible, key=lambda e: biased[e], reverse=True)[: c.num_experts_per_tok]
    total = sum(scores[e] for e in chosen) if c.norm_topk_prob else 1.0
    return {e: scores[e] / total * c.routed_scaling_factor for e in chosen}


def moe(x: np.ndarray, p: dict, c: ModelConfig, chosen: list) -> np.ndarray:
    """One sequence [T, D]; appends each position's experts to `chosen`."""
    y = np.zeros_like(x)
    for t in range(len(x)):
        weights = route(x[t], p["router"]["weight"], p["router"]["e_score_correction_bias"], c)
        chosen.append(set(weights))
        for e, w in weights.items():
            y[t] += w * swiglu(x[t], {k: p[k][e] for k in ("gate_proj", "up_proj", "down_proj")})
    if c.n_shared_experts:
        y += swiglu(x, p["shared"])
    return y


def block(x, p, c, positions, segments, is_moe: bool, chosen: list) -> np.ndarray:
    attention = mla if c.attention == "mla" else gqa
    x = x + attention(norm(x, p["input_norm"]["weight"], c.rms_norm_eps), p["attention"], c, positions, segments)
    h = norm(x, p["post_attention_norm"]["weight"], c.rms_norm_eps)
    return x + (moe(h, p["mlp"], c, chosen) if is_moe else swiglu(h, p["mlp"]))


def _layer(stacked: dict, i: int) -> dict:
    return {k: _layer(v, i) if isinstance(v, dict) else v[i] for k, v in stacked.items()}


def _float64(p: dict) -> dict:
    return {k: _float64(v) if isinstance(v, dict) else np.asarray(v, np.float64) for k, v in p.items()}


def forward(
    params: dict, c: ModelConfig, tokens: np.ndarray, positions: np.ndarray | None = None,
    segment_ids: np.ndarray | None = None,
) -> Output:  # fmt: skip
    p = _float64(params)
    b, t = tokens.shape
    positions = np.tile(np.arange(t), (b, 1)) if positions is None else positions
    segments = np.zeros((b, t), int) if segment_ids is None else segment_ids
    embedding = p["embed"]["weight"]
    head = embedding.T if c.tie_word_embeddings else p["lm_head"]
    logits, mtp_logits = [], []
    chosen = [[[] for _ in range(b)] for _ in range(c.num_hidden_layers - c.first_k_dense_replace)]
    for n in range(b):
        x = embedding[tokens[n]]
        for i in range(c.first_k_dense_replace):
            x = block(x, _layer(p["dense_layers"], i), c, positions[n], segments[n], False, [])
        for i, record in enumerate(chosen):
            x = block(x, _layer(p["moe_layers"], i), c, positions[n], segments[n], True, record[n])
        x = norm(x, p["norm"]["weight"], c.rms_norm_eps)
        logits.append(x @ head)
        if c.num_nextn_predict_layers:
            m = p["mtp"][0]
            following = norm(embedding[tokens[n, 1:]], m["enorm"]["weight"], c.rms_norm_eps)
            trunk = norm(x[:-1], m["hnorm"]["weight"], c.rms_norm_eps)
            y = np.concatenate([following, trunk], axis=1) @ m["eh_proj"]
            y = block(y, m["block"], c, positions[n, :-1], segments[n, :-1], len(chosen) > 0, [])
            mtp_logits.append(norm(y, m["norm"]["weight"], c.rms_norm_eps) @ head)
    return Output(np.array(logits), np.array(mtp_logits) if mtp_logits else None, chosen)
