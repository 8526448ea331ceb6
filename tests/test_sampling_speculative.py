"""Speculative decoding: the distribution of plain sampling, the same tokens at temperature 0, in fewer passes."""

import functools
import itertools

import jax
import numpy as np
import pytest
from helpers import graphdef, make_layout, method, random_state, random_tokens, rollout_program, shard, tiny_config

from r1jax.configs.training import SamplingConfig
from r1jax.errors import ConfigError
from r1jax.sampling.speculative import make_speculative_sampler
from r1jax.sharding import use

CONFIG = tiny_config(num_hidden_layers=2, first_k_dense_replace=1)
P, G, S, C, V = 4, 4, 8, 12, 64
LENGTHS = np.array([8, 5, 1, 6], np.int32)
LIMITS = np.array([12, 9, 0, 1], np.int32)
PROMPTS = np.where(np.arange(S) < LENGTHS[:, None], random_tokens((P, S), seed=1), 63).astype(np.int32)
STOPS, PAD = (50,), 7
ALLOWED = np.isin(np.arange(V), [11, 13, 24, 30, 50])
MESH = (("fsdp", 2), ("expert", 2), ("tensor", 2))


def sampling(temperature, group=G, slots=C, **options):
    return SamplingConfig(
        temperature=temperature, num_generations=group, max_completion_length=slots, **options
    )  # fmt: skip


@functools.cache
def program(config, model, stops, mesh):
    layout = make_layout(dict(mesh), "sample") if mesh else None
    sampler = make_speculative_sampler(graphdef(model), config, stops, PAD)

    @jax.jit
    def run(*args):
        with use(layout):
            return sampler(*args)

    return lambda state, *args: jax.device_get(run(shard(state, layout), *args))


def speculate(config, key=0, mesh=(), prompts=PROMPTS, lengths=LENGTHS, limits=LIMITS, model=CONFIG, stops=STOPS):
    run = program(config, model, stops, mesh)
    return run(random_state(model), prompts, lengths, limits, ALLOWED, jax.random.key(key))


cached = functools.cache(lambda temperature: speculate(sampling(temperature)))


def test_greedy_tokens_are_those_of_plain_sampling():
    run = rollout_program(CONFIG, sampling(0.0), STOPS, PAD)
    plain = jax.device_get(run(random_state(CONFIG), PROMPTS, LENGTHS, LIMITS, ALLOWED, jax.random.key(0)))[0]
    drafted, _ = cached(0.0)
    for field in ("completions", "lengths", "truncated"):
        np.testing.assert_array_equal(getattr(drafted, field), getattr(plain, field))
    np.testing.assert_allclose(drafted.log_mass, plain.log_mass, atol=1e-5)
    assert not drafted.logps.any() and drafted.lengths.max() > 3


def test_a_pass_keeps_just_the_drafts_that_the_module_makes_from_the_tokens_before():
    """Greedy passes, counted from whole forward passes: each slot of the module's cache holds the right pair."""
    rollout, told = cached(0.0)
    kept = 0
    for p, g in np.ndindex(P, G):
        n, start = rollout.lengths[p, g], LENGTHS[p]
        row = np.concatenate([PROMPTS[p, :start], rollout.completions[p, g, :n]])
        row = np.pad(row, (0, S + C - len(row)))
        drafts = np.asarray(method(CONFIG, "mtp_logits")(random_state(CONFIG), row[None])[0])
        drafts = np.where(ALLOWED, drafts, -np.inf).argmax(axis=-1)
        drawn, passes, accepted = 1, 0, 0
        while drawn < n:
            hit = drafts[start + drawn - 2] == row[start + drawn]  # entry i is of the token at i + 2
            passes, accepted, drawn = passes + 1, accepted + hit, drawn + 1 + hit
        assert (told.passes[p, g], told.accepted[p, g]) == (passes, accepted)
        kept += accepted
    assert 0 < kept < told.passes.sum()


@pytest.mark.parametrize("options", [{}, {"top_p": 0.8}], ids=["plain", "top-p"])
def test_three_tokens_have_the_exact_distribution(options):
    """Chi-square over every sequence of three tokens, against probabilities from whole forward passes."""
    ids = np.flatnonzero(ALLOWED)
    group, length = 8192, 5
    config = sampling(1.5, group, 3, **options)
    args = dict(prompts=PROMPTS[1:2], lengths=LENGTHS[1:2], limits=np.array([3], np.int32), stops=())
    rollout, told = speculate(config, key=5, **args)
    assert (rollout.lengths == 3).all()

    sequences = np.array(list(itertools.product(ids, repeat=3)), np.int32)
    rows = np.concatenate([np.broadcast_to(PROMPTS[1, :length], (len(sequences), length)), sequences], axis=1)
    logits = np.asarray(method(CONFIG, "__call__")(random_state(CONFIG), rows), np.float64)[:, length - 1 : -1]
    logits = np.where(ALLOWED, logits, -np.inf) / 1.5
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    if options:
        order = np.argsort(-p, axis=-1)
        ranked = np.take_along_axis(p, order, axis=-1)
        needed = np.cumsum(ranked, axis=-1) - ranked < options["top_p"]
        p = np.where(np.take_along_axis(needed, np.argsort(order, axis=-1), axis=-1), p, 0)
        p /= p.sum(-1, keepdims=True)
    each = np.take_along_axis(p, sequences[..., None], axis=-1)[..., 0]
    expected = group * each.prod(axis=1)
    assert np.isclose(expected.sum(), group)

    code = {tuple(s): i for i, s in enumerate(sequences)}
    counts = np.bincount([code[tuple(s)] for s in rollout.completions[0]], minlength=len(sequences))
    assert not counts[expected == 0].any()
    tested = expected > 4
    chi2 = ((counts - expected)[tested] ** 2 / expected[tested]).sum()
    degrees = tested.sum() - 1
    assert degrees > 8 and chi2 < degrees + 4 * np.sqrt(2 * degrees)  # four standard deviations
    assert 0.05 < told.accepted.sum() / told.passes.sum() < 0.95  # both branches were taken

    drawn = np.array([code[tuple(s)] for s in rollout.completions[0]])
    np.testing.assert_allclose(rollout.logps[0], np.log(each[drawn]), atol=1e-5)


def test_rows_end_as_they_do_in_plain_sampling():
    rollout, told = cached(1.5)
    limits = np.broadcast_to(np.minimum(LIMITS, C)[:, None], (P, G))
    last = np.take_along_axis(rollout.completions, np.maximum(rollout.lengths - 1, 0)[..., None], axis=-1)[..., 0]
    stopped = (rollout.lengths > 0) & (last == 50)
    assert stopped.any() and (rollout.lengths[LIMITS == 0] == 0).all() and (rollout.lengths[LIMITS == 1] == 1).all()
    assert ((rollout.lengths == limits) | stopped).all()
    np.testing.assert_array_equal(rollout.truncated, (limits > 0) & (rollout.lengths == limits) & ~stopped)
    inside = np.arange(C) < (rollout.lengths - 1)[..., None]
    assert not (rollout.completions[inside] == 50).any()
    past = np.arange(C) >= rollout.lengths[..., None]
    assert (rollout.completions[past] == PAD).all() and not rollout.logps[past].any()
    assert (told.passes <= np.maximum(rollout.lengths - 1, 0)).all()
    assert (np.maximum(rollout.lengths - 1, 0) <= 2 * told.passes).all()


def test_noise_is_fresh_for_every_key_row_and_slot():
    first, again, other = (speculate(sampling(1.5), key=k)[0] for k in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first.completions != other.completions).any()
    assert len({tuple(row) for row in first.completions[0]}) == G


def test_a_mesh_changes_nothing():
    (one, told), (several, counted) = cached(1.5), speculate(sampling(1.5), mesh=MESH)
    np.testing.assert_array_equal(several.completions, one.completions)
    np.testing.assert_allclose(several.logps, one.logps, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, counted, told)


def test_a_model_without_a_prediction_module_is_refused():
    with pytest.raises(ConfigError, match=r"num_nextn_predict_layers=0: .* needs a prediction module"):
        speculate(sampling(0.0), model=CONFIG.replace(num_nextn_predict_layers=0))
