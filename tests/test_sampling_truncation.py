"""Drawing one token: which tokens truncation keeps, how often each is drawn, and with what log-probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.configs.training import SamplingConfig
from r1jax.losses.logprobs import allowed_logits
from r1jax.sampling.truncation import draw, kept

V = 12
SETTINGS = [(0, 1.0), (3, 1.0), (0, 0.6), (5, 0.8), (1, 1.0), (0, 1e-6), (V, 0.9), (100, 1.0)]


def softmax(logits):
    logits = np.asarray(logits, np.float64)
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def brute_force_kept(logits, top_k, top_p):
    """Token by token, from the likeliest down: the definitions of top-k, and of the nucleus of what it leaves."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])[: top_k or None]
    order = [i for i in order if np.isfinite(logits[i])]
    p = softmax(logits[order])
    nucleus, mass = [], 0.0
    for i, share in zip(order, p, strict=True):
        if mass >= top_p:
            break
        nucleus.append(i)
        mass += share
    return set(nucleus)


def logits_of(rows, seed=0):
    return (2 * np.random.default_rng(seed).standard_normal((rows, V))).astype(np.float32)


@pytest.mark.parametrize("top_k, top_p", SETTINGS)
def test_what_truncation_keeps(top_k, top_p):
    logits = logits_of(50)
    logits[::2, 4] = -np.inf  # not allowed
    mask = np.asarray(kept(jnp.asarray(logits), top_k, top_p))
    for row, keep in zip(logits, mask, strict=True):
        assert set(np.flatnonzero(keep & np.isfinite(row))) == brute_force_kept(row, top_k, top_p)


def test_ties_at_the_border_are_kept():
    logits = jnp.array([[2.0, 1.0, 1.0, 0.0]])
    assert kept(logits, 2, 1.0).tolist() == [[True, True, True, False]]
    assert kept(logits, 0, 0.7).tolist() == [[True, True, True, False]]


DRAWS = 20_000


@pytest.mark.parametrize(
    "temperature, top_k, top_p", [(1.0, 0, 1.0), (0.6, 0, 1.0), (1.7, 4, 1.0), (2.5, 0, 0.8), (0.4, 6, 0.7)]
)
def test_draws_follow_the_truncated_distribution_at_the_temperature(temperature, top_k, top_p):
    (logits,) = logits_of(1, seed=3)
    logits[2] = -np.inf
    config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    drawn = draw(config, jax.random.key(5), jnp.broadcast_to(logits, (DRAWS, V)))

    before = softmax(logits / temperature)  # the temperature comes first, then truncation
    keep = np.isin(np.arange(V), list(brute_force_kept(logits / temperature, top_k, top_p)))
    after = np.where(keep, before, 0) / before[keep].sum()
    counts = np.bincount(drawn.tokens, minlength=V)
    assert not counts[~keep].any()
    chi_square = ((counts - DRAWS * after)[keep] ** 2 / (DRAWS * after[keep])).sum()
    assert chi_square < keep.sum() + 5 * np.sqrt(2 * keep.sum())
    # Trap 1: what is recorded is the log-probability under the distribution drawn from.
    np.testing.assert_allclose(drawn.logps, np.log(after[drawn.tokens]), atol=1e-5)
    np.testing.assert_allclose(drawn.logps + drawn.log_mass, np.log(before[drawn.tokens]), atol=1e-5)
    assert (np.asarray(drawn.log_mass) <= 1e-6).all()


def test_greedy_draws_the_argmax_from_a_point_mass():
    logits = logits_of(30)
    allowed = jnp.arange(V) != int(np.argmax(logits[0]))
    masked = allowed_logits(jnp.asarray(logits), allowed)
    drawn = draw(SamplingConfig(temperature=0.0, top_p=0.5), jax.random.key(0), masked)
    np.testing.assert_array_equal(drawn.tokens, np.argmax(masked, axis=-1))
    assert int(drawn.tokens[0]) != int(np.argmax(logits[0]))
    assert not np.asarray(drawn.logps).any()
    expected = np.log(softmax(masked)[np.arange(30), drawn.tokens])
    np.testing.assert_allclose(drawn.log_mass, expected, atol=1e-5)


def test_rows_and_keys_draw_apart():
    logits = jnp.zeros((64, V))
    config = SamplingConfig()
    first, again, other = (draw(config, jax.random.key(k), logits).tokens for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert len(set(np.asarray(first).tolist())) > 1
