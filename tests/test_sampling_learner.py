"""One model definition, one number: what the sampler recorded is what the learner computes, token by token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import logps_program, make_layout, random_state
from test_sampling_sampler import (
    CONFIG,
    LENGTHS,
    MESHES,
    NUCLEUS,
    PAD,
    PROMPTS,
    STOPS,
    C,
    G,
    P,
    S,
    V,
    run,
)

from r1jax.configs.training import GRPOConfig
from r1jax.sampling.sampler import Rollout
from r1jax.training.grpo import learner_batch

LEARNER = GRPOConfig(
    num_prompts=P, num_generations=G, max_completion_length=C, temperature=NUCLEUS.temperature, top_p=NUCLEUS.top_p,
    top_k=NUCLEUS.top_k,
)  # fmt: skip
PLAIN = dataclasses.replace(NUCLEUS, temperature=0.6, top_p=1.0, top_k=0)


def worst_gap(batch, logps):
    gap = np.abs(np.asarray(logps) - batch.old_logps)[batch.completion_mask]
    assert gap.size > 50
    return gap.max()


# ------------------------------------------------------------------------------------------------------- layout


@pytest.mark.parametrize("pad_id", [PAD, 11])  # an ordinary token, and a stop id (TRL 4970: it must not mask the stop)
def test_trap_4_each_completion_directly_follows_its_prompt(pad_id):
    rng = np.random.default_rng(0)
    lengths = np.array([[0, 1, 6, 3], [6, 2, 6, 5]])
    completions = rng.integers(0, V, (2, G, C)).astype(np.int32)
    completions[0, 1, 0] = completions[1, 1, 1] = pad_id  # the last token of two rows
    logps, mass = rng.standard_normal((2, 2, G, C)).astype(np.float32)
    experts = rng.integers(0, 8, (3, 2, G, C, 2)).astype(np.int32)
    prompt_experts = rng.integers(0, 8, (3, 2, S, 2)).astype(np.int32)
    prompt_lengths = np.array([3, 8], np.int32)
    truncated = lengths == C
    rollout = Rollout(*map(jnp.asarray, (completions, lengths, truncated, logps, mass, prompt_experts, experts)))
    allowed = np.ones(V, bool)
    batch = learner_batch(jnp.asarray(PROMPTS[:2]), jnp.asarray(prompt_lengths), rollout, allowed, pad_id)
    assert batch.tokens.shape == (2 * G, S + C)
    for b in range(2 * G):
        p, g = divmod(b, G)
        start, end = prompt_lengths[p], prompt_lengths[p] + lengths[p, g]
        row = [*PROMPTS[p, :start], *completions[p, g, : lengths[p, g]]]
        assert batch.tokens[b].tolist() == row + [pad_id] * (S + C - end)  # padding at the right only
        assert np.flatnonzero(batch.completion_mask[b]).tolist() == list(range(start, end))
        # Entry t belongs to token t: not to the position that predicts it.
        np.testing.assert_array_equal(batch.old_logps[b, start:end], (logps + mass)[p, g, : end - start])
        assert not np.asarray(batch.old_logps)[b, :start].any() and not np.asarray(batch.old_logps)[b, end:].any()
        np.testing.assert_array_equal(batch.experts[:, b, :start], prompt_experts[:, p, :start])
        np.testing.assert_array_equal(batch.experts[:, b, start:end], experts[:, p, g, : end - start])
    np.testing.assert_array_equal(batch.truncated, truncated.reshape(-1))


def test_trap_6_the_learner_gets_the_sampled_ids_and_not_their_text():
    rollout, batch = run(NUCLEUS)
    for b in range(P * G):
        p, g = divmod(b, G)
        assert (
            batch.tokens[b, batch.completion_mask[b]].tolist()
            == rollout.completions[p, g, : rollout.lengths[p, g]].tolist()
        )
        assert batch.tokens[b, : LENGTHS[p]].tolist() == PROMPTS[p, : LENGTHS[p]].tolist()


# ------------------------------------------------------------------------------------------------------- values


def test_trap_1_log_probabilities_agree_under_temperature_and_truncation():
    """Ragged prompts; rows that stop, rows cut off, rows of one token and of none."""
    rollout, batch = run(NUCLEUS)
    assert rollout.truncated.any() and (~rollout.truncated & (rollout.lengths > 1)).any()
    logps = logps_program(CONFIG, LEARNER)(random_state(CONFIG), batch)
    assert worst_gap(batch, logps) <= 1e-5
    assert rollout.log_mass.min() < -0.1  # without log_mass they would not agree


def test_trap_1_log_probabilities_agree_without_truncation():
    _, batch = run(PLAIN)
    learner = dataclasses.replace(LEARNER, temperature=0.6, top_p=1.0, top_k=0)
    assert worst_gap(batch, logps_program(CONFIG, learner)(random_state(CONFIG), batch)) <= 1e-5
    forgotten = logps_program(CONFIG, LEARNER)(random_state(CONFIG), batch)  # another temperature
    assert worst_gap(batch, forgotten) > 0.1


@pytest.mark.parametrize("mesh", MESHES)
def test_log_probabilities_agree_on_meshes(mesh):
    """The sampler's copy of the weights lies differently from the learner's."""
    _, batch = run(NUCLEUS, mesh)
    logps = logps_program(CONFIG, LEARNER, make_layout(MESHES[mesh]).mesh)(random_state(CONFIG), batch)
    assert worst_gap(batch, logps) <= 1e-5


# ------------------------------------------------------------------------------------------------ routing replay


def drifted(state):
    """The same parameters behind routers that choose otherwise: the bias selects and does nothing else."""
    bias = state["moe_layers"]["mlp"]["router"]["e_score_correction_bias"]
    noise = np.random.default_rng(3).standard_normal(bias.get_value().shape).astype(np.float32)
    state = jax.tree.map(lambda a: a, state)
    state["moe_layers"]["mlp"]["router"]["e_score_correction_bias"] = bias.replace(bias.get_value() + noise)
    return state


def test_trap_8_replayed_experts_keep_sampler_and_learner_together():
    _, batch = run(NUCLEUS)
    replay = logps_program(CONFIG, dataclasses.replace(LEARNER, replay_experts=True))
    state = random_state(CONFIG)
    assert worst_gap(batch, replay(state, batch)) <= 1e-5
    assert worst_gap(batch, logps_program(CONFIG, LEARNER)(drifted(state), batch)) > 0.01  # routers that disagree ...
    assert worst_gap(batch, replay(drifted(state), batch)) <= 1e-5  # ... do not matter under replay


def test_trap_8_replay_on_a_mesh():
    mesh = "data 2, expert 2, tensor 2"
    _, batch = run(NUCLEUS, mesh)
    replay = dataclasses.replace(LEARNER, replay_experts=True)
    logps = logps_program(CONFIG, replay, make_layout(MESHES[mesh]).mesh)(drifted(random_state(CONFIG)), batch)
    assert worst_gap(batch, logps) <= 1e-5


def test_splitting_the_forward_changes_nothing():
    """Log-probabilities are computed in the microbatches of the update; rows come back in their places."""
    _, batch = run(NUCLEUS)
    state = random_state(CONFIG)
    split = logps_program(CONFIG, dataclasses.replace(LEARNER, num_microbatches=2, num_minibatches=4))(state, batch)
    whole = logps_program(CONFIG, LEARNER)(state, batch)
    np.testing.assert_allclose(split, whole, atol=1e-5)


def test_stop_ids_are_among_what_the_tests_draw():
    rollout, _ = run(NUCLEUS)
    inside = np.arange(C) < rollout.lengths[..., None]
    assert np.isin(STOPS, rollout.completions[inside]).all()
