"""Settings of optimisation, sampling and GRPO: what cannot work is refused by name, and the edge of what can is not."""

import pytest

from r1jax.configs.training import GRPOConfig, OptimizerConfig, SamplingConfig, SupervisedLossConfig
from r1jax.errors import ConfigError


@pytest.mark.parametrize(
    "config, field, refused, allowed",
    [
        (OptimizerConfig, "learning_rate", [0.0, -1.0], [1e-9]),
        (OptimizerConfig, "warmup_steps", [-1], [0]),
        (OptimizerConfig, "min_lr_ratio", [-0.1, 1.1], [0.0, 1.0]),
        (OptimizerConfig, "adam_beta1", [-0.1, 1.0], [0.0]),
        (OptimizerConfig, "adam_beta2", [-0.1, 1.0], [0.0]),
        (OptimizerConfig, "weight_decay", [-0.1], [0.0]),
        (OptimizerConfig, "max_grad_norm", [0.0], [1e-9]),
        (SamplingConfig, "temperature", [-0.1], [0.0]),
        (SamplingConfig, "top_p", [0.0, 1.1], [1e-9, 1.0]),
        (SamplingConfig, "top_k", [-1], [0]),
        (SamplingConfig, "num_generations", [0], [1]),
        (SamplingConfig, "max_completion_length", [0], [1]),
        (GRPOConfig, "num_prompts", [0], [1]),
        (GRPOConfig, "num_generations", [1], [2]),
        (GRPOConfig, "num_minibatches", [0], [512]),
        (GRPOConfig, "num_microbatches", [0], [512]),
        (GRPOConfig, "num_iterations", [0], [1]),
        (GRPOConfig, "beta", [-0.1], [0.0]),
        (GRPOConfig, "epsilon", [0.0], [1e-9]),
        (GRPOConfig, "epsilon_high", [0.0, -0.1], [1e-9, None]),
        (GRPOConfig, "ref_model_sync_steps", [-1], [0]),
        (GRPOConfig, "temperature", [-0.1], [0.0]),
        (GRPOConfig, "top_p", [0.0], [1.0]),
        (GRPOConfig, "top_k", [-1], [0]),
        (GRPOConfig, "max_completion_length", [0], [1]),
        (SupervisedLossConfig, "mtp_loss_weight", [-0.1], [0.0]),
        (SupervisedLossConfig, "balance_loss_weight", [-0.1], [0.0]),
        (SupervisedLossConfig, "bias_update_rate", [-0.1], [0.0]),
    ],
)
def test_a_value_that_cannot_work_is_named(config, field, refused, allowed):
    for value in refused:
        with pytest.raises(ConfigError, match=rf"^{field}={value}: must"):
            config(**{field: value})
    for value in allowed:
        assert getattr(config(**{field: value}), field) == value


def test_parts_divide_the_batch_together():
    """Each divides 8 x 4, and their product does not."""
    parts = dict(num_prompts=8, num_generations=4, num_minibatches=8)
    assert GRPOConfig(**parts, num_microbatches=4).batch_size == 32
    with pytest.raises(ConfigError, match=r"num_minibatches x num_microbatches=64: must divide .* = 32"):
        GRPOConfig(**parts, num_microbatches=8)


def test_the_upper_clip_is_the_lower_one_unless_given():
    assert GRPOConfig(epsilon=0.2).upper_epsilon == 0.2
    assert GRPOConfig(epsilon=0.2, epsilon_high=0.28).upper_epsilon == 0.28


def test_sampling_shares_its_settings():
    config = GRPOConfig(temperature=0.7, top_p=0.8, top_k=9, num_generations=3, max_completion_length=5)
    assert config.sampling == SamplingConfig(0.7, 0.8, 9, 3, 5)
