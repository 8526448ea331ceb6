"""GRPO's objective against an independent one in NumPy, float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.configs.training import GRPOConfig
from r1jax.losses.grpo import group_advantages, grpo_loss, loss_denominator

NAN = float("nan")
BASE = GRPOConfig(num_prompts=2, num_generations=4, max_completion_length=9, beta=0.07, epsilon=0.2, epsilon_high=0.28)
CONFIGS = {
    "grpo": BASE,
    "dapo": dataclasses.replace(BASE, loss_type="dapo"),
    "dr_grpo": dataclasses.replace(BASE, loss_type="dr_grpo"),
    "no KL": dataclasses.replace(BASE, beta=0.0),
    "R1's clip": dataclasses.replace(BASE, epsilon=10.0, epsilon_high=None),
}


def problem(seed=0, b=8, t=10):
    """Ragged completions after ragged prompts; ratios far on both sides of the clip; two rows that do not count."""
    rng = np.random.default_rng(seed)
    start = rng.integers(1, 4, b)
    stop = start + np.r_[0, rng.integers(1, 7, b - 1)]  # the first completion is empty
    at = np.arange(t)
    mask = (at >= start[:, None]) & (at < stop[:, None])
    old = -2 * rng.random((b, t))
    logps = old + 0.5 * rng.standard_normal((b, t))
    ref = logps + 0.4 * rng.standard_normal((b, t))
    # What lies outside the mask must not matter, however wild.
    logps, ref = (np.where(mask, a, rng.choice([0.0, -np.inf, 200.0], (b, t))) for a in (logps, ref))
    old = np.where(mask, old, 0.0)
    counted = np.ones(b, bool)
    counted[[2, 5]] = False
    f32 = np.float32
    return logps.astype(f32), old.astype(f32), ref.astype(f32), rng.standard_normal(b).astype(f32), mask, counted


def reference(config, logps, old, ref, advantages, mask, counted):
    """DeepSeekMath's equation 3 with DAPO's two clips, token by token; dapo's and Dr. GRPO's normalisers."""
    sums, tokens = [], 0
    for i in np.flatnonzero(counted):
        losses = []
        for t in np.flatnonzero(mask[i]):
            ratio = np.exp(np.float64(logps[i, t]) - np.float64(old[i, t]))
            clipped = min(max(ratio, 1 - config.epsilon), 1 + config.upper_epsilon)
            surrogate = min(ratio * advantages[i], clipped * advantages[i])
            log_r = np.float64(ref[i, t]) - np.float64(logps[i, t])
            losses.append(-surrogate + config.beta * (np.exp(log_r) - log_r - 1))
        tokens += len(losses)
        sums.append((sum(losses), len(losses)))
    if config.loss_type == "grpo":
        return sum(total / max(n, 1) for total, n in sums) / len(sums)
    if config.loss_type == "dapo":
        return sum(total for total, _ in sums) / tokens
    return sum(total for total, _ in sums) / (len(sums) * config.max_completion_length)


def loss_of(config, logps, old, ref, advantages, mask, counted):
    logps, old, ref, advantages, mask, counted = map(jnp.asarray, (logps, old, ref, advantages, mask, counted))
    ref = ref if config.beta else None
    return grpo_loss(config, logps, old, ref, advantages, mask, counted, loss_denominator(config, mask, counted))


@pytest.mark.parametrize("name", CONFIGS)
def test_loss_is_the_objective(name):
    config, arrays = CONFIGS[name], problem()
    loss, _ = loss_of(config, *arrays)
    assert float(loss) == pytest.approx(reference(config, *arrays), rel=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradient_is_the_objectives_and_zero_outside_the_mask(name):
    config, (logps, *rest) = CONFIGS[name], problem()
    gradient = np.asarray(jax.grad(lambda logps: loss_of(config, logps, *rest)[0])(logps))
    inside = rest[3] & rest[4][:, None]
    assert not gradient[~inside].any()
    for i, t in zip(*np.nonzero(inside), strict=True):
        step = np.zeros(logps.shape)
        step[i, t] = 1e-5
        high, low = (reference(config, logps.astype(np.float64) + s, *rest) for s in (step, -step))
        assert gradient[i, t] == pytest.approx((high - low) / 2e-5, rel=1e-3, abs=1e-6)


def test_metrics_are_sums_over_counted_completion_tokens():
    config, (logps, old, ref, advantages, mask, counted) = CONFIGS["grpo"], problem()
    _, sums = loss_of(config, logps, old, ref, advantages, mask, counted)
    at = mask & counted[:, None]
    ratio = np.exp(np.where(at, logps - old, 0.0).astype(np.float64))
    gap = np.where(at, ref, 0.0).astype(np.float64) - np.where(at, logps, 0.0)
    low = (at & (ratio < 0.8) & (advantages[:, None] < 0)).sum()
    high = (at & (ratio > 1.28) & (advantages[:, None] > 0)).sum()
    assert low and high  # both sides are exercised
    expected = {
        "tokens": at.sum(),
        "kl": ((np.exp(gap) - gap - 1) * at).sum(),
        "ratio_mean": (ratio * at).sum(),
        "clip_ratio/low_mean": low,
        "clip_ratio/high_mean": high,
        "clip_ratio/region_mean": low + high,
    }
    assert {name: float(value) for name, value in sums.items()} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_trap_3_sequences_that_do_not_count_are_in_no_denominator(loss_type):
    """Masking rows out and never having had them is the same: value, gradient and metrics."""
    config = CONFIGS[loss_type]
    arrays = problem()
    counted = arrays[-1]
    without = [a[counted] for a in arrays]
    assert float(loss_of(config, *arrays)[0]) == pytest.approx(float(loss_of(config, *without)[0]), rel=1e-6)
    gradient, shorter = (
        np.asarray(jax.grad(lambda logps, a=a: loss_of(config, logps, *a[1:])[0])(a[0])) for a in (arrays, without)
    )
    np.testing.assert_allclose(gradient[counted], shorter, rtol=1e-5, atol=1e-8)
    assert jax.tree.map(float, loss_of(config, *arrays)[1]) == pytest.approx(
        jax.tree.map(float, loss_of(config, *without)[1]), rel=1e-6
    )


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_trap_2_parts_under_the_whole_batchs_denominator_add_up(loss_type):
    config, arrays = CONFIGS[loss_type], problem()
    denominator = loss_denominator(config, arrays[4], jnp.asarray(arrays[5]))
    parts = [grpo_loss(config, *(jnp.asarray(a[i::4]) for a in arrays), denominator)[0] for i in range(4)]
    assert float(sum(parts)) == pytest.approx(float(loss_of(config, *arrays)[0]), rel=1e-5)


def test_nothing_that_counts_gives_zero_and_no_nan():
    for name, config in CONFIGS.items():
        *arrays, counted = problem()
        loss, _ = loss_of(config, *arrays, np.zeros_like(counted))
        gradient = jax.grad(lambda logps: loss_of(config, logps, *arrays[1:], np.zeros_like(counted))[0])(arrays[0])  # noqa: B023
        assert float(loss) == 0 and not np.asarray(gradient).any(), name


def test_trap_10_the_kl_terms_expected_gradient_is_a_kls():
    """Averaged over the policy's own tokens, k3's gradient is that of KL(ref || policy). k1's would average to 0."""
    rng = np.random.default_rng(1)
    theta, ref_logits = (rng.standard_normal(7).astype(np.float32) for _ in range(2))
    ref = jax.nn.log_softmax(ref_logits)
    one = np.ones((1, 1), bool)

    def kl_term(theta, token):
        logp = jax.nn.log_softmax(theta)[token][None, None]
        config = dataclasses.replace(BASE, beta=1.0)
        return grpo_loss(
            config, logp, jax.lax.stop_gradient(logp), ref[token][None, None], jnp.zeros(1), one, one[0], 1.0
        )[0]

    policy = jax.nn.softmax(theta)
    values, gradients = jax.vmap(jax.value_and_grad(kl_term), (None, 0))(theta, jnp.arange(7))
    expected = policy @ gradients
    forward_kl = jax.grad(lambda theta: (jnp.exp(ref) * (ref - jax.nn.log_softmax(theta))).sum())(theta)
    np.testing.assert_allclose(expected, forward_kl, atol=1e-6)
    assert np.abs(expected).max() > 0.05
    reverse_kl = jax.grad(lambda t: (jax.nn.softmax(t) * (jax.nn.log_softmax(t) - ref)).sum())(theta)
    assert float(expected @ reverse_kl) > 0  # descending the one descends the other
    assert float(policy @ values) == pytest.approx(float(policy @ (jax.nn.log_softmax(theta) - ref)), rel=1e-5)


# --------------------------------------------------------------------------------------------------- advantages


def reference_advantages(rewards, scale):
    out = np.zeros(rewards.shape)
    for row, result in zip(rewards.astype(np.float64), out, strict=True):
        scored = ~np.isnan(row)
        if scored.any() and row[scored].max() > row[scored].min():
            centred = row[scored] - row[scored].mean()
            result[scored] = centred / np.sqrt((centred**2).mean()) if scale else centred
    return out


@pytest.mark.parametrize("scale", [True, False])
def test_advantages(scale):
    rewards = np.random.default_rng(0).choice([0.0, 0.2, 1.0, 1.2, NAN], (40, 8)).astype(np.float32)
    got = group_advantages(jnp.asarray(rewards), scale)
    np.testing.assert_allclose(got.advantages, reference_advantages(rewards, scale), atol=2e-6)
    np.testing.assert_array_equal(got.scored, ~np.isnan(rewards))


def test_no_epsilon_in_the_standard_deviation():
    tiny = jnp.array([[0.0, 0.0, 0.0, 1e-6]])
    np.testing.assert_allclose(group_advantages(tiny).advantages[0], np.array([-1, -1, -1, 3]) / np.sqrt(3), rtol=1e-5)


def test_equal_rewards_have_exactly_no_advantage():
    """0.1 three times sums to something else in float32: a comparison decides, not a rounded deviation."""
    rewards = jnp.array([[0.1] * 7, [0.1] * 6 + [NAN], [NAN] * 7, [NAN] * 6 + [0.3], [0.0] * 6 + [0.1]])
    got = group_advantages(rewards)
    assert got.zero_std.tolist() == [True, True, True, True, False]
    assert not np.asarray(got.advantages[:4]).any()
    assert np.asarray(got.advantages[4]).any()
    assert np.isfinite(got.advantages).all()
