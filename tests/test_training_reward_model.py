"""The reward model's update: what it computes, in parts and on meshes, and that it learns what is preferred."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import make_layout, random_state, tiny_config, tiny_qwen2

from r1jax.configs.training import OptimizerConfig
from r1jax.data.preferences import PreferenceBatches, PreferenceExample
from r1jax.models.scalar import ScalarModel, initial_score, scalar_state
from r1jax.sharding import use
from r1jax.training.optimizer import make_optimizer
from r1jax.training.reward_model import (
    held_out_margins,
    make_reward_model_update,
    make_scores,
    preference_batch,
)
from r1jax.training.state import TrainState, model_graph, state_shardings

MLA = tiny_config(num_hidden_layers=2, first_k_dense_replace=1)
GQA = tiny_qwen2(num_hidden_layers=1, first_k_dense_replace=1)
LIKED, DISLIKED = 7, 11
ONE = make_layout({"data": 1})


def examples(kind, count, seed=0):
    """Random sequences; the good ones hold one token somewhere and the bad ones another. Nothing else tells them."""
    rng = np.random.default_rng(seed)

    def sequence(good):
        ids = rng.integers(20, 60, rng.integers(3, 15)).tolist()
        ids[int(rng.integers(len(ids)))] = LIKED if good else DISLIKED
        return ids

    if kind == "pairs":
        return [PreferenceExample((sequence(True), sequence(False)), 0.0) for _ in range(count)]
    labels = rng.integers(0, 2, count)
    return [PreferenceExample((sequence(label),), float(label)) for label in labels]


OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=1e-2, weight_decay=0.0), 100)


@functools.cache
def state_of(config, layout=ONE):
    whole = scalar_state(config, random_state(config), initial_score(config, jax.random.key(1)))
    params, buffers = nnx.split_state(whole, nnx.Param, ...)
    state = TrainState(jnp.int32(0), params, buffers, OPTIMIZER.init(params))
    return jax.device_put(state, state_shardings(state, layout))


@functools.cache
def program(config, kind, parts=1, layout=ONE):
    update = make_reward_model_update(model_graph(config, ScalarModel), kind, OPTIMIZER, parts)

    @jax.jit
    def under_layout(state, batch):
        with use(layout):
            return update(state, batch)

    return under_layout


@functools.cache
def one_step(config, kind, parts=1, layout=ONE):
    batch = PreferenceBatches(examples(kind, 6), rows=8, epochs=1, seed=0)[0]  # two rows only fill it up
    return program(config, kind, parts, layout)(state_of(config, layout), preference_batch(batch, layout))


def moments(state):
    """Adam's first step is the gradient's sign: what tells gradients apart is the first moment."""
    return jax.tree.leaves(state.opt_state[1][0].mu)


def test_the_loss_is_that_of_the_examples_one_by_one():
    from r1jax.losses.preference import bradley_terry_loss

    _, metrics = one_step(GQA, "pairs")
    model = nnx.merge(model_graph(GQA, ScalarModel), state_of(GQA).model_state)
    score = jax.jit(lambda tokens, lengths: model(tokens, lengths))
    rows = []
    for example in examples("pairs", 6):
        tokens = np.zeros((2, 16), np.int32)
        for i, ids in enumerate(example.sequences):
            tokens[i, : len(ids)] = ids
        rows.append(score(tokens, np.array([len(ids) for ids in example.sequences], np.int32)))
    loss, expected = bradley_terry_loss(*np.array(rows).T)
    expected |= {"loss": loss}
    assert float(metrics["num_tokens"]) == sum(len(ids) for e in examples("pairs", 6) for ids in e.sequences)
    for name, value in expected.items():
        assert float(metrics[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize(
    ("kind", "parts", "mesh"),
    [("pairs", 4, None), ("pointwise", 2, None), ("pairs", 1, {"fsdp": 2, "expert": 2, "tensor": 2})],
    ids=str,
)
def test_microbatches_and_meshes_change_nothing_but_rounding(kind, parts, mesh):
    """A batch of 6 examples and 2 that fill it up: a mean over each part would weigh their examples differently."""
    config = MLA if mesh else GQA
    whole, metrics = one_step(config, kind)
    other, other_metrics = one_step(config, kind, parts, make_layout(mesh) if mesh else ONE)
    assert jax.tree.map(float, other_metrics) == pytest.approx(jax.tree.map(float, metrics), rel=1e-4, abs=1e-5)
    for a, b in zip(moments(other), moments(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_balance_biases_are_frozen():
    before = state_of(MLA)
    after, _ = one_step(MLA, "pairs")
    assert jax.tree.leaves(before.buffers)
    for a, b in zip(jax.tree.leaves(after.buffers), jax.tree.leaves(before.buffers), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(after.step) == 1


@pytest.mark.parametrize("kind", ["pairs", "pointwise"])
def test_it_learns_what_is_preferred_and_tells_it_where_it_was_not_shown(kind):
    update, state = program(GQA, kind), state_of(GQA)
    batches = PreferenceBatches(examples(kind, 64), rows=8, epochs=4, seed=0)
    for step in range(len(batches)):
        state, metrics = update(state, preference_batch(batches[step], ONE))
    held_out = PreferenceBatches(examples(kind, 64, seed=1), rows=64, epochs=1, seed=0)[0]
    scores = jax.jit(make_scores(model_graph(GQA, ScalarModel)))(state.model_state, preference_batch(held_out, ONE))
    margins = held_out_margins(scores, held_out["targets"], kind)
    assert margins.shape == (64,)
    assert (margins > 0).mean() > 0.9
    assert float(metrics["accuracy"]) > 0.8


def test_margins():
    np.testing.assert_array_equal(held_out_margins(np.array([[3, 1], [0, 2]]), np.zeros(2), "pairs"), [2, -2])
    np.testing.assert_array_equal(
        held_out_margins(np.array([[3], [3], [-1]]), np.array([1, 0, 0]), "pointwise"), [3, -3, 1]
    )
