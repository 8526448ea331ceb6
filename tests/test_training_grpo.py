"""The GRPO update: its first ratio is 1, splitting it changes nothing but rounding, meshes give one device's result."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import (
    graphdef,
    lay_out_batch,
    make_layout,
    random_state,
    random_tokens,
    shard,
    tiny_config,
    tiny_qwen2,
)
from test_losses_grpo import reference
from test_sampling_sampler import CONFIG as MOE
from test_sampling_sampler import MESHES, NUCLEUS, C, G, P
from test_sampling_sampler import run as sampled

from r1jax import sharding
from r1jax.configs.training import GRPOConfig, OptimizerConfig
from r1jax.losses.logprobs import next_token_logprobs
from r1jax.training.grpo import GRPOBatch, counted_sequences, make_grpo_update, sync_reference
from r1jax.training.optimizer import make_optimizer
from r1jax.training.state import TrainState, state_shardings, with_reference

DENSE = tiny_qwen2(num_hidden_layers=1, first_k_dense_replace=1)  # compiles in a second
RATE = 0.005
SGD = optax.sgd(RATE)  # the change is the gradient: Adam's first step would hide its size
B, T = 8, 12
GRPO = GRPOConfig(num_prompts=2, num_generations=4, max_completion_length=7, temperature=0.8, beta=0.05, epsilon=0.2,
                  epsilon_high=0.3)  # fmt: skip


def start(config=DENSE, optimizer=SGD, seed=0) -> TrainState:
    params, buffers = nnx.split_state(random_state(config, seed), nnx.Param, ...)
    return with_reference(TrainState(jnp.int32(0), params, buffers, optimizer.init(params)), optimizer, "float32")


STARTS, LENGTHS = np.array([3, 3, 3, 3, 5, 5, 5, 5]), np.array([0, 7, 1, 4, 2, 7, 5, 3])
MASK = (np.arange(T) >= STARTS[:, None]) & (np.arange(T) < (STARTS + LENGTHS)[:, None])
TOKENS = random_tokens((B, T), seed=4)
TOKENS = np.where(MASK, TOKENS % 60, TOKENS)  # prompts and padding hold ids that cannot be drawn


@functools.cache
def logps_of():
    """The policy's log-probabilities of the batch below, and the entropies."""

    @jax.jit
    def run(state):
        model = nnx.merge(graphdef(DENSE), state)
        hidden = model.trunk(TOKENS).hidden
        return next_token_logprobs(hidden, model.head, TOKENS, temperature=0.8, allowed=np.arange(64) < 60)

    return [np.asarray(a) for a in run(random_state(DENSE))]


def batch_of(**changes) -> GRPOBatch:
    """Ragged prompts and completions, one empty and one cut off; ratios on both sides of the clip; a KL term."""
    rng = np.random.default_rng(5)
    mask = MASK
    logps = np.where(mask, logps_of()[0], 0)
    batch = GRPOBatch(
        tokens=TOKENS,
        completion_mask=mask,
        old_logps=np.where(mask, logps + 0.4 * rng.standard_normal((B, T)), 0).astype(np.float32),
        truncated=LENGTHS == 7,
        allowed=np.arange(64) < 60,
        ref_logps=(logps + 0.3 * rng.standard_normal((B, T))).astype(np.float32),
        advantages=rng.standard_normal(B).astype(np.float32),
        counted=np.ones(B, bool),
    )
    return batch.replace(**changes)


def rows_of(batch, rows) -> GRPOBatch:
    return jax.tree.map(lambda a: a[rows] if a.shape[:1] == (B,) else a, batch)


@functools.lru_cache(maxsize=64)
def update_program(config: GRPOConfig, optimizer=SGD, model=DENSE):
    return jax.jit(make_grpo_update(model, graphdef(model), config, optimizer))


def update(config, batch, state=None, optimizer=SGD, model=DENSE):
    state = start(model, optimizer) if state is None else state
    return update_program(config, optimizer, model)(state, batch)


def change(state, model=DENSE):
    """How far the parameters have come from the start."""
    return jax.tree.map(lambda a, b: np.asarray(b) - np.asarray(a), start(model).params, state.params)


def assert_same_change(got, want, tolerance=1e-5, model=DENSE):
    """Relative to the largest change of each parameter, but for the rounding of the parameters themselves."""
    flat = jax.tree_util.tree_leaves_with_path(start(model).params)
    for (path, p), g, w in zip(flat, *(jax.tree.leaves(change(s, model)) for s in (got, want)), strict=True):
        allowed = tolerance * np.abs(w).max() + 2.5e-7 * np.abs(p).max()
        assert np.abs(g - w).max() <= allowed, f"{jax.tree_util.keystr(path)}: {np.abs(g - w).max()} > {allowed}"


# -------------------------------------------------------------------------------------------------- the first step


def test_trap_5_the_first_ratio_is_one():
    """With the sampler's log-probabilities of ragged, padded rows: nothing is clipped, the loss is -mean advantage."""
    _, batch = sampled(NUCLEUS)
    assert len(set(batch.completion_mask.sum(axis=1).tolist())) > 3
    advantages = np.random.default_rng(0).standard_normal(P * G).astype(np.float32)
    some = batch.completion_mask.any(axis=1)  # an empty completion has no token to carry its advantage
    batch = batch.replace(advantages=advantages, counted=some, ref_logps=batch.old_logps)
    _, metrics = update(moe_grpo(), batch, model=MOE)
    metrics = jax.tree.map(float, metrics)
    assert metrics["ratio_mean"] == pytest.approx(1, abs=2e-6)
    assert metrics["clip_ratio/region_mean"] == metrics["clip_ratio/low_mean"] == metrics["clip_ratio/high_mean"] == 0
    assert metrics["loss"] == pytest.approx(-advantages[some].mean(), abs=1e-5)
    assert metrics["sampling/sampling_logp_difference/max"] <= 1e-5
    assert metrics["kl"] == pytest.approx(0, abs=1e-9)  # the reference is the policy


def test_loss_and_metrics_of_the_update():
    batch = batch_of(counted=np.arange(B) != 3)
    state, metrics = update(GRPO, batch)
    logps, entropy = logps_of()
    want = reference(
        GRPO, logps, batch.old_logps, batch.ref_logps, batch.advantages, batch.completion_mask, batch.counted
    )
    assert float(metrics["loss"]) == pytest.approx(want, rel=1e-5)
    mask = batch.completion_mask
    counted = mask & batch.counted[:, None]
    gap = np.abs(logps - batch.old_logps)
    ratio, log_r = np.exp(logps - batch.old_logps), batch.ref_logps - np.where(mask, logps, 0)
    positive = batch.advantages[:, None] > 0
    # Of the policy that is learning: counted tokens. Of the sampler: every token that it drew.
    want = {
        "entropy": entropy[mask].mean(),
        "sampling/sampling_logp_difference/mean": gap[mask].mean(),
        "sampling/sampling_logp_difference/max": gap[mask].max(),
        "ratio_mean": ratio[counted].mean(),
        "kl": (np.exp(log_r) - log_r - 1)[counted].mean(),
        "clip_ratio/low_mean": ((ratio < 0.8) & ~positive)[counted].mean(),
        "clip_ratio/high_mean": ((ratio > 1.3) & positive)[counted].mean(),
    }
    got = {name: float(metrics[name]) for name in want}
    assert got == pytest.approx(want, rel=1e-4)
    assert int(state.step) == 1
    norm = np.sqrt(sum((c.astype(np.float64) ** 2).sum() for c in jax.tree.leaves(change(state)))) / RATE
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-4)


# ------------------------------------------------------------------------------------------------- splitting it


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_trap_2_microbatches_change_nothing_but_rounding(loss_type):
    """Ragged lengths, a truncated row masked and a group dropped: parts hold different numbers of what counts."""
    config = dataclasses.replace(GRPO, loss_type=loss_type, mask_truncated_completions=True)
    batch = batch_of()
    counted = counted_sequences(config, batch.truncated, np.ones((2, 4), bool), np.zeros(2, bool))
    for rows in (counted, counted & (np.arange(B) < 4)):
        whole, metrics = update(config, batch.replace(counted=rows))
        for parts in (2, 4) if loss_type == "grpo" else (4,):
            split, got = update(dataclasses.replace(config, num_microbatches=parts), batch.replace(counted=rows))
            assert_same_change(split, whole)
            assert jax.tree.map(float, got) == pytest.approx(jax.tree.map(float, metrics), rel=1e-4, abs=1e-7)


def test_trap_3_rows_that_do_not_count_move_nothing():
    """Neither by their own terms nor through a denominator: the update is that of the batch without them."""
    counted = np.array([1, 0, 1, 0, 1, 0, 1, 0], bool)
    batch = batch_of(counted=counted)
    assert_same_change(*(update(GRPO, b)[0] for b in (batch, rows_of(batch, counted))))


def test_which_sequences_count():
    truncated = np.array([0, 1, 0, 0, 0, 0, 1, 0], bool)
    scored = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], bool)
    zero_std = np.array([False, True])
    count = lambda **settings: counted_sequences(dataclasses.replace(GRPO, **settings), truncated, scored, zero_std)  # noqa: E731
    assert count().tolist() == [1, 1, 1, 0, 1, 1, 1, 1]
    assert count(mask_truncated_completions=True).tolist() == [1, 0, 1, 0, 1, 1, 0, 1]
    assert count(drop_zero_variance_groups=True).tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    assert count(mask_truncated_completions=True, drop_zero_variance_groups=True).tolist() == [1, 0, 1, 0, 0, 0, 0, 0]


def recorder(steps):
    """An optimizer that moves nothing and keeps every gradient that it is given."""

    def init(params):
        return jnp.int32(0), jax.tree.map(lambda p: jnp.zeros((steps, *p.shape)), params)

    def record(grads, state, params=None):
        count, kept = state
        kept = jax.tree.map(lambda k, g: k.at[count].set(g), kept, grads)
        return jax.tree.map(jnp.zeros_like, grads), (count + 1, kept)

    return optax.GradientTransformation(init, record)


def test_minibatches_cover_every_row_once_at_random():
    batch, optimizer = batch_of(), recorder(8)
    config = dataclasses.replace(GRPO, num_minibatches=4, num_iterations=2)
    orders = []
    for step in (0, 1):
        state = start(optimizer=optimizer).replace(step=jnp.int32(step))
        after, _ = update(config, batch, state, optimizer)
        count, kept = after.opt_state
        assert int(count) == 8 and int(after.step) == step + 1
        orders.append(np.asarray(kept["embed"]["weight"].get_value()))
    whole = change(update(GRPO, batch)[0])["embed"]["weight"].get_value() / -RATE
    for gradients in orders:
        for half in (
            gradients[:4],
            gradients[4:],
        ):  # each pass reads every row once: the mean of its parts is the whole
            np.testing.assert_allclose(half.mean(axis=0), whole, atol=1e-4)
    first, second, other = orders[0][:4], orders[0][4:], orders[1][:4]
    for a, b in ((first, second), (first, other)):  # a new order for every pass and every step
        assert np.abs(np.sort(a, axis=0) - np.sort(b, axis=0)).max() > 1e-4


def test_the_seed_decides_the_minibatches():
    config, optimizer = dataclasses.replace(GRPO, num_minibatches=4), recorder(4)

    def gradients(seed):
        program = jax.jit(make_grpo_update(DENSE, graphdef(DENSE), config, optimizer, seed))
        _, kept = program(start(optimizer=optimizer), batch_of())[0].opt_state
        return np.asarray(kept["embed"]["weight"].get_value())

    first, again, other = map(gradients, (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.abs(np.sort(first, axis=0) - np.sort(other, axis=0)).max() > 1e-4


def test_minibatches_are_optimizer_steps_in_turn(monkeypatch):
    order = np.array([5, 2, 7, 0, 3, 6, 1, 4])
    monkeypatch.setattr(jax.random, "permutation", lambda key, n: jnp.asarray(order))
    config = dataclasses.replace(GRPO, num_minibatches=2, num_microbatches=2)
    optimizer = optax.sgd(RATE)  # its own object: compiled with this order
    batch = batch_of(counted=np.arange(B) != 3)
    got, metrics = update(config, batch, optimizer=optimizer)
    want, losses = start(), []
    for part in range(2):
        want, m = update(GRPO, rows_of(batch, order[part::2]), want)
        losses.append(float(m["loss"]))
    assert_same_change(got, want)
    assert float(metrics["loss"]) == pytest.approx(np.mean(losses), rel=1e-5)
    assert int(got.step) == 1


def test_iterations_are_passes_over_the_same_rollout():
    batch = batch_of()
    got, metrics = update(dataclasses.replace(GRPO, num_iterations=2), batch)
    once, first = update(GRPO, batch)
    twice, second = update(GRPO, batch, once)
    assert_same_change(got, twice)
    assert float(metrics["loss"]) == pytest.approx((float(first["loss"]) + float(second["loss"])) / 2, rel=1e-5)
    assert int(got.step) == 1
    assert abs(float(second["ratio_mean"]) - float(first["ratio_mean"])) > 1e-4
    assert np.abs(change(once)["embed"]["weight"].get_value()).max() > 1e-3


# ------------------------------------------------------------------------------------------ reference and routing


def test_the_reference_becomes_the_policy_and_then_stays():
    state, _ = update(GRPO, batch_of())
    assert any(c.any() for c in jax.tree.leaves(change(state)))
    synced = sync_reference(state)
    jax.tree.map(np.testing.assert_array_equal, synced.ref_params, state.params)
    reference = jax.tree.map(np.asarray, synced.ref_params)
    for a, b in zip(jax.tree.leaves(synced.params), jax.tree.leaves(synced.ref_params), strict=True):
        assert a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer()  # the update donates both
    moved, _ = update(GRPO, batch_of(), synced)
    jax.tree.map(np.testing.assert_array_equal, moved.ref_params, reference)


def test_the_correction_bias_is_frozen_in_rl():
    before = start(MOE)
    after, _ = update(moe_grpo(), moe_batch(), before, model=MOE)
    jax.tree.map(np.testing.assert_array_equal, after.buffers, before.buffers)


def test_trap_8_the_update_replays_the_samplers_experts():
    """Rerouted by other biases, the update is the same if it replays and another if it does not."""
    batch = moe_batch()
    results = {}
    for replay in (True, False):
        config = dataclasses.replace(moe_grpo(), replay_experts=replay)
        for drift in (0.0, 1.0):
            state = start(MOE)
            noise = drift * np.random.default_rng(3).standard_normal(8)
            state = state.replace(buffers=jax.tree.map(lambda b: b + noise.astype(np.float32), state.buffers))  # noqa: B023
            results[replay, drift] = update(config, batch, state, model=MOE)[0]
    assert_same_change(results[True, 1.0], results[True, 0.0], model=MOE)
    with pytest.raises(AssertionError):
        assert_same_change(results[False, 1.0], results[False, 0.0], 1e-2, model=MOE)


# -------------------------------------------------------------------------------------------------------- meshes


def moe_grpo() -> GRPOConfig:
    return GRPOConfig(num_prompts=P, num_generations=G, max_completion_length=C, temperature=NUCLEUS.temperature,
                      top_p=NUCLEUS.top_p, top_k=NUCLEUS.top_k, beta=0.05, epsilon=0.2)  # fmt: skip


def moe_batch() -> GRPOBatch:
    """One device's rollout, with advantages and a reference that the policy has left."""
    rng = np.random.default_rng(6)
    _, batch = sampled(NUCLEUS)
    moved = 0.3 * rng.standard_normal(batch.old_logps.shape)
    return batch.replace(
        ref_logps=np.where(batch.completion_mask, batch.old_logps + moved, 0).astype(np.float32),
        advantages=rng.standard_normal(P * G).astype(np.float32),
        counted=~batch.truncated,
    )  # fmt: skip


@pytest.mark.parametrize("mesh", MESHES)
def test_an_update_on_a_mesh_is_one_devices(mesh):
    want, want_metrics = update(moe_grpo(), moe_batch(), model=MOE)
    layout = make_layout(MESHES[mesh])
    state = start(MOE)
    places = state_shardings(state, layout)
    program = make_grpo_update(MOE, graphdef(MOE), dataclasses.replace(moe_grpo(), num_microbatches=4), SGD)

    def under_layout(state, batch):
        with sharding.use(layout):
            return program(state, batch)

    jitted = jax.jit(under_layout, out_shardings=(places, None), donate_argnums=0)
    got, metrics = jitted(jax.device_put(state, places), lay_out_batch(moe_batch(), layout))
    assert_same_change(got, want, model=MOE)
    assert jax.tree.map(float, metrics) == pytest.approx(jax.tree.map(float, want_metrics), rel=1e-4, abs=1e-6)
    jax.tree.map(lambda a, place: a.sharding.is_equivalent_to(place, a.ndim) or pytest.fail(str(a.sharding)),
                 got.params, places.params)  # fmt: skip


def test_optimizer_state_lies_as_its_parameters_do():
    layout = make_layout({"fsdp": 4, "expert": 2})
    optimizer = make_optimizer(OptimizerConfig(), 10)
    state = jax.eval_shape(lambda: start(tiny_config(num_hidden_layers=2), optimizer))
    places = state_shardings(state, layout)
    adam = places.opt_state[1][0]
    same = lambda a, b: a == b or pytest.fail(f"{a} is not {b}")  # noqa: E731
    for moments in (adam.mu, adam.nu, places.ref_params):
        jax.tree.map(same, moments, places.params)
    assert adam.count == layout.replicated


def test_a_learner_state_is_sampled_as_it_is():
    """What the loop passes to the sampler after an update is the updated parameters with the frozen biases."""
    state, _ = update(GRPO, batch_of())
    merged = nnx.to_pure_dict(state.model_state)
    np.testing.assert_array_equal(merged["embed"]["weight"], nnx.to_pure_dict(state.params)["embed"]["weight"])
    assert jax.tree.structure(state.model_state) == jax.tree.structure(random_state(DENSE))
    assert shard(state.model_state, None) is not None
