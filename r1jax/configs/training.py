"""Settings of the mesh, optimisation, sampling and GRPO. Names are TRL's where TRL has one."""

from __future__ import annotations

import dataclasses
from typing import Literal

from r1jax.errors import check_field


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices on each axis of the mesh; one may be -1: all that are left."""

    data: int = -1
    fsdp: int = 1
    expert: int = 1
    tensor: int = 1
    context: int = 1


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with clipping and a schedule."""

    learning_rate: float = 3e-6
    warmup_steps: int = 0
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"
    min_lr_ratio: float = 0.0
    """Where linear and cosine schedules end, as a share of the learning rate."""
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_epsilon: float = 1e-8
    weight_decay: float = 0.1
    """On matrices only: never on norms, biases or the routers' correction bias."""
    max_grad_norm: float = 1.0
    momentum_dtype: str = "float32"
    """Of Adam's first moment."""

    def __post_init__(self):
        c = check_field
        c(self.learning_rate > 0, "learning_rate", self.learning_rate, "must be positive")
        c(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "must not be negative")
        c(0 <= self.min_lr_ratio <= 1, "min_lr_ratio", self.min_lr_ratio, "must lie in 0..1")
        c(0 <= self.adam_beta1 < 1, "adam_beta1", self.adam_beta1, "must lie in [0, 1)")
        c(0 <= self.adam_beta2 < 1, "adam_beta2", self.adam_beta2, "must lie in [0, 1)")
        c(self.weight_decay >= 0, "weight_decay", self.weight_decay, "must not be negative")
        c(self.max_grad_norm > 0, "max_grad_norm", self.max_grad_norm, "must be positive")


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How completions are drawn."""

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps all."""
    num_generations: int = 16
    """Completions per prompt: the group."""
    max_completion_length: int = 64
    """Tokens, the stop token included."""

    def __post_init__(self):
        c = check_field
        c(self.temperature >= 0, "temperature", self.temperature, "must not be negative; 0 is greedy")
        c(0 < self.top_p <= 1, "top_p", self.top_p, "must lie in (0, 1]; 1 keeps all")
        c(self.top_k >= 0, "top_k", self.top_k, "must not be negative; 0 keeps all")
        c(self.num_generations >= 1, "num_generations", self.num_generations, "must be at least 1")
        c(self.max_completion_length >= 1, "max_completion_length", self.max_completion_length, "must be at least 1")


@dataclasses.dataclass(frozen=True)
class GRPOConfig:
    """The GRPO update. Defaults are DeepSeek-R1-Zero's (arXiv 2501.12948 v2) where the paper gives one."""

    num_prompts: int = 32
    """Questions per step."""
    num_generations: int = 16
    """Completions per question: the group."""
    max_completion_length: int = 32_768
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    beta: float = 0.001
    """Weight of the KL term; 0 leaves the reference model out altogether."""
    epsilon: float = 10.0
    """The ratio is clipped below at 1 - epsilon (R1's 10 clips only from above) ..."""
    epsilon_high: float | None = None
    """... and above at 1 + epsilon_high; None: epsilon."""
    loss_type: Literal["grpo", "dapo", "dr_grpo"] = "grpo"
    """grpo: mean over each sequence, then over sequences; dapo: mean over tokens; dr_grpo: a constant normaliser."""
    scale_rewards: bool = True
    """Divide advantages by the group's standard deviation."""
    mask_truncated_completions: bool = False
    """Leave completions that reached no stop token out of the loss and of its denominators."""
    drop_zero_variance_groups: bool = False
    """Leave groups whose rewards are all equal out of the loss and of its denominators."""
    num_minibatches: int = 1
    """Optimizer steps that a rollout is split into, at random (R1: 16)."""
    num_iterations: int = 1
    """Passes over a rollout."""
    num_microbatches: int = 1
    """Parts whose gradients are accumulated before each optimizer step."""
    ref_model_sync_steps: int = 400
    """The reference becomes the policy every this many steps; 0: never."""
    replay_experts: bool = False
    """Learn with the experts that the sampler chose instead of routing anew."""

    def __post_init__(self):
        c = check_field
        for name in ("num_prompts", "num_minibatches", "num_iterations", "num_microbatches"):
            c(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        has_baseline = self.num_generations >= 2
        c(has_baseline, "num_generations", self.num_generations, "must be at least 2: one alone has no baseline")
        c(self.beta >= 0, "beta", self.beta, "must not be negative")
        c(self.epsilon > 0, "epsilon", self.epsilon, "must be positive")
        c(self.upper_epsilon > 0, "epsilon_high", self.epsilon_high, "must be positive")
        c(self.ref_model_sync_steps >= 0, "ref_model_sync_steps", self.ref_model_sync_steps, "must not be negative")
        parts = self.num_minibatches * self.num_microbatches
        c(
            self.batch_size % parts == 0,
            "num_minibatches x num_microbatches",
            parts,
            f"must divide num_prompts x num_generations = {self.batch_size}",
        )
        self.sampling  # noqa: B018 - validates the fields that it shares

    @property
    def upper_epsilon(self) -> float:
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    @property
    def batch_size(self) -> int:
        """Completions per step."""
        return self.num_prompts * self.num_generations

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(
            self.temperature, self.top_p, self.top_k, self.num_generations, self.max_completion_length
        )


@dataclasses.dataclass(frozen=True)
class SupervisedLossConfig:
    """Weights of the pretraining loss; defaults are DeepSeek-V3's (section 4.2)."""

    mtp_loss_weight: float = 0.3
    balance_loss_weight: float = 1e-4
    bias_update_rate: float = 1e-3

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            check_field(value >= 0, field.name, value, "must not be negative")
