"""The sampler: what a loop of full forward passes would draw, row by row, and no step more."""

import functools

import jax
import numpy as np
import pytest
from helpers import make_layout, method, random_state, random_tokens, rollout_program, tiny_config, tiny_qwen2

from r1jax.configs.training import SamplingConfig

CONFIG = tiny_config(num_nextn_predict_layers=0, num_hidden_layers=2, first_k_dense_replace=1)
P, G, S, C, V = 8, 4, 8, 6, 64
LENGTHS = np.array([8, 5, 1, 6, 3, 8, 2, 7], np.int32)
LIMITS = np.array([6, 6, 0, 1, 9, 3, 6, 6], np.int32)  # none, one, and more than there is room for
PROMPTS = np.where(np.arange(S) < LENGTHS[:, None], random_tokens((P, S), seed=1), 63).astype(np.int32)
STOPS, PAD = (11, 50), 7  # the pad id can be drawn, as an ordinary token
ALLOWED = np.isin(np.arange(V), [1, PAD, 11, 13, 24, 30, 36, 42, 50, 55, 60])
GREEDY = SamplingConfig(temperature=0.0, num_generations=G, max_completion_length=C)
NUCLEUS = SamplingConfig(temperature=1.5, top_p=0.9, top_k=8, num_generations=G, max_completion_length=C)
MESHES = {
    "data 8": {"data": 8},
    "fsdp 4, expert 2": {"fsdp": 4, "expert": 2},
    "data 2, expert 2, tensor 2": {"data": 2, "expert": 2, "tensor": 2},
}


def run(sampling, mesh=None, seed=0, key=0, limits=LIMITS, allowed=ALLOWED, stops=STOPS, config=CONFIG, record=True):
    mesh = mesh and make_layout(MESHES[mesh]).mesh
    program = rollout_program(config, sampling, stops, PAD, mesh, record and bool(config.num_moe_layers))
    return jax.device_get(program(random_state(config, seed), PROMPTS, LENGTHS, limits, allowed, jax.random.key(key)))


rollout = functools.cache(lambda *args, **options: run(*args, **options)[0])


def greedy_reference(seed, limits=LIMITS, allowed=ALLOWED, stops=STOPS):
    """(completions, lengths, truncated, log-probabilities at temperature 1) from whole forward passes."""
    forward, state = method(CONFIG, "__call__"), random_state(CONFIG, seed)
    rows = np.zeros((P, S + C), np.int32)
    rows[:, :S] = np.where(np.arange(S) < LENGTHS[:, None], PROMPTS, 0)
    lengths, truncated, logps = np.zeros(P, int), np.zeros(P, bool), np.zeros((P, C))
    alive = limits > 0
    for step in range(C):
        logits = np.asarray(forward(state, rows), np.float64)
        for p in np.flatnonzero(alive):
            at = LENGTHS[p] + step
            row = np.where(allowed, logits[p, at - 1], -np.inf)
            rows[p, at] = token = int(np.argmax(row))
            logps[p, step] = row[token] - np.log(np.exp(row).sum())
            lengths[p] += 1
            truncated[p] = token not in stops and step + 1 >= min(limits[p], C)
            alive[p] = token not in stops and not truncated[p]
    completions = np.array([[rows[p, LENGTHS[p] + i] if i < lengths[p] else PAD for i in range(C)] for p in range(P)])
    return completions, lengths, truncated, logps


@pytest.mark.parametrize("seed", [0, 1])
def test_greedy_is_the_argmax_of_the_full_forward(seed):
    """Trap 6 too: both sets of parameters go through one compiled sampler, and neither sees the other's cache."""
    completions, lengths, truncated, logps = greedy_reference(seed)
    got = rollout(GREEDY, seed=seed)
    for g in range(G):
        np.testing.assert_array_equal(got.completions[:, g], completions)
        np.testing.assert_array_equal(got.lengths[:, g], lengths)
        np.testing.assert_array_equal(got.truncated[:, g], truncated)
        np.testing.assert_allclose(got.log_mass[:, g], logps, atol=1e-5)
    assert not got.logps.any()


def test_trap_6_a_weight_update_reaches_the_next_call():
    before, after = (rollout(GREEDY, seed=seed) for seed in (0, 1))
    assert (before.completions != after.completions).any()
    np.testing.assert_array_equal(run(GREEDY, seed=0)[0].completions, before.completions)


def test_trap_4_every_stop_id_ends_its_row_and_is_part_of_it():
    got = rollout(NUCLEUS)
    last = np.take_along_axis(got.completions, np.maximum(got.lengths - 1, 0)[..., None], axis=-1)[..., 0]
    stopped = (got.lengths > 0) & ~got.truncated
    assert {11, 50} == set(last[stopped].tolist())  # both ids ended some row
    inside = np.arange(C) < (got.lengths - 1)[..., None]
    assert not np.isin(got.completions[inside], STOPS).any()
    limits = np.broadcast_to(np.minimum(LIMITS, C)[:, None], (P, G))
    np.testing.assert_array_equal(got.truncated, (got.lengths == limits) & ~np.isin(last, STOPS) & (limits > 0))
    assert got.truncated.any() and (stopped & (got.lengths == limits)).any()  # a stop in the last slot is no truncation
    assert (got.lengths[~got.truncated & (limits > 0)] <= limits[~got.truncated & (limits > 0)]).all()


def test_lengths_never_pass_their_rows_limit():
    got = rollout(NUCLEUS)
    assert (got.lengths <= np.minimum(LIMITS, C)[:, None]).all()
    assert (got.lengths[LIMITS > 0] >= 1).all() and not got.lengths[LIMITS == 0].any()
    assert not got.truncated[LIMITS == 0].any()
    past = np.arange(C) >= got.lengths[..., None]
    assert (got.completions[past] == PAD).all()
    assert not got.logps[past].any() and not got.log_mass[past].any()


def test_trap_19_a_drawn_pad_id_is_a_token():
    """What counts is told by lengths: a pad id inside the vocabulary is drawn, counted and scored."""
    got = rollout(NUCLEUS)
    inside = np.arange(C) < got.lengths[..., None]
    drawn = inside & (got.completions == PAD)
    assert drawn.any()
    assert (got.logps[drawn] < 0).all()
    mask = run(NUCLEUS)[1].completion_mask
    assert mask.sum() == got.lengths.sum()


def test_ids_that_are_not_allowed_are_never_drawn():
    got = rollout(NUCLEUS)
    assert ALLOWED[got.completions].all()
    free = run(NUCLEUS, allowed=np.ones(V, bool))[0]
    assert not ALLOWED[free.completions].all()


def test_trap_18_noise_is_fresh_for_every_key_row_and_step():
    first, again, other = rollout(NUCLEUS), run(NUCLEUS)[0], run(NUCLEUS, key=1)[0]
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first.completions != other.completions).any()
    long = [group for group, limit in zip(first.completions, LIMITS, strict=True) if limit >= C]
    assert all(len({tuple(row) for row in group}) > 1 for group in long)  # rows of a group differ


def test_steps_draw_independently():
    """A model whose logits are constant: slots of one row must not repeat one another's noise."""
    config = tiny_qwen2(num_hidden_layers=1, first_k_dense_replace=1, tie_word_embeddings=False)
    sampling = SamplingConfig(num_generations=G, max_completion_length=C)
    state = jax.tree_util.tree_map_with_path(
        lambda path, a: a * 0 if "lm_head" in jax.tree_util.keystr(path) else a, random_state(config)
    )
    program = rollout_program(config, sampling, (63,), PAD, None)
    got, _ = jax.device_get(
        program(state, PROMPTS, LENGTHS, np.full(P, C, np.int32), np.arange(V) < 60, jax.random.key(0))
    )
    tokens = got.completions.reshape(-1)  # 192 uniform draws of 60
    assert got.lengths.min() == C and len(set(tokens.tolist())) > 45
    repeats = (got.completions[..., 1:] == got.completions[..., :-1]).mean()
    assert repeats < 0.1
    np.testing.assert_allclose(got.logps, -np.log(60), atol=1e-5)


def test_the_loop_ends_with_the_last_row():
    """Experts are recorded slot by slot: what no step reached holds the placeholder 0, 1, 2."""
    got = run(GREEDY, limits=np.minimum(LIMITS, 2).astype(np.int32))[0]
    assert got.lengths.max() == 2
    untouched = (got.experts == np.arange(CONFIG.num_experts_per_tok)).all(axis=(0, 1, 2, 4))
    assert untouched.tolist() == [False, False, True, True, True, True]
    nothing = run(GREEDY, limits=np.zeros(P, np.int32))[0]
    assert not nothing.lengths.any() and (nothing.completions == PAD).all() and not nothing.truncated.any()
    assert (nothing.experts == np.arange(CONFIG.num_experts_per_tok)).all()


def test_recorded_experts_are_the_full_forwards():
    got, batch = run(NUCLEUS)
    free = method(CONFIG, "trunk")(random_state(CONFIG), batch.tokens).routing.experts
    real = np.arange(S + C) < (np.repeat(LENGTHS, G) + got.lengths.reshape(-1))[:, None]
    assert batch.experts.shape == (1, P * G, S + C, 3)
    np.testing.assert_array_equal(np.sort(batch.experts)[:, real], np.sort(free)[:, real])
    assert (np.sort(batch.experts)[..., 1:] > np.sort(batch.experts)[..., :-1]).all()  # distinct, in padding too


@pytest.mark.parametrize("sampling", [NUCLEUS, GREEDY], ids=["nucleus", "greedy"])
@pytest.mark.parametrize("mesh", MESHES)
def test_meshes_draw_one_devices_tokens(mesh, sampling):
    """Noise included: it is a function of the key, not of the mesh."""
    got, want = rollout(sampling, mesh), rollout(sampling)
    np.testing.assert_array_equal(got.completions, want.completions)
    np.testing.assert_array_equal(got.lengths, want.lengths)
    np.testing.assert_array_equal(got.truncated, want.truncated)
    np.testing.assert_allclose(got.logps, want.logps, atol=1e-5)
    np.testing.assert_allclose(got.log_mass, want.log_mass, atol=1e-5)
