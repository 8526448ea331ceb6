"""Makes the stored checkpoints and numbers of `tests/test_checkpoints_hf_goldens.py`, by Hugging Face transformers.

    pip install -e '.[test,parity]'
    python tests/goldens/make.py            # or some of the names in CONFIGS

Rewrites tests/goldens/<name>/: a random float32 checkpoint in the published layout, and `expected.npz` with what
transformers computes from it. `tests/test_checkpoints_hf_parity.py` draws its live checkpoints here too.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.modeling_layers import MtpModel

HERE = Path(__file__).parent
LENGTH = 160
# Below and past the original lengths (32 and 64) of the scaled rotary positions.
POSITIONS = np.array([0, 1, 2, 7, 15, 30, 31, 32, 33, 47, 63, 64, 65, 80, 99, 127, 128, 140, 156, 157])
PROMPTS, LONGEST_PROMPT, COMPLETION = 16, 24, 64
ENTRIES = 16  # of each parameter's gradient, next to its norm

# Neither `rope_theta` nor `rms_norm_eps` is what a reader might fall back to, and both are seen in the logits.
_SMALL = dict(
    vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=1280,
    rms_norm_eps=1e-3,
)  # fmt: skip
_DEEPSEEK = _SMALL | dict(
    intermediate_size=48, num_key_value_heads=4, kv_lora_rank=24, qk_nope_head_dim=12, qk_rope_head_dim=16,
    v_head_dim=10, n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=12, routed_scaling_factor=2.5,
    bos_token_id=0, eos_token_id=1,
)  # fmt: skip
_GQA = _SMALL | dict(intermediate_size=40, num_key_value_heads=2)


def _rope(theta: float, **scaling) -> dict:
    return dict(rope_theta=theta, rope_scaling=scaling or None)


CONFIGS = {
    # Original length 32, so that YaRN's ramp covers pair 1 of 8 and the stored sequences run to five times that.
    "deepseek_v3": lambda: transformers.DeepseekV3Config(
        **_DEEPSEEK | dict(num_hidden_layers=4), first_k_dense_replace=2, q_lora_rank=20, n_shared_experts=1,
        n_group=4, topk_group=2, norm_topk_prob=True, num_nextn_predict_layers=1,
        **_rope(5000.0, type="yarn", factor=40, original_max_position_embeddings=32, beta_fast=32, beta_slow=1,
                mscale=1.0, mscale_all_dim=1.0),
    ),
    # No groups, as Moonlight.
    "deepseek_v3_no_q_lora": lambda: transformers.DeepseekV3Config(
        **_DEEPSEEK, first_k_dense_replace=1, q_lora_rank=None, n_shared_experts=2, n_group=1, topk_group=1,
        norm_topk_prob=False, num_nextn_predict_layers=0, **_rope(50_000.0),
    ),
    "qwen2": lambda: transformers.Qwen2Config(**_GQA, tie_word_embeddings=True, **_rope(1e6)),
    "qwen3": lambda: transformers.Qwen3Config(**_GQA, head_dim=12, tie_word_embeddings=False, **_rope(1e6)),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **_GQA, head_dim=12, num_experts=8, num_experts_per_tok=3, moe_intermediate_size=12, norm_topk_prob=True,
        tie_word_embeddings=False, **_rope(1e6),
    ),
    # Original length 64: pairs 0 and 1 of 8 keep their frequency, pair 2 is smoothed, the others are slowed.
    "llama3": lambda: transformers.LlamaConfig(
        **_GQA, head_dim=16, tie_word_embeddings=False,
        **_rope(500.0, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                original_max_position_embeddings=64),
    ),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------- the reference


class Reference:
    """transformers' model of one checkpoint, with its multi-token prediction module if it has one. float32, on CPU."""

    def __init__(self, main: transformers.PreTrainedModel, mtp: MtpModel | None):
        torch.use_deterministic_algorithms(True)
        torch.set_num_threads(1)  # the same bits on any number of cores
        self.main, self.mtp = main.eval(), mtp and mtp.eval()
        self.config = main.config

    @classmethod
    def load(cls, path: Path) -> Reference:
        """From a checkpoint.

        Raises:
          AssertionError: keys are missing, or unexpected other than the prediction module's.
        """
        main, info = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager",
            output_loading_info=True,
        )  # fmt: skip
        module = f"model.layers.{main.config.num_hidden_layers}."
        assert not info["missing_keys"] and not info["mismatched_keys"], info
        assert all(k.startswith(module) for k in info["unexpected_keys"]), info["unexpected_keys"]
        return cls(main, _mtp(main, lambda: MtpModel.from_pretrained(main)))

    def hidden_states(self, tokens: np.ndarray) -> list[np.ndarray]:
        """States [B, T, D] after the embedding, after each layer, and after the final norm."""
        seen = []
        hooks = [
            m.register_forward_hook(lambda *args: seen.append(args[-1].detach().numpy()))
            for m in (self.main.model.embed_tokens, *self.main.model.layers, self.main.model.norm)
        ]
        with torch.no_grad():
            self.main.model(torch.tensor(tokens).long())
        for hook in hooks:
            hook.remove()
        return seen

    def _outputs(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        hidden = self.main.model(tokens).last_hidden_state  # after the final norm
        logits, ahead = self.main.lm_head(hidden), None
        if self.mtp is not None:
            # transformers gives the module the position of the token it embeds, i + 1; attention sees differences only.
            positions = torch.arange(1, tokens.shape[1])[None]
            ahead = self.mtp.shared_head(self.mtp.forward_layer(0, hidden[:, :-1], positions, None, tokens[:, 1:]))
        return logits, ahead

    def logits(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """(logits [B, T, V], the prediction module's [B, T - 1, V])."""
        with torch.no_grad():
            logits, ahead = self._outputs(torch.tensor(tokens).long())
        return logits.numpy(), None if ahead is None else ahead.numpy()

    def gradients(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """By published name: of the mean loss of the next token, plus that of the one after by the module."""
        tokens = torch.tensor(tokens).long()
        self.main.zero_grad()
        if self.mtp is not None:
            self.mtp.zero_grad()
        logits, ahead = self._outputs(tokens)
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        if ahead is not None:
            loss = loss + cross_entropy(ahead[:, :-1].flatten(0, 1), tokens[:, 2:].flatten())
        loss.backward()
        return dict(self._published({k: p.grad for k, p in self._tensors().items() if p.grad is not None}))

    def greedy(self, prompts: np.ndarray, lengths: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens [P, steps], smallest margin of each row's argmax over its largest logit), no token ending a row.

        `prompts` [P, S] are right-padded; transformers wants them padded on the left.
        """
        rows = np.zeros_like(prompts)
        mask = np.arange(prompts.shape[1])[None] >= prompts.shape[1] - lengths[:, None]
        rows[mask] = np.concatenate([p[:n] for p, n in zip(prompts, lengths, strict=True)])
        self.main.generation_config.eos_token_id = None
        out = self.main.generate(
            torch.tensor(rows).long(), attention_mask=torch.tensor(mask).long(), max_new_tokens=steps, do_sample=False,
            pad_token_id=0, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        best = torch.stack(out.logits, dim=1).topk(2).values
        margins = ((best[..., 0] - best[..., 1]) / torch.stack(out.logits, dim=1).abs().amax(-1)).amin(1)
        return out.sequences[:, prompts.shape[1] :].numpy().astype(np.int32), margins.numpy()

    def routing(self, tokens: np.ndarray) -> list[np.ndarray]:
        """Each MoE layer's router logits [B * T, E]."""
        with torch.no_grad():
            out = self.main.model(torch.tensor(tokens).long(), output_router_logits=True)
        return [r.reshape(-1, r.shape[-1]).numpy() for r in out.router_logits]

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Parameters and correction biases; the module's, its copies of the trunk's among them, as one more layer."""
        out = {}
        for model, rename in ((self.main, str), (self.mtp, self._module_name)):
            if model is not None:
                biases = [(k, v) for k, v in model.named_buffers() if "correction_bias" in k]
                out |= {rename(k): v for k, v in [*model.named_parameters(), *biases]}
        return out

    def _module_name(self, name: str) -> str:
        prefix = f"model.layers.{self.config.num_hidden_layers}."
        for own, published in (
            ("layers.0.mtp_block.", ""), ("layers.0.post_norm.", "shared_head.norm."), ("layers.0.", ""),
            ("shared_head.", "shared_head.head."), ("", ""),
        ):  # fmt: skip
            if name.startswith(own):
                return prefix + published + name[len(own) :]
        raise AssertionError(name)

    def _published(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, np.ndarray]]:
        """transformers 5 stacks the experts; published checkpoints hold them one by one."""
        for name, value in tensors.items():
            value = value.detach().numpy()
            if name.endswith("experts.gate_up_proj"):
                stem = name.removesuffix("gate_up_proj")
                for e, both in enumerate(value):
                    for part, half in zip(("gate_proj", "up_proj"), np.split(both, 2), strict=True):
                        yield f"{stem}{e}.{part}.weight", np.ascontiguousarray(half)
            elif name.endswith("experts.down_proj"):
                for e, one in enumerate(value):
                    yield f"{name.removesuffix('down_proj')}{e}.down_proj.weight", one
            else:
                yield name, value

    def save(self, path: Path, shards: int = 1) -> None:
        """In the published layout, whose shards cut through layers."""
        path.mkdir(parents=True, exist_ok=True)
        self.main.generation_config.save_pretrained(path)
        (path / "config.json").write_text(json.dumps(published_config(self.config), indent=2) + "\n")
        tensors = dict(self._published(self._tensors()))
        names = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
        names = names if shards > 1 else ["model.safetensors"]
        where = {k: names[i * shards // len(tensors)] for i, k in enumerate(sorted(tensors))}
        for name in names:
            save_file({k: v for k, v in tensors.items() if where[k] == name}, path / name, {"format": "pt"})
        if shards > 1:
            size = sum(v.nbytes for v in tensors.values())
            index = {"metadata": {"total_size": size}, "weight_map": where}
            (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _mtp(main: transformers.PreTrainedModel, make) -> MtpModel | None:
    """The prediction module. transformers tells its tensors by a pattern that knows DeepSeek-V3's 61 layers only."""
    if not getattr(main.config, "num_nextn_predict_layers", 0):
        return None
    main._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{main.config.num_hidden_layers}\."]
    return make()


def published_config(config: PreTrainedConfig) -> dict:
    """config.json: DeepSeek-V3's and Llama's rope in their releases' spelling, the others' in transformers 5's."""
    raw = json.loads(config.to_json_string())
    rope = raw["rope_parameters"]
    if rope.get("rope_type") != "default":
        raw.pop("rope_parameters")
        raw |= {"rope_theta": rope.pop("rope_theta"), "torch_dtype": raw.pop("dtype")}
        if "type" in rope:
            rope.pop("rope_type")
            raw |= {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1}
        raw["rope_scaling"] = rope
    return raw


def random_reference(config: PreTrainedConfig, seed: int = 0) -> Reference:
    """Weights drawn so that no feature starts at an identity that would hide it, and no routing is degenerate."""
    config.architectures = [AutoModelForCausalLM._model_mapping[type(config)].__name__]
    main = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    reference = Reference(main, _mtp(main, lambda: MtpModel(main, 1)))
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, p in reference._tensors().items():
            noise = rng.standard_normal(p.shape)
            if "correction_bias" in name:  # most biased scores negative
                noise = 0.3 * noise - 0.8
            elif "norm" in name:
                noise = 1 + 0.3 * noise
            elif name.endswith("bias"):
                noise = 0.2 * noise
            elif "head" in name:
                noise = 3 * noise / math.sqrt(p.shape[-1])
            elif name.endswith("mlp.gate.weight"):
                noise = 2 * noise / math.sqrt(p.shape[-1])
            elif "embed" in name:  # tied, a large one makes every token predict itself
                noise = noise * (0.3 if config.tie_word_embeddings else 1)
            else:
                noise = noise / math.sqrt(p.shape[-1])
            p.copy_(torch.from_numpy(noise))
    return reference


# -------------------------------------------------------------------------------------------------- the numbers


def random_tokens(shape: tuple[int, ...], seed: int, vocab: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab, shape).astype(np.int32)


def ragged_prompts(reference: Reference) -> dict[str, np.ndarray]:
    """Prompts whose 64 greedy tokens no rounding decides, and those tokens."""
    prompts = random_tokens((6 * PROMPTS, LONGEST_PROMPT), seed=2)
    lengths = np.random.default_rng(3).integers(1, LONGEST_PROMPT + 1, len(prompts)).astype(np.int32)
    lengths[0], lengths[1] = 1, LONGEST_PROMPT
    prompts[np.arange(LONGEST_PROMPT) >= lengths[:, None]] = 0
    completions, margins = reference.greedy(prompts, lengths, COMPLETION)
    varied = np.array([len(set(row)) for row in completions]) >= 8
    clear = np.flatnonzero((margins > 1e-3) & varied)[:PROMPTS]
    assert len(clear) == PROMPTS, f"{len(clear)} prompts with clear margins: draw more"
    return {"prompts": prompts[clear], "prompt_lengths": lengths[clear], "completions": completions[clear]}


def check_routing(reference: Reference, tokens: np.ndarray) -> None:
    """Every expert is used, and masking DeepSeek's left-out groups with 0 would choose others for many tokens."""
    config, state = reference.config, reference._tensors()
    moe = [k.removesuffix(".weight") for k in state if k.endswith("mlp.gate.weight")][: config.num_hidden_layers]
    for name, logits in zip(moe, reference.routing(tokens), strict=False):
        bias = state.get(f"{name}.e_score_correction_bias")
        scores = logits if bias is None else 1 / (1 + np.exp(-logits)) + bias.numpy()
        k = config.num_experts_per_tok
        if getattr(config, "n_group", 1) > 1:
            groups = scores.reshape(len(scores), config.n_group, -1)
            best = np.argsort(-np.sort(groups)[..., -2:].sum(-1))[:, : config.topk_group]
            kept = np.zeros(groups.shape[:2], bool)
            np.put_along_axis(kept, best, True, 1)
            kept = np.repeat(kept, groups.shape[-1], 1)
            scores, zero = np.where(kept, scores, -np.inf), np.where(kept, scores, 0)
            right, wrong = (np.sort(np.argsort(-s)[:, :k]) for s in (scores, zero))
            differs = (right != wrong).any(axis=-1).mean()
            assert differs > 0.3, f"{name}: a mask of 0 changes {differs:.0%} of the choices"
        load = np.bincount(np.argsort(-scores)[:, :k].ravel(), minlength=scores.shape[-1]) / len(scores)
        assert load.min() > 0.01, f"{name}: load {load.round(2)}"


def expected(reference: Reference) -> dict[str, np.ndarray]:
    """The contents of expected.npz."""
    tokens = random_tokens((2, LENGTH), seed=1)
    logits, ahead = reference.logits(tokens)
    gradients = sorted(reference.gradients(tokens).items())
    out = {"tokens": tokens, "positions": POSITIONS, "logits": logits[:, POSITIONS]}
    out |= {} if ahead is None else {"mtp_logits": ahead[:, POSITIONS]}
    at = [np.linspace(0, g.size - 1, ENTRIES).astype(int) for _, g in gradients]
    return out | ragged_prompts(reference) | {
        "gradient_names": np.array([name for name, _ in gradients]),
        "gradient_norms": np.array([np.linalg.norm(g) for _, g in gradients], np.float32),
        "gradient_entries": np.array([g.ravel()[i] for (_, g), i in zip(gradients, at, strict=True)]),
    }  # fmt: skip


def main(names: list[str]) -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in names or CONFIGS:
        drawn = random_reference(CONFIGS[name]())
        drawn.save(HERE / name, shards=3 if name.startswith("deepseek") else 1)
        # The numbers come from the files, so that what is stored is what transformers reads.
        reference = Reference.load(HERE / name)
        tokens = random_tokens((2, LENGTH), seed=1)
        np.testing.assert_array_equal(reference.logits(tokens)[0], drawn.logits(tokens)[0])
        if drawn.mtp is not None:
            np.testing.assert_array_equal(reference.logits(tokens)[1], drawn.logits(tokens)[1])
        if "moe" in name or "deepseek" in name:
            check_routing(reference, tokens)
        np.savez_compressed(HERE / name / "expected.npz", **expected(reference))
        print(name, sum(f.stat().st_size for f in (HERE / name).iterdir()) // 1000, "kB")


if __name__ == "__main__":
    main(sys.argv[1:])
