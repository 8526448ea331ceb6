"""Routing, the experts' arithmetic and its hand-written gradients."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from helpers import method, pure, random_state, random_tokens, relative_error, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from r1jax.models import experts as ex
from r1jax.models.layers import MLP, Embedding, FeaturesFirst, matmul, matmul_features_first
from r1jax.models.moe import EveryExpert, MoE, Router, RouterBias, balance_bias, top_k

D = 8
CONFIG = tiny_config(hidden_size=D, moe_intermediate_size=4)


@functools.cache
def moe_layer(**changes) -> MoE:
    """A layer alone; its weights are those of the first MoE layer of a random model."""
    config = CONFIG.replace(**changes)
    state = random_state(config)["moe_layers"]["mlp"]
    module = nnx.eval_shape(lambda: MoE(config, nnx.Rngs(params=0)))
    nnx.update(module, jax.tree.map(lambda a: a[0], state))
    return module


def router_with(scores, bias, **changes) -> tuple[Router, jax.Array]:
    """A router, and the one input for which its sigmoid scores are `scores`."""
    config = tiny_config(hidden_size=len(scores), n_routed_experts=len(scores), **changes)
    router = Router(config, nnx.Rngs(params=0))
    router.weight[...] = jnp.eye(len(scores))
    router.e_score_correction_bias[...] = jnp.asarray(bias, jnp.float32)
    scores = jnp.asarray(scores, jnp.float32)
    return router, jnp.log(scores / (1 - scores))[None, None]


def choose(router, x):
    weights, routing = router(x, None, None)
    order = np.argsort(routing.experts[0, 0])
    return np.asarray(routing.experts[0, 0])[order].tolist(), np.asarray(weights[0, 0])[order]


def test_selection_with_negative_biased_scores_by_hand():
    # Groups (0 1) (2 3) (4 5) (6 7), two kept, three experts each token. Biased: -.1 -.9 | -.3 -.2 | -.8 -.7 | -.6 -.9.
    # Group sums -1.0, -0.5, -1.5, -1.5: groups 0 and 1 are kept; of -.1 -.9 -.3 -.2 the best three are 0, 3 and 2.
    # Masking the others with 0 would prefer 4, 5, 6 and 7 to all of them.
    scores = np.array([0.9, 0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.4])
    biased = np.array([-0.1, -0.9, -0.3, -0.2, -0.8, -0.7, -0.6, -0.9])
    router, x = router_with(scores, biased - scores)
    chosen, weights = choose(router, x)
    assert chosen == [0, 2, 3]
    np.testing.assert_allclose(weights, np.array([0.9, 0.2, 0.3]) / 1.4 * 2.5, rtol=1e-5)


def test_a_group_is_judged_by_its_two_best():
    # Four experts a group; the first group's best is the best of all, but its two best sum to less.
    scores = np.array([0.9, 0.1, 0.1, 0.1, 0.6, 0.6, 0.1, 0.1])
    router, x = router_with(scores, np.zeros(8), n_group=2, topk_group=1, num_experts_per_tok=2)
    assert choose(router, x)[0] == [4, 5]
    router, x = router_with(scores, np.zeros(8), n_group=1, topk_group=1, num_experts_per_tok=2)
    assert choose(router, x)[0][0] == 0


def test_the_bias_selects_and_does_not_weigh():
    scores = np.array([0.9, 0.8, 0.7, 0.2])
    free = dict(n_group=1, topk_group=1, num_experts_per_tok=2)
    router, x = router_with(scores, [0, 0, 0, 1], **free)
    chosen, weights = choose(router, x)
    assert chosen == [0, 3]
    np.testing.assert_allclose(weights, np.array([0.9, 0.2]) / 1.1 * 2.5, rtol=1e-5)
    router, x = router_with(scores, [0, 0, 0, 1], **free, norm_topk_prob=False)
    np.testing.assert_allclose(choose(router, x)[1], np.array([0.9, 0.2]) * 2.5, rtol=1e-5)


def test_the_bias_stays_float32_and_takes_no_gradient():
    config = tiny_config(param_dtype="bfloat16")
    state = random_state(config)
    dtypes = {
        (jax.tree_util.keystr(path[-2:]) if len(path) > 1 else "", str(a.dtype))
        for path, a in jax.tree_util.tree_leaves_with_path(pure(state))
    }
    assert {d for name, d in dtypes if "correction_bias" in name} == {"float32"}
    assert {d for name, d in dtypes if "correction_bias" not in name} == {"bfloat16"}
    params = nnx.split_state(state, nnx.Param, ...)[0]
    assert not any("correction_bias" in jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(params))
    # A step of 0.001 on a bias near 1 would vanish in bfloat16.
    bias = jnp.ones(4, jnp.float32)
    assert (balance_bias(bias, jnp.array([4.0, 0, 0, 0]), 0.001) != bias).all()


def test_scores_are_float32_whatever_the_activations():
    router, _ = router_with([0.5, 0.5, 0.5, 0.5], np.zeros(4), n_group=1, topk_group=1)
    # 1 + 2^-7 is a bfloat16, its product with 1 + 2^-9 is not: rounding the scores' product would lose it.
    router.weight[...] = jnp.eye(4) * (1 + 2.0**-9)
    scores = router.scores(jnp.full((1, 1, 4), 1 + 2.0**-7, jnp.bfloat16))
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-(1 + 2.0**-7) * (1 + 2.0**-9))), rtol=1e-6)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_routing_equals_the_reference(seed):
    layer = moe_layer().router
    x = np.random.default_rng(seed).standard_normal((1, 5, D)).astype(np.float32)
    weights, routing = _route(nnx.state(layer), x)
    for t in range(5):
        want = reference.route(
            x[0, t].astype(np.float64),
            np.asarray(layer.weight[...], np.float64),
            np.asarray(layer.e_score_correction_bias[...], np.float64),
            CONFIG,
        )
        got = dict(zip(routing.experts[0, t].tolist(), weights[0, t].tolist(), strict=True))
        assert got == pytest.approx(want, rel=1e-4)
    np.testing.assert_allclose(weights.sum(axis=-1), 2.5, rtol=1e-5)


@jax.jit
def _route(state, x):
    return nnx.merge(nnx.graphdef(moe_layer().router), state)(x, None, None)


@given(st.lists(st.sampled_from([-np.inf, -1.5, -0.25, 0.0, 0.5, 2.0]), min_size=1, max_size=12), st.data())
@settings(max_examples=100, deadline=None)
def test_top_k_among_few_is_lax_top_k(values, data):
    """Ties, of which the first wins, and -inf, which a group left out has."""
    x, k = jnp.array(values, jnp.float32), data.draw(st.integers(1, len(values)))
    for got, want in zip(top_k(x, k), jax.lax.top_k(x, k), strict=True):
        np.testing.assert_array_equal(got, want)


# Dropless: the batch is nobody's business.


@functools.cache
def experts_fn(backend: str):
    layer = moe_layer()
    matrices = [layer.gate_proj[...], layer.up_proj[...], layer.down_proj[...]]
    return jax.jit(lambda x, experts, weights: ex.expert_mlps(x, experts, weights, *matrices, backend))


def by_hand(x, experts, weights):
    layer = moe_layer()
    p = {k: np.asarray(getattr(layer, k)[...], np.float64) for k in ("gate_proj", "up_proj", "down_proj")}
    rows = [
        sum(w * reference.swiglu(row, {k: v[e] for k, v in p.items()}) for e, w in zip(es, ws, strict=True) if e < 8)
        for row, es, ws in zip(x.astype(np.float64), experts, weights, strict=True)
    ]
    return np.array([np.zeros(D) if isinstance(r, int) else r for r in rows])


@st.composite
def routings(draw, tokens=24, experts=8, k=3):
    """Each token's distinct experts; often every token has the same ones, or nearly."""
    kind = draw(st.sampled_from(["any", "same", "last", "one rogue"]))
    one = st.permutations(range(experts)).map(lambda p: p[:k])
    if kind == "any":
        return np.array(draw(st.lists(one, min_size=tokens, max_size=tokens)), np.int32)
    rows = np.tile(np.array([5, 6, 7] if kind == "last" else draw(one), np.int32), (tokens, 1))
    if kind == "one rogue":
        rows[draw(st.integers(0, tokens - 1))] = draw(one)
    return rows


@pytest.mark.parametrize("backend", ["tiled", "ragged"])
@given(routings(), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_dropless_at_any_imbalance(backend, experts, seed):
    rng = np.random.default_rng(seed)
    x, weights = (rng.standard_normal(s).astype(np.float32) for s in ((24, D), (24, 3)))
    together = experts_fn(backend)(x, experts, weights)
    assert relative_error(together, by_hand(x, experts, weights)) < 1e-5
    i = int(rng.integers(24))
    alone = experts_fn(backend)(x[i : i + 1], experts[i : i + 1], weights[i : i + 1])
    assert relative_error(alone, together[i : i + 1]) < 1e-5


@pytest.mark.parametrize("tile", [8, 16])
@pytest.mark.parametrize("spread", ["over all", "on one", "on none"])
def test_tiles_one_after_the_other_are_tiles_all_at_once(spread, tile):
    """Without a gradient, and with one."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, D)).astype(np.float32)
    gate, up = rng.standard_normal((2, 6, D, 4)).astype(np.float32)
    down = rng.standard_normal((6, 4, D)).astype(np.float32)
    experts = np.argsort(rng.random((50, 6)), axis=1)[:, :2]
    if spread != "over all":
        experts[:] = (3, -1) if spread == "on one" else -1
    slots = ex.assign_slots(jnp.asarray(experts, jnp.int32), 6, tile)
    run = lambda x: ex.tiled_mlps(tile, x, gate, up, down, slots.source, slots.dest, slots.group_sizes)  # noqa: E731
    alone, (together, _) = jax.jit(run)(x), jax.vjp(run, x)
    used = int(slots.group_sizes.sum())
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-5)
    assert not alone[used:].any() and (used == 0) == (spread == "on none")


@pytest.mark.parametrize("form", [MoE, EveryExpert])
def test_padding_reaches_no_expert(form):
    layer, x = moe_layer(n_shared_experts=0), np.random.default_rng(0).standard_normal((4, 64, D)).astype(np.float32)
    mask = np.arange(64) < np.array([64, 40, 1, 0])[:, None]
    graph, state = nnx.split(layer if form is MoE else layer.prepared(6))
    run = jax.jit(lambda state, x, mask: nnx.merge(graph, state)(x, ("batch", "length"), mask)[0])
    want, got = run(state, x, np.ones_like(mask)), run(state, x, mask)
    np.testing.assert_allclose(got[mask], want[mask], rtol=1e-5, atol=1e-5)
    assert np.abs(want[~mask]).min(axis=-1).max() > 0 and not got[~mask].any()


NEAR = {"float32": 1e-5, "bfloat16": 1e-2}  # a product rounds to 2^-9 of it


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("shared", [0, 1, 2])
def test_every_expert_for_few_tokens_is_the_same_layer(shared, dtype):
    layer = moe_layer(n_shared_experts=shared)
    few = layer.prepared(6)
    assert isinstance(few, EveryExpert) and layer.prepared(4096) is layer
    x = jnp.asarray(np.random.default_rng(shared).standard_normal((3, 2, D)), dtype)
    (want, routing), (got, routed) = (_forward(*nnx.split(m), x) for m in (layer, few))
    assert got.dtype == dtype and relative_error(got, want) < NEAR[dtype]
    np.testing.assert_array_equal(routed.experts, routing.experts)


@pytest.mark.parametrize("tokens", [1, 6])
@pytest.mark.parametrize("dtype", NEAR)
def test_dense_layers_for_few_tokens_are_the_same_layer(dtype, tokens):
    layer = MLP(CONFIG, 24, nnx.Rngs(params=0))
    few = layer.prepared(6)
    assert isinstance(few, FeaturesFirst) and layer.prepared(4096) is layer
    x = jnp.asarray(np.random.default_rng(0).standard_normal((tokens, 1, D)), dtype)
    want, got = (m(x, ("prompt", "group")) for m in (layer, few))
    assert got.dtype == dtype and relative_error(got, want) < NEAR[dtype]


@pytest.mark.parametrize("rows", [(1,), (2, 1), (3, 2)])
@pytest.mark.parametrize("contract", [1, 2])
def test_a_product_in_bfloat16_is_rounded_once_whatever_its_shape(rows, contract):
    rng = np.random.default_rng(0)
    shared = (6, 16)[-contract:]
    x, w = (jnp.asarray(rng.standard_normal(s), jnp.bfloat16) for s in ((*rows, *shared), (*shared, 5, 3)))
    exact = np.tensordot(np.asarray(x, np.float64), np.asarray(w, np.float64), contract)
    y, back = jax.vjp(lambda x, w: matmul(x, w, contract), x, w)
    assert y.shape == exact.shape and y.dtype == jnp.bfloat16
    assert relative_error(y, exact) < 2**-8
    g = jnp.asarray(rng.standard_normal(y.shape), jnp.bfloat16)
    for got, of, axes in zip(back(g), (x, w), (((-2, -1), (-2, -1)), ([*range(len(rows))],) * 2), strict=True):
        first, second = (g, w) if of is x else (x, g)
        want = np.tensordot(np.asarray(first, np.float64), np.asarray(second, np.float64), axes)
        assert got.shape == of.shape and got.dtype == jnp.bfloat16 and relative_error(got, want) < 2**-8


def float32_copies(function, x, w) -> int:
    """How often the compiled program makes float32 of something as large as w."""
    text = jax.jit(function).lower(x, w).compile().as_text()
    return sum(math.prod(map(int, dims.split(","))) == w.size for dims in re.findall(r"= f32\[([\d,]+)\]", text))


@pytest.mark.parametrize("rows", [1, 8])
def test_bfloat16_weights_are_not_copied_into_float32(rows):
    """XLA on CPU does so for a product that is asked for in bfloat16, and for one of a single row."""
    x, w = jnp.ones((rows, 96), jnp.bfloat16), jnp.ones((96, 160), jnp.bfloat16)
    plain = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    if jax.default_backend() == "cpu" and float32_copies(plain, jnp.ones((8, 96), jnp.bfloat16), w):
        pytest.skip("this processor multiplies no bfloat16")
    assert not float32_copies(matmul, x, w)
    assert not float32_copies(matmul_features_first, x, w.T)
    few = MLP(CONFIG.replace(hidden_size=96), 160, nnx.Rngs(params=0)).prepared(rows)
    few.in_proj[...], few.out_proj[...] = (p[...].astype(jnp.bfloat16) for p in (few.in_proj, few.out_proj))
    graph, state = nnx.split(few)
    run = lambda x, into: nnx.merge(graph, state)(x, ("prompt", "group"))  # noqa: E731
    assert not float32_copies(run, x[None], few.in_proj[...])


def test_a_tile_is_the_cheapest():
    """Few rows in small tiles, many in large ones, and every expert for each of few tokens."""
    tiles = [ex.choose_tile(rows, 8) for rows in (8, 128, 512, 4096, 1 << 20)]
    assert tiles == sorted(tiles) and tiles[0] == 8 and tiles[-1] == 512
    for rows, tile in zip((8, 128, 512, 4096, 1 << 20), tiles, strict=True):
        assert all(ex.tiled_cost(rows, 8, tile) <= ex.tiled_cost(rows, 8, other) for other in (8, 32, 128, 512))
    few = [ex.few_tokens(tokens, 2, 8) for tokens in (1, 16, 64, 512, 8192)]
    assert few == sorted(few, reverse=True) and few[0] and not few[-1]


@functools.partial(jax.jit, static_argnums=0)
def _forward(graph, state, x, experts=None):
    return nnx.merge(graph, state)(x, ("prompt", "group"), None, experts)


def test_an_expert_that_overflows_reaches_nobody_who_has_not_chosen_it():
    layer = nnx.clone(moe_layer())
    layer.gate_proj[...] = layer.gate_proj[...].at[2].set(3e38)
    x = np.ones((4, 1, D), np.float32)
    experts = np.array([[0, 1, 4], [3, 4, 5], [2, 0, 1], [6, 7, 3]], np.int32)[:, None]
    y, _ = _forward(*nnx.split(layer.prepared(4)), x, experts)
    assert np.isfinite(y[jnp.array([0, 1, 3])]).all() and not np.isfinite(y[2]).all()


def test_a_token_does_not_see_the_batch_through_the_model():
    """Whole model: a sequence alone, beside others, and beside copies of itself (all on the same experts)."""
    config = tiny_config(num_nextn_predict_layers=0)
    state, run = random_state(config), method(config, "__call__")
    tokens = random_tokens((6, 10), seed=5)
    among = run(state, tokens)
    copies = run(state, np.repeat(tokens[:1], 6, axis=0))
    alone = run(state, tokens[:1])
    assert relative_error(among[:1], alone) < 1e-5
    for copy in copies:
        assert relative_error(copy[None], alone) < 1e-5


assign_slots = jax.jit(ex.assign_slots, static_argnums=(1, 2))


@given(st.data(), st.sampled_from([1, 3]), st.sampled_from([1, 4]), st.sampled_from([2, 5]), st.integers(0, 8))
@settings(max_examples=80, deadline=None)
def test_assign_slots(data, k, tile, local, offset):
    """`local` experts live here, of 12 in all; the others' numbers fall outside 0..local-1 on either side."""
    n = 9
    one = st.permutations(range(12)).map(lambda p: p[:k])
    experts = np.array(data.draw(st.lists(one, min_size=n, max_size=n)), np.int32) - offset
    source, dest, sizes, _ = (np.asarray(a) for a in assign_slots(jnp.asarray(experts), local, tile))
    slots = len(source)
    assert (sizes % tile == 0).all() and sizes.sum() <= slots
    owner = np.repeat(np.arange(local), sizes)
    flat, where = experts.reshape(-1), dest.reshape(-1)
    for row, (e, slot) in enumerate(zip(flat, where, strict=True)):
        if 0 <= e < local:
            assert source[slot] == row and owner[slot] == e
        else:
            assert slot == slots and row not in source
    filled = source < n * k
    assert sorted(source[filled]) == sorted(np.flatnonzero((flat >= 0) & (flat < local)))
    assert (sizes - np.bincount(flat[(flat >= 0) & (flat < local)], minlength=local) < tile).all()


# Gradients written by hand, against finite differences in float64.


@pytest.fixture
def slots():
    experts = jnp.array([[0, 2], [2, 1], [2, 5], [-1, 4]], jnp.int32)  # the last has no expert here, one has one
    return ex.assign_slots(experts, 3, 2)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


@pytest.mark.parametrize("contract", [1, 2])
def test_matmul_gradients(contract):
    with jax.enable_x64():
        x, w = (normal(2, 3, 4), normal(4, 5, 2)) if contract == 1 else (normal(2, 3, 4, 5), normal(4, 5, 2))
        np.testing.assert_allclose(matmul(x, w, contract), np.tensordot(x, w, contract), rtol=1e-12)
        check_grads(lambda x, w: matmul(x, w, contract), (x, w), order=1, modes=["rev"])


def test_dispatch_and_combine_gradients(slots):
    with jax.enable_x64():
        x, y, weights = normal(4, 3), normal(len(slots.source), 3), normal(4, 2)
        check_grads(lambda x: ex.dispatch(x, slots.source, slots.dest), (x,), order=1, modes=["rev"])
        check_grads(lambda y, w: ex.combine(y, w, slots.source, slots.dest), (y, weights), order=1, modes=["rev"])
        gradient = jax.grad(lambda x: ex.dispatch(x, slots.source, slots.dest).sum())(x)
        np.testing.assert_array_equal(gradient[:, 0], [2, 2, 1, 0])  # once for each copy


def test_tiled_matmul_gradients():
    with jax.enable_x64():
        owner = jnp.array([0, 2, 2, 2])  # an expert with no tile, one with several
        x, w = normal(4, 2, 3), normal(3, 3, 5)
        np.testing.assert_allclose(ex.tiled_matmul(x, w, owner), np.einsum("sci,sio->sco", x, w[owner]), rtol=1e-12)
        check_grads(lambda x, w: ex.tiled_matmul(x, w, owner), (x, w), order=1, modes=["rev"])
        dw = jax.grad(lambda w: ex.tiled_matmul(x, w, owner).sum())(w)
        assert (dw[1] == 0).all()


def test_embedding_gradient_in_bfloat16_adds_up():
    """A frequent token's rows are summed in the parameters' float32: in bfloat16 256 + 1 is 256."""
    config = tiny_config(dtype="bfloat16", param_dtype="float32", vocab_size=4)
    embedding = Embedding(config, nnx.Rngs(params=0))
    tokens = jnp.zeros((1, 4096), jnp.int32)
    gradient = jax.grad(lambda m: m(tokens).astype(jnp.float32).sum())(embedding)
    np.testing.assert_allclose(gradient.weight[...][0], 4096, rtol=1e-3)


# Balance


def test_balance_bias_moves_toward_balance():
    """Tokens all prefer the same experts; the bias alone spreads them."""
    rng = np.random.default_rng(0)
    config = tiny_config(hidden_size=8, n_group=1, topk_group=1, num_experts_per_tok=2)
    router = Router(config, nnx.Rngs(params=0))
    router.weight[...] = jnp.eye(8)
    x = jnp.asarray(0.5 * rng.standard_normal((4, 64, 8)) + np.linspace(-1, 1, 8), jnp.float32)

    graph, bias, rest = nnx.split(router, RouterBias, ...)

    @jax.jit
    def step(bias):
        load = nnx.merge(graph, bias, rest)(x, None, None)[1].load
        return jax.tree.map(lambda b: balance_bias(b, load, 0.01), bias), load

    loads = []
    for _ in range(100):
        bias, load = step(bias)
        loads.append(np.asarray(load))
        assert load.sum() == 4 * 64 * 2
    assert loads[0].max() / loads[0].mean() > 2
    assert loads[-1].max() / loads[-1].mean() < 1.3
    np.testing.assert_array_equal(
        balance_bias(jnp.zeros((2, 2)), jnp.array([[3.0, 1], [2, 2]]), 0.1), np.float32([[-0.1, 0.1], [0, 0]])
    )


def test_balance_loss_by_brute_force():
    """DeepSeek-V3, equations 17 to 20, sequence by sequence; padding counts neither there nor in the load."""
    layer = moe_layer().router
    x = np.random.default_rng(3).standard_normal((2, 6, D)).astype(np.float32)
    mask = np.array([[1] * 6, [1] * 4 + [0] * 2], bool)
    _, routing = layer(jnp.asarray(x), jnp.asarray(mask), None)
    scores = 1 / (1 + np.exp(-x.astype(np.float64) @ np.asarray(layer.weight[...], np.float64)))
    total, load = 0.0, np.zeros(8)
    for n in range(2):
        length = mask[n].sum()
        for i in range(8):
            f = p = 0.0
            for t in range(length):
                chosen = i in routing.experts[n, t]
                load[i] += chosen
                f += 8 / (3 * length) * chosen
                p += scores[n, t, i] / scores[n, t].sum() / length
            total += f * p / 2
    assert routing.balance_loss == pytest.approx(total, rel=1e-5)
    np.testing.assert_array_equal(routing.load, load)


def test_perfect_balance_costs_one():
    config = tiny_config(hidden_size=4, n_routed_experts=4, num_experts_per_tok=1, n_group=1, topk_group=1)
    router = Router(config, nnx.Rngs(params=0))
    router.weight[...] = 1e-3 * jnp.eye(4)
    _, routing = router(jnp.eye(4)[None], None, None)
    assert routing.balance_loss == pytest.approx(1, rel=1e-3)
    _, routing = router(jnp.repeat(jnp.eye(4)[None, :1], 4, axis=1) * 3000, None, None)
    assert routing.balance_loss > 1.5


def test_replayed_experts_are_used():
    layer = moe_layer()
    x = jnp.asarray(np.random.default_rng(4).standard_normal((1, 3, D)), jnp.float32)
    wanted = jnp.array([[[0, 1, 2], [7, 6, 5], [3, 0, 7]]], jnp.int32)
    y, routing = layer(x, ("batch", "length"), experts=wanted)
    np.testing.assert_array_equal(routing.experts, wanted)
    free, chosen = layer(x, ("batch", "length"))
    assert relative_error(y, free) > 0.1
    replayed, _ = layer(x, ("batch", "length"), experts=chosen.experts)
    np.testing.assert_array_equal(replayed, free)
