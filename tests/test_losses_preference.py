"""Reward models' losses against float64, at any size of score, in parts as in the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.losses.preference import bradley_terry_loss, pointwise_loss

RNG = np.random.default_rng(0)
CHOSEN, REJECTED = RNG.normal(0, 3, (2, 12)).astype(np.float32)
REJECTED[0] = CHOSEN[0]  # a draw
MARGIN = RNG.uniform(0, 2, 12).astype(np.float32)
LABELS = np.array([1, 0] * 6, np.float32)
COUNTED = np.arange(12) < 10


def log_sigmoid(x):
    return -np.logaddexp(0, -np.asarray(x, np.float64))


def test_pairs():
    loss, metrics = bradley_terry_loss(CHOSEN, REJECTED, MARGIN, COUNTED)
    c, r, m = (np.asarray(a[COUNTED], np.float64) for a in (CHOSEN, REJECTED, MARGIN))
    assert float(loss) == pytest.approx(-log_sigmoid(c - r - m).mean(), rel=1e-6)
    expected = {
        "accuracy": (c > r).mean(),  # the draw is no success
        "margin": (c - r).mean(),
        "chosen_reward": c.mean(),
        "rejected_reward": r.mean(),
    }
    assert jax.tree.map(float, metrics) == pytest.approx(expected, rel=1e-6)
    assert float(bradley_terry_loss(CHOSEN, REJECTED)[0]) == pytest.approx(
        -log_sigmoid(CHOSEN.astype(float) - REJECTED).mean(), rel=1e-6
    )


def test_single_responses():
    loss, metrics = pointwise_loss(CHOSEN, LABELS, COUNTED)
    s, y = np.asarray(CHOSEN[COUNTED], np.float64), LABELS[COUNTED]
    expected = -(y * log_sigmoid(s) + (1 - y) * log_sigmoid(-s)).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    signed = s * (2 * y - 1)
    told = {"accuracy": (signed > 0).mean(), "margin": signed.mean(), "mean_reward": s.mean()}
    assert jax.tree.map(float, metrics) == pytest.approx(told, rel=1e-6)


@pytest.mark.parametrize("size", [200.0, -200.0])
def test_large_scores_give_finite_losses_and_gradients(size):
    chosen, rejected = jnp.full(2, size), jnp.zeros(2)
    for value, gradient in (
        jax.value_and_grad(lambda c: bradley_terry_loss(c, rejected)[0])(chosen),
        jax.value_and_grad(lambda c: pointwise_loss(c, jnp.ones(2))[0])(chosen),
    ):
        assert float(value) == pytest.approx(max(-size, 0.0))
        np.testing.assert_allclose(gradient, [0.0, 0.0] if size > 0 else [-0.5, -0.5], atol=1e-6)


def test_parts_add_up_to_the_whole():
    """Parts with 6 and 4 rows that count: a mean over each would weigh the second's rows more."""
    count = jnp.float32(COUNTED.sum())
    halves = (slice(0, 6), slice(6, 12))
    pairs = [bradley_terry_loss(CHOSEN[h], REJECTED[h], MARGIN[h], COUNTED[h], count) for h in halves]
    points = [pointwise_loss(CHOSEN[h], LABELS[h], COUNTED[h], count) for h in halves]
    wholes = bradley_terry_loss(CHOSEN, REJECTED, MARGIN, COUNTED), pointwise_loss(CHOSEN, LABELS, COUNTED)
    for parts, whole in zip((pairs, points), wholes, strict=True):
        added = jax.tree.map(lambda a, b: float(a + b), *parts)
        assert jax.tree.leaves(added) == pytest.approx(jax.tree.leaves(jax.tree.map(float, whole)), rel=1e-5)


def test_rows_that_do_not_count_do_no_harm():
    other = np.where(COUNTED, CHOSEN, -1e6).astype(np.float32)
    loss, gradient = jax.value_and_grad(lambda c: bradley_terry_loss(c, REJECTED, 0.0, COUNTED)[0])(other)
    assert float(loss) == float(bradley_terry_loss(CHOSEN, REJECTED, 0.0, COUNTED)[0])
    np.testing.assert_array_equal(np.asarray(gradient) != 0, COUNTED)
    assert float(bradley_terry_loss(CHOSEN, REJECTED, 0.0, np.zeros(12, bool))[0]) == 0.0
