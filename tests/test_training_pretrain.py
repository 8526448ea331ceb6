"""The pretraining update: losses of packed rows against documents taken one by one, balancing, and learning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import graphdef, random_state, tiny_config

from r1jax.configs.training import OptimizerConfig, PretrainLossConfig
from r1jax.data.packing import pack
from r1jax.models.moe import balance_bias
from r1jax.training.optimizer import make_optimizer
from r1jax.training.pretrain import PackedBatch, make_pretrain_update
from r1jax.training.state import TrainState

CONFIG = tiny_config(num_hidden_layers=2, first_k_dense_replace=1)
T = 16
LOSS = PretrainLossConfig(mtp_loss_weight=0.3, balance_loss_weight=0.01, bias_update_rate=0.02)
RNG = np.random.default_rng(0)
DOCUMENTS = [RNG.integers(1, 64, n).tolist() for n in (7, 5, 9, 2, 3, 12, 1)]  # one too short for anything


def state_of(optimizer, seed=0) -> TrainState:
    params, buffers = nnx.split_state(random_state(CONFIG, seed), nnx.Param, ...)
    return TrainState(jnp.int32(0), params, buffers, optimizer.init(params))


SGD, ADAM = optax.sgd(0.1), make_optimizer(OptimizerConfig(learning_rate=3e-3, weight_decay=0.0), 100)


@functools.cache
def program(optimizer=SGD):
    return jax.jit(make_pretrain_update(CONFIG, graphdef(CONFIG), LOSS, optimizer))


def batch_of(documents=DOCUMENTS, masks=None) -> PackedBatch:
    return PackedBatch(**pack(documents, T, rows=4, loss_masks=masks))


@functools.cache
def logits_of(document):
    """(next-token logits, second-next logits of the prediction module) of one document by itself, padded."""
    tokens = np.zeros((1, T), np.int32)
    tokens[0, : len(document)] = document

    @jax.jit
    def run(state, tokens):
        model = nnx.merge(graphdef(CONFIG), state)
        trunk = model.trunk(tokens)
        ((hidden, _),) = model.mtp_hidden(trunk.hidden, tokens)
        return model.logits(trunk.hidden), model.logits(hidden)

    if "run" not in _RUN:
        _RUN["run"] = run
    return [np.asarray(a[0], np.float64) for a in _RUN["run"](random_state(CONFIG), tokens)]


_RUN = {}


def reference(documents, masks=None):
    """(loss, mtp loss): means over all targets that have the tokens that they need before them in their document."""
    totals = {1: [], 2: []}
    for d, document in enumerate(documents):
        for shift, logits in zip((1, 2), logits_of(tuple(document)), strict=True):
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
    _, metrics = program()(state_of(SGD), batch)
    loss, mtp_loss = reference(DOCUMENTS, masks)
    assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(metrics["mtp_loss"]) == pytest.approx(mtp_loss, rel=1e-5)


def test_how_documents_share_rows_does_not_matter():
    _, here = program()(state_of(SGD), batch_of())
    _, there = program()(state_of(SGD), batch_of(DOCUMENTS[::-1]))
    for name in ("loss", "mtp_loss", "max_violation"):
        assert float(here[name]) == pytest.approx(float(there[name]), rel=1e-5)


def test_biases_move_against_the_load_of_real_tokens():
    before = state_of(SGD)
    batch = batch_of()
    after, metrics = program()(before, batch)
    real = batch.segment_ids > 0
    model = nnx.merge(graphdef(CONFIG), random_state(CONFIG))
    packed = dict(positions=batch.positions, segment_ids=batch.segment_ids, mask=real)
    trunk = model.trunk(batch.tokens, **packed)
    load = np.bincount(np.asarray(trunk.routing.experts[0])[real].reshape(-1), minlength=8)
    assert len(set(np.sign(load.mean() - load))) > 1
    bias = before.buffers["moe_layers"]["mlp"]["router"]["e_score_correction_bias"].get_value()[0]
    moved = after.buffers["moe_layers"]["mlp"]["router"]["e_score_correction_bias"].get_value()[0]
    np.testing.assert_allclose(moved - bias, 0.02 * np.sign(load.mean() - load), atol=1e-6)
    assert float(metrics["max_violation"]) == pytest.approx(load.max() / load.mean() - 1, rel=1e-5)
    ((_, mtp),) = model.mtp_hidden(trunk.hidden, batch.tokens, **packed)
    mtp_bias = [s.buffers["mtp"][0]["block"]["mlp"]["router"]["e_score_correction_bias"].get_value() for s in (before, after)]
    np.testing.assert_allclose(mtp_bias[1] - mtp_bias[0], 0.02 * np.sign(mtp.load.mean() - mtp.load), atol=1e-6)
    assert moved.dtype == jnp.float32


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
    state, history = state_of(ADAM), []
    for _ in range(40):
        state, metrics = program(ADAM)(state, batch_of())
        history.append(jax.tree.map(float, metrics))
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["mtp_loss"] < 0.7 * history[0]["mtp_loss"]
    assert int(state.step) == 40
