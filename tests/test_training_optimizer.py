"""Schedules, clipping, and what weight decay leaves alone."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import random_state, tiny_config, tiny_qwen2

from r1jax.configs.training import OptimizerConfig
from r1jax.training.optimizer import make_optimizer, schedule


def rates(total, **settings):
    rate = schedule(OptimizerConfig(learning_rate=2.0, **settings), total)
    return [float(rate(step)) for step in range(total + 3)]


def test_schedules():
    assert rates(4) == [2.0] * 7
    assert rates(4, warmup_steps=4) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0]  # the first step is not wasted on 0
    assert rates(4, warmup_steps=1) == [2.0] * 7
    assert rates(4, lr_scheduler_type="linear", min_lr_ratio=0.5) == pytest.approx([2, 1.75, 1.5, 1.25, 1, 1, 1])
    cosine = rates(6, lr_scheduler_type="cosine", min_lr_ratio=0.1, warmup_steps=2)
    want = [0.2 + 1.8 * (1 + math.cos(math.pi * min(i, 4) / 4)) / 2 for i in range(7)]
    assert cosine == pytest.approx([1.0, 2.0, *want], abs=1e-6)


def updates(config, params, grads, total=10):
    optimizer = make_optimizer(config, total)
    return jax.jit(lambda params, grads: optimizer.update(grads, optimizer.init(params), params)[0])(params, grads)


@pytest.mark.parametrize(
    "config", [tiny_config(num_hidden_layers=2, first_k_dense_replace=1), tiny_qwen2(qk_norm=True)]
)
def test_weight_decay_spares_norms_and_biases(config):
    params, _ = nnx.split_state(random_state(config), nnx.Param, ...)
    zero = jax.tree.map(lambda p: np.zeros(p.shape, p.dtype), params)
    moved = updates(OptimizerConfig(learning_rate=0.5, weight_decay=0.1), params, zero)
    flat = jax.tree_util.tree_leaves_with_path(moved)
    spared = [jax.tree_util.keystr(path) for path, u in flat if not np.asarray(u).any()]
    # Vectors, stacked over layers or not, are spared; every matrix decays by lr x weight_decay.
    for (path, update), (_, param) in zip(flat, jax.tree_util.tree_leaves_with_path(params), strict=True):
        name = jax.tree_util.keystr(path)
        if name not in spared:
            np.testing.assert_allclose(update, -0.05 * param, rtol=1e-5)
        layer_dims = int("layers" in name)
        vector = param.ndim - layer_dims - ("proj']['bias" in name and param.ndim > 2) < 2
        assert (name in spared) == (vector or "bias" in name), name
    assert spared and len(spared) < len(flat)


def test_gradients_are_clipped_by_their_global_norm():
    params = {"a": jnp.zeros(4), "b": jnp.zeros((2, 2))}
    grads = {"a": jnp.full(4, 30.0), "b": jnp.full((2, 2), 40.0)}  # norm 100
    config = OptimizerConfig(learning_rate=1.0, weight_decay=0.0, adam_beta1=0.0, adam_beta2=0.0, adam_epsilon=1.0)
    small = jax.tree.map(lambda g: g / 100, grads)
    # With both betas 0, AdamW's step is -g / (|g| + 1): it tells the size of the gradient that it was given.
    for given in (grads, small):
        got = updates(config, params, given)
        np.testing.assert_allclose(got["a"], -0.3 / 1.3, rtol=1e-5)
        np.testing.assert_allclose(got["b"], -0.4 / 1.4, rtol=1e-5)
    tenth = updates(config, params, jax.tree.map(lambda g: g / 1000, grads))
    np.testing.assert_allclose(tenth["a"], -0.03 / 1.03, rtol=1e-5)


def test_a_schedule_counts_training_steps_and_not_optimizer_steps():
    """A rollout split into minibatches, or read more than once, takes several optimizer steps at one rate."""
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=2, weight_decay=0.0, adam_epsilon=1e-30)
    optimizer = make_optimizer(config, total_steps=4, updates_per_step=3)
    params = {"w": jnp.zeros((2, 2))}
    state, sizes = optimizer.init(params), []
    for _ in range(9):
        got, state = optimizer.update({"w": jnp.ones((2, 2))}, state, params)
        sizes.append(-float(got["w"][0, 0]))
    assert sizes == pytest.approx([0.5] * 3 + [1.0] * 6, rel=1e-4)
