"""The update of pretraining and SFT: losses of packed rows against documents one by one, parts, balancing, learning."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import graphdef, random_state, tiny_config

from r1jax.configs.training import OptimizerConfig, SupervisedLossConfig
from r1jax.data.packing import pack
from r1jax.models.moe import balance_bias
from r1jax.training.optimizer import make_optimizer
from r1jax.training.state import TrainState
from r1jax.training.supervised import PackedBatch, make_supervised_update

CONFIG = tiny_config(num_hidden_layers=2, first_k_dense_replace=1)
T = 16
LOSS = SupervisedLossConfig(mtp_loss_weight=0.3, balance_loss_weight=0.01, bias_update_rate=0.02)
RNG = np.random.default_rng(0)
DOCUMENTS = [RNG.integers(1, 64, n).tolist() for n in (7, 5, 9, 2, 3, 12, 1)]  # one too short for anything


OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=3e-3, weight_decay=0.0), 100)


def state_of() -> TrainState:
    params, buffers = nnx.split_state(random_state(CONFIG), nnx.Param, ...)
    return TrainState(jnp.int32(0), params, buffers, OPTIMIZER.init(params))


program = jax.jit(make_supervised_update(CONFIG, graphdef(CONFIG), LOSS, OPTIMIZER))


def batch_of(documents=DOCUMENTS, masks=None) -> PackedBatch:
    return PackedBatch(**pack(documents, T, rows=4, loss_masks=masks))


@jax.jit
def forward(state, batch):
    """(next-token logits, the prediction module's logits, the trunk's experts, the module's load)."""
    model = nnx.merge(graphdef(CONFIG), state)
    packed = dict(positions=batch.positions, segment_ids=batch.segment_ids, mask=batch.segment_ids > 0)
    trunk = model.trunk(batch.tokens, **packed)
    ((hidden, routing),) = model.mtp_hidden(trunk.hidden, batch.tokens, **packed)
    return model.logits(trunk.hidden), model.logits(hidden), trunk.routing.experts[0], routing.load


@functools.cache
def alone():
    """For each document, in a row by itself, both heads' logits."""
    found = []
    for i in range(0, len(DOCUMENTS), 4):
        documents = [DOCUMENTS[i : i + 4][j] if j < len(DOCUMENTS) - i else [1] for j in range(4)]
        rows = [pack([document], T, rows=1) for document in documents]
        batch = PackedBatch(**{name: np.concatenate([row[name] for row in rows]) for name in rows[0]})
        found += zip(*(np.asarray(a, np.float64) for a in forward(random_state(CONFIG), batch)[:2]), strict=True)
    return found[: len(DOCUMENTS)]


def reference(masks=None):
    """(loss, mtp loss): means over all targets that have the tokens that they need before them in their document."""
    totals = {1: [], 2: []}
    for d, document in enumerate(DOCUMENTS):
        for shift, logits in zip((1, 2), alone()[d], strict=True):
            for t in range(shift, len(document)):
                if masks is None or masks[d][t]:
                    row = logits[t - shift]
                    totals[shift].append(np.log(np.exp(row - row.max()).sum()) + row.max() - row[document[t]])
    return np.mean(totals[1]), np.mean(totals[2])


@pytest.mark.parametrize("masked", [False, True])
def test_losses_of_packed_rows_are_those_of_single_documents(masked):
    """No prediction across the border of two documents, by either head, and no attention either."""
    masks = [[t >= len(d) // 2 for t in range(len(d))] for d in DOCUMENTS] if masked else None
    batch = batch_of(masks=masks)
    assert batch.segment_ids.max() > 1  # rows do hold several documents
    _, metrics = program(state_of(), batch)
    loss, mtp_loss = reference(masks)
    assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(metrics["mtp_loss"]) == pytest.approx(mtp_loss, rel=1e-5)


def test_how_documents_share_rows_does_not_matter():
    _, here = program(state_of(), batch_of())
    _, there = program(state_of(), batch_of(DOCUMENTS[::-1]))
    for name in ("loss", "mtp_loss", "max_violation"):
        assert float(here[name]) == pytest.approx(float(there[name]), rel=1e-5)


@pytest.mark.parametrize("count", [2, 4])
def test_microbatches_change_nothing_but_rounding(count):
    """Rows hold 2 to 14 targets: a mean over each part, or over each row, would be another loss."""
    masks = [[t >= len(d) - 1 - i for t in range(len(d))] for i, d in enumerate(DOCUMENTS)]
    batch = batch_of(masks=masks)
    assert len(set(np.asarray(batch.loss_mask).sum(axis=1).tolist())) > 2
    parts = make_supervised_update(CONFIG, graphdef(CONFIG), LOSS, OPTIMIZER, num_microbatches=count)
    whole, metrics = program(state_of(), batch)
    other, other_metrics = jax.jit(parts)(state_of(), batch)
    assert jax.tree.map(float, other_metrics) == pytest.approx(jax.tree.map(float, metrics), rel=1e-5)
    # Adam's first step is the gradient's sign: what tells gradients apart is its first moment.
    for a, b in zip(jax.tree.leaves(other.opt_state), jax.tree.leaves(whole.opt_state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7)
    for a, b in zip(jax.tree.leaves(other.buffers), jax.tree.leaves(whole.buffers), strict=True):
        np.testing.assert_array_equal(a, b)


def test_biases_move_against_the_load_of_real_tokens():
    before = state_of()
    batch = batch_of()
    after, metrics = program(before, batch)
    real = batch.segment_ids > 0
    _, _, experts, mtp_load = forward(random_state(CONFIG), batch)
    load = np.bincount(np.asarray(experts)[real].reshape(-1), minlength=8)
    assert len(set(np.sign(load.mean() - load))) > 1
    bias = before.buffers["moe_layers"]["mlp"]["router"]["e_score_correction_bias"].get_value()[0]
    moved = after.buffers["moe_layers"]["mlp"]["router"]["e_score_correction_bias"].get_value()[0]
    np.testing.assert_allclose(moved - bias, 0.02 * np.sign(load.mean() - load), atol=1e-6)
    assert float(metrics["max_violation"]) == pytest.approx(load.max() / load.mean() - 1, rel=1e-5)
    mtp_bias = [
        s.buffers["mtp"][0]["block"]["mlp"]["router"]["e_score_correction_bias"].get_value() for s in (before, after)
    ]
    np.testing.assert_allclose(mtp_bias[1] - mtp_bias[0], 0.02 * np.sign(mtp_load.mean() - mtp_load), atol=1e-6)
    assert moved.dtype == jnp.float32


def test_a_prediction_module_without_weight_stays_as_it_is():
    update = make_supervised_update(CONFIG, graphdef(CONFIG), dataclasses.replace(LOSS, mtp_loss_weight=0.0), OPTIMIZER)
    before = state_of()
    after, metrics = jax.jit(update)(before, batch_of())
    assert "mtp_loss" not in metrics or not metrics["mtp_loss"]
    for a, b in zip(*(jax.tree.leaves(nnx.to_pure_dict(s.model_state)["mtp"]) for s in (before, after)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_balancing_evens_the_load_out():
    bias, load = jnp.zeros((1, 4)), None
    scores = jnp.array([0.9, 0.8, 0.3, 0.1]) + 0.3 * jax.random.normal(jax.random.key(0), (400, 4))
    for _ in range(200):
        chosen = jax.lax.top_k(scores + bias[0], 2)[1]
        load = jnp.bincount(chosen.reshape(-1), length=4)[None].astype(jnp.float32)
        bias = balance_bias(bias, load, 0.01)
    assert float(load.max() / load.mean()) < 1.15  # from 1.9


def test_the_update_learns():
    """Both losses of one repeated batch fall."""
    state, history = state_of(), []
    for _ in range(40):
        state, metrics = program(state, batch_of())
        history.append(jax.tree.map(float, metrics))
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["mtp_loss"] < 0.7 * history[0]["mtp_loss"]
    assert int(state.step) == 40
