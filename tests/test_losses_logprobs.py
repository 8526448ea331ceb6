"""Log-probabilities of given tokens: aligned, exact in chunks, float32 whatever the compute dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import graphdef, make_layout, random_state, relative_error, tiny_config

from r1jax import sharding
from r1jax.errors import ConfigError
from r1jax.losses.logprobs import next_token_logprobs

B, T, D, V = 2, 12, 6, 20
RNG = np.random.default_rng(0)
HIDDEN = RNG.standard_normal((B, T, D)).astype(np.float32)
HEAD = RNG.standard_normal((D, V)).astype(np.float32)
TOKENS = RNG.integers(0, V, (B, T)).astype(np.int32)
ALLOWED = np.arange(V) % 3 != 1


def reference(hidden, head, *, shift=1, temperature=1.0, allowed=None):
    """(log-probabilities, entropies) in float64, one token at a time."""
    logps, entropies = np.zeros((B, T)), np.zeros((B, T))
    for b in range(B):
        for t in range(shift, T):
            logits = hidden[b, t - shift].astype(np.float64) @ head.astype(np.float64) / temperature
            p = np.exp(logits) * (1 if allowed is None else allowed)
            p /= p.sum()
            with np.errstate(divide="ignore"):
                logps[b, t] = np.log(p[TOKENS[b, t]])
            entropies[b, t] = -sum(q * np.log(q) for q in p if q > 0)
    return logps, entropies


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(temperature=0.6),
        dict(shift=2),
        dict(allowed=ALLOWED),
        dict(shift=2, temperature=1.7, allowed=ALLOWED),
    ],
)
@pytest.mark.parametrize("chunk", [0, 4, 12, 100])
def test_values(options, chunk):
    logps, entropy = next_token_logprobs(HIDDEN, HEAD, TOKENS, chunk=chunk, **options)
    want_logps, want_entropy = reference(HIDDEN, HEAD, **options)
    np.testing.assert_allclose(logps, want_logps, atol=1e-5)
    np.testing.assert_allclose(entropy, want_entropy, atol=1e-4)


def test_entropy_keeps_its_digits_under_large_logits():
    """What all logits share changes nothing; the difference logz - sum(p * logit) would be off by several nats."""
    hidden, head = np.round(HIDDEN * 16) / 16, np.round(HEAD * 16) / 16  # float32 holds these logits + 8192 exactly
    _, want = reference(hidden, head)
    hidden = np.concatenate([hidden, np.full((B, T, 1), 8192, np.float32)], axis=-1)
    _, entropy = next_token_logprobs(hidden, np.concatenate([head, np.ones((1, V), np.float32)]), TOKENS)
    np.testing.assert_allclose(entropy, want, atol=1e-6)


def test_trap_1_temperature_zero_counts_as_one():
    greedy, _ = next_token_logprobs(HIDDEN, HEAD, TOKENS, temperature=0.0)
    np.testing.assert_array_equal(greedy, next_token_logprobs(HIDDEN, HEAD, TOKENS, temperature=1.0)[0])


def test_trap_4_entry_t_belongs_to_token_t():
    """Changing token t changes entry t, and no other: the states are given."""
    for t in range(1, T):
        changed = TOKENS.copy()
        changed[:, t] = (changed[:, t] + 1) % V
        difference = next_token_logprobs(HIDDEN, HEAD, changed)[0] - next_token_logprobs(HIDDEN, HEAD, TOKENS)[0]
        assert np.flatnonzero(np.asarray(difference).any(axis=0)).tolist() == [t]


@pytest.mark.parametrize("chunk", [3, 6])
def test_chunks_give_the_same_gradients(chunk):
    weights = RNG.standard_normal((B, T)).astype(np.float32)

    def loss(hidden, head, chunk):
        logps, entropy = next_token_logprobs(
            hidden, head, TOKENS, temperature=0.8, allowed=np.ones(V, bool), chunk=chunk
        )
        return (logps * weights).sum() + 100 * entropy.sum()  # entropy is a metric: it has no gradient

    def plain(hidden, head):
        logps = jax.nn.log_softmax(hidden @ head / 0.8)
        chosen = jnp.take_along_axis(logps[:, :-1], TOKENS[:, 1:, None], axis=-1)[..., 0]
        return (chosen * weights[:, 1:]).sum()

    want = jax.grad(plain, argnums=(0, 1))(HIDDEN, HEAD)
    for c in (0, chunk):
        got = jax.grad(loss, argnums=(0, 1))(HIDDEN, HEAD, c)
        for g, w in zip(got, want, strict=True):
            assert relative_error(g, w) < 1e-5


def test_gradients_stay_finite_where_a_token_is_not_allowed():
    """Prompts and padding hold ids that are never drawn; the loss masks them, after the fact."""

    def loss(hidden, head):
        logps, _ = next_token_logprobs(hidden, head, TOKENS, allowed=ALLOWED)
        return jnp.where(ALLOWED[TOKENS], logps, 0.0).sum()

    assert np.isneginf(np.asarray(next_token_logprobs(HIDDEN, HEAD, TOKENS, allowed=ALLOWED)[0])).any()
    for g in jax.grad(loss, argnums=(0, 1))(HIDDEN, HEAD):
        assert np.isfinite(g).all()


def sizes(jaxpr):
    """Sizes of every array that a program makes, inside loops too."""
    for equation in jaxpr.eqns:
        yield from (v.aval.size for v in equation.outvars if hasattr(v.aval, "size"))
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner := getattr(inner, "jaxpr", inner), "eqns"):
                    yield from sizes(inner)


def test_no_array_of_batch_by_length_by_vocabulary():
    def loss(hidden, head, chunk):
        return next_token_logprobs(hidden, head, TOKENS, chunk=chunk)[0].sum()

    def largest(chunk):
        return max(
            sizes(jax.make_jaxpr(jax.value_and_grad(lambda h, w: loss(h, w, chunk), (0, 1)))(HIDDEN, HEAD).jaxpr)
        )

    assert largest(0) == B * T * V
    assert largest(3) < B * T * V / 2


def test_a_chunk_that_does_not_divide_the_length_is_named():
    with pytest.raises(ConfigError, match=r"logits_chunk=5.*12"):
        next_token_logprobs(HIDDEN, HEAD, TOKENS, chunk=5)


def test_trap_10_the_head_is_float32_under_bfloat16():
    hidden = jnp.asarray(HIDDEN, jnp.bfloat16)
    logps, entropy = next_token_logprobs(hidden, HEAD, TOKENS)
    assert logps.dtype == entropy.dtype == jnp.float32
    want, _ = reference(np.asarray(hidden, np.float32), HEAD)
    np.testing.assert_allclose(logps, want, atol=1e-5)  # a head in bfloat16 misses by 1e-2


@pytest.mark.parametrize("tied", [False, True])
def test_trap_10_sampler_and_learner_keep_the_models_head_in_float32(tied):
    """Neither compute in bfloat16 nor the sampler's copy rounds it."""
    config = tiny_config(dtype="bfloat16", num_nextn_predict_layers=0, num_hidden_layers=2, first_k_dense_replace=2,
                         tie_word_embeddings=tied)  # fmt: skip
    state = random_state(config)
    copy = sharding.relay(state, make_layout({"data": 1}, "sample"), config.dtype)
    assert copy["dense_layers"]["mlp"]["up_proj"].get_value().dtype == jnp.bfloat16
    heads = [nnx.merge(graphdef(config), s).head for s in (state, copy)]
    exact = state["embed"]["weight"].get_value().T if tied else state["lm_head"].get_value()
    for head in heads:
        assert head.dtype == jnp.float32
        np.testing.assert_array_equal(head, exact)
    model = nnx.merge(graphdef(config), state)
    assert model(TOKENS).dtype == jnp.float32
