"""The routed experts' arithmetic: every token through each of its experts, none dropped, at any imbalance.

Rows (one for each token and chosen expert) are sorted by expert into *slots*. On TPU and GPU `lax.ragged_dot`
multiplies the runs as they are. XLA's CPU backend would do every expert for every row there, so on CPU each expert's
run is padded to whole tiles, each of which is multiplied by its expert's weights, all at once or one after the other:
exact, dropless, and at most one tile of waste an expert.

On a mesh, experts live on the axes of logical axis "expert". A device gathers the tokens of the devices that share the
experts' axes, does the part of its own experts, and the parts are summed and scattered back to the tokens' owners.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from r1jax import sharding
from r1jax.errors import check_field
from r1jax.models.layers import matmul, precision

# Measured on CPU with experts of 128 x 64 and 256 x 128. Copying together the weights of a tile's expert takes as long
# as multiplying COPY rows by them; a row among those of every token with every expert as long as EVERY rows in tiles.
COPY, EVERY = 32, 1.5
LARGE = 256  # rows of a tile beside which copies and padding matter less than that both cores work on it


class Slots(NamedTuple):
    """Where each row goes. N tokens with k experts each make N k rows in M slots; one past the end means nowhere."""

    source: Int[Array, "M"]  # the row in each slot; N k for an empty slot
    dest: Int[Array, "N k"]  # the slot of each row; M for a row whose expert is not here
    group_sizes: Int[Array, "E"]  # slots in each expert's run, padding included
    tile: int  # runs start at multiples of this


def assign_slots(experts: Int[Array, "N k"], num_experts: int, tile: int) -> Slots:
    """Sorts rows by expert. Rows of experts outside 0..num_experts-1 go nowhere: another device has those, or no
    device has, where a token is padding."""
    n, k = experts.shape
    flat = experts.reshape(-1)
    here = (flat >= 0) & (flat < num_experts)
    key = jnp.where(here, flat, num_experts)
    # At most min(k, num_experts) of a token's (distinct) experts are here, which bounds the slots for any routing.
    rows = n * min(k, num_experts)
    slots = rows if tile == 1 else (-(-rows // tile) + num_experts) * tile
    counts = jnp.bincount(key, length=num_experts + 1).astype(jnp.int32)
    aligned = -(-counts // tile) * tile
    order = jnp.argsort(key, stable=True)
    sorted_key = key[order]
    rank = jnp.arange(n * k, dtype=jnp.int32) - (jnp.cumsum(counts) - counts)[sorted_key]
    dest = jnp.where(sorted_key < num_experts, (jnp.cumsum(aligned) - aligned)[sorted_key] + rank, slots)
    source = jnp.full(slots, n * k, jnp.int32).at[dest].set(order.astype(jnp.int32), mode="drop")
    dest = jnp.zeros(n * k, jnp.int32).at[order].set(dest.astype(jnp.int32))
    return Slots(source, dest.reshape(n, k), aligned[:num_experts], tile)


def _take(x: Array, index: Array) -> Array:
    """Rows of x; zeros where index is past the end."""
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


# Moving rows to slots and back are permutations with holes: both directions and both gradients are gathers. Left to
# automatic differentiation the gradients would be scatters, which are slow everywhere.
@jax.custom_vjp
def dispatch(x: Float[Array, "N D"], source: Int[Array, "M"], dest: Int[Array, "N k"]) -> Float[Array, "M D"]:
    """Copies each token into the slots of its experts."""
    return _take(x, source // dest.shape[1])


def _dispatch_fwd(x, source, dest):
    return dispatch(x, source, dest), dest


def _dispatch_bwd(dest, g):
    return _take(g, dest).sum(axis=1), None, None


dispatch.defvjp(_dispatch_fwd, _dispatch_bwd)


@jax.custom_vjp
def combine(
    y: Float[Array, "M D"], weights: Float[Array, "N k"], source: Int[Array, "M"], dest: Int[Array, "N k"]
) -> Float[Array, "N D"]:
    """The weighted sum of each token's slots, in the weights' (wider) dtype."""
    return jnp.einsum("nkd,nk->nd", _take(y, dest).astype(weights.dtype), weights)


def _combine_fwd(y, weights, source, dest):
    return combine(y, weights, source, dest), (y, weights, source, dest)


def _combine_bwd(saved, g):
    y, weights, source, dest = saved
    dy = _take(g, source // dest.shape[1]) * _take(weights.reshape(-1), source)[:, None]
    dw = jnp.einsum("nkd,nd->nk", _take(y, dest).astype(g.dtype), g)
    return dy.astype(y.dtype), dw, None, None


combine.defvjp(_combine_fwd, _combine_bwd)


@jax.custom_vjp
def tiled_matmul(x: Float[Array, "S C I"], w: Float[Array, "E I O"], owner: Int[Array, "S"]) -> Float[Array, "S C O"]:
    """Multiplies tile s [C, I] by the weights of its expert, owner[s]."""
    return jnp.einsum("sci,sio->sco", x, w[owner], precision=precision(x.dtype))


def _tiled_matmul_fwd(x, w, owner):
    return tiled_matmul(x, w, owner), (x, w, owner)


def _tiled_matmul_bwd(saved, g):
    x, w, owner = saved
    g = lax.optimization_barrier(g)
    prec = precision(x.dtype)
    dx = jnp.einsum("sco,sio->sci", g, w[owner], precision=prec)
    per_tile = jnp.einsum("sci,sco->sio", x, g, precision=prec)
    # Summing tiles into experts as a product: a scatter-add would walk the tiles one element at a time.
    member = (owner[None, :] == jnp.arange(w.shape[0])[:, None]).astype(x.dtype)
    dw = jnp.einsum("es,sio->eio", member, per_tile, precision=prec)
    return dx, dw, None


tiled_matmul.defvjp(_tiled_matmul_fwd, _tiled_matmul_bwd)


def tiled_cost(rows: int, num_experts: int, tile: int) -> int:
    """What the tiled products of so many rows take, at any routing, as a number of rows that would take as long."""
    return (-(-rows // tile) + num_experts) * (tile + COPY)


def choose_tile(rows: int, num_experts: int) -> int:
    """Small tiles copy weights often, large ones multiply much padding: the cheapest power of two."""
    return min((8 << i for i in range(7)), key=functools.partial(tiled_cost, rows, num_experts))


def few_tokens(tokens: int, top_k: int, num_experts: int) -> bool:
    """Whether taking every token through every expert (`moe.EveryExpert`) is cheaper than tiles."""
    rows = tokens * top_k
    return EVERY * tokens * num_experts <= tiled_cost(rows, num_experts, choose_tile(rows, num_experts))


def _in_batches(tile, x, gate, up, down, source, dest, group_sizes) -> Float[Array, "M D"]:
    """`tiled_mlps` by products of all tiles at once."""
    tiles = dispatch(x, source, dest).reshape(-1, tile, x.shape[1])
    owner = _owner(jnp.arange(tiles.shape[0]), tile, group_sizes)
    hidden = jax.nn.silu(tiled_matmul(tiles, gate, owner)) * tiled_matmul(tiles, up, owner)
    return tiled_matmul(hidden, down, owner).reshape(-1, x.shape[1])


def _owner(number: Int[Array, "*S"], tile: int, group_sizes: Int[Array, "E"]) -> Int[Array, "*S"]:
    """The expert of each tile."""
    ends = jnp.cumsum(group_sizes) // tile
    return jnp.searchsorted(ends, number, side="right").clip(max=group_sizes.shape[0] - 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def tiled_mlps(
    tile: int,
    x: Float[Array, "N D"],
    gate: Float[Array, "E D F"],
    up: Float[Array, "E D F"],
    down: Float[Array, "E F D"],
    source: Int[Array, "M"],
    dest: Int[Array, "N k"],
    group_sizes: Int[Array, "E"],
) -> Float[Array, "M D"]:
    """MLP_e(x) in the slots of each expert e; zeros in those past the last run.

    Where no gradient is taken, small tiles go one after the other, those in use. That does less than all of them at
    once, whose number is that of the worst routing, and each works in the processor's cache.
    """
    if tile >= LARGE:
        return _in_batches(tile, x, gate, up, down, source, dest, group_sizes)
    k = dest.shape[1]

    def one(i: Int[Array, ""], y: Float[Array, "M D"]) -> Float[Array, "M D"]:
        e = _owner(i, tile, group_sizes)
        rows = _take(x, lax.dynamic_slice_in_dim(source, i * tile, tile) // k)
        out = matmul(jax.nn.silu(matmul(rows, gate[e])) * matmul(rows, up[e]), down[e])
        return lax.dynamic_update_slice_in_dim(y, out, i * tile, axis=0)

    return lax.fori_loop(0, group_sizes.sum() // tile, one, jnp.zeros((source.shape[0], x.shape[1]), x.dtype))


def _tiled_mlps_fwd(tile, x, gate, up, down, *slots):
    return jax.vjp(lambda *args: _in_batches(tile, *args, *slots), x, gate, up, down)


def _tiled_mlps_bwd(tile, vjp, g):
    return *vjp(g), None, None, None


tiled_mlps.defvjp(_tiled_mlps_fwd, _tiled_mlps_bwd)


def expert_mlps(
    x: Float[Array, "N D"],
    experts: Int[Array, "N k"],
    weights: Float[Array, "N k"],
    gate: Float[Array, "E D F"],
    up: Float[Array, "E D F"],
    down: Float[Array, "E F D"],
    backend: str,
) -> Float[Array, "N D"]:
    """sum_k weights[:, k] * MLP_experts[:, k](x) over the experts given; others contribute nothing."""
    num_experts = gate.shape[0]  # of those here
    if num_experts < experts.shape[1]:  # a token's experts are distinct: nothing is gathered for those not here
        first = jnp.argsort((experts < 0) | (experts >= num_experts), axis=1)[:, :num_experts]
        experts, weights = (jnp.take_along_axis(a, first, axis=1) for a in (experts, weights))
    gate, up, down = (w.astype(x.dtype) for w in (gate, up, down))
    tile = 1 if backend == "ragged" else choose_tile(experts.size, num_experts)
    slots = assign_slots(experts, num_experts, tile)
    if backend == "ragged":
        rows = dispatch(x, slots.source, slots.dest)
        product = functools.partial(lax.ragged_dot, group_sizes=slots.group_sizes, precision=precision(x.dtype))
        y = product(jax.nn.silu(product(rows, gate)) * product(rows, up), down)
    else:
        y = tiled_mlps(tile, x, gate, up, down, slots.source, slots.dest, slots.group_sizes)
    return combine(y, weights, slots.source, slots.dest).astype(x.dtype)


def routed_experts(
    x: Float[Array, "A B D"],
    experts: Int[Array, "A B k"],
    weights: Float[Array, "A B k"],
    gate: Float[Array, "E D F"],
    up: Float[Array, "E D F"],
    down: Float[Array, "E F D"],
    names: tuple[str, str],
    backend: str,
    chunk: int = 0,
) -> Float[Array, "A B D"]:
    """`expert_mlps` for tokens [A, B] laid out by the logical `names` of those two axes, on the current layout.

    Over an expert axis that splits the tokens too, they are gathered and their parts scattered back; over one that
    holds copies of them (a rollout's prompts) nothing need be gathered, and the parts are summed.

    With `chunk` > 0 a device takes that many of its tokens at a time and recomputes them in the backward pass, which
    bounds the dispatch buffers: they must hold the worst routing, all gathered tokens on this device's experts.
    """
    layout = sharding.current()
    expert_axes = mlp_axes = embed_axes = token_axes = ()
    if layout is not None and layout.mesh.size > 1:
        expert_axes, mlp_axes, embed_axes = (layout.axes(name) for name in ("expert", "moe_mlp", "embed"))
        token_axes = layout.axes(names[0]) + layout.axes(names[1])
    shared = expert_axes + mlp_axes
    gathered = tuple(a for a in shared if a in token_axes)
    summed = tuple(a for a in shared if a not in token_axes)

    def part(x, experts, weights, gate, up, down):
        """Tokens [n, D] of this device."""
        if gathered:
            x, experts, weights = (lax.all_gather(a, gathered, tiled=True) for a in (x, experts, weights))
        if expert_axes:
            experts = experts - lax.axis_index(expert_axes) * gate.shape[0]
        y = expert_mlps(x, experts, weights, gate, up, down, backend)
        if summed:
            y = lax.psum(y, summed)
        return lax.psum_scatter(y, gathered, tiled=True) if gathered else y

    def local(x, experts, weights, gate, up, down):
        """Tokens [a, b, D] of this device."""
        if embed_axes:  # gathered here, not by the compiler: the gradients are then reduced shard by shard
            gate, up = (lax.all_gather(w, embed_axes, axis=1, tiled=True) for w in (gate, up))
            down = lax.all_gather(down, embed_axes, axis=2, tiled=True)
        shape, n = x.shape, x.shape[0] * x.shape[1]
        tokens = [a.reshape(n, a.shape[-1]) for a in (x, experts, weights)]
        whole = not chunk or n <= chunk or n % chunk == 0
        check_field(whole, "moe_chunk", chunk, f"must divide the {n} tokens that a device holds")
        if not chunk or n <= chunk:
            return part(*tokens, gate, up, down).reshape(shape)
        body = jax.checkpoint(lambda args: part(*args, gate, up, down))
        return lax.map(body, [a.reshape(n // chunk, chunk, a.shape[-1]) for a in tokens]).reshape(shape)

    if not (token_axes or shared or embed_axes):
        return local(x, experts, weights, gate, up, down)
    gate, up, down = (w.astype(x.dtype) for w in (gate, up, down))  # gathered over fsdp in the compute dtype
    tokens = PartitionSpec(*(layout.axes(n) or None for n in names), None)
    w_in, w_out = layout.spec(("expert", "embed", "moe_mlp")), layout.spec(("expert", "moe_mlp", "embed"))
    return jax.shard_map(
        local,
        mesh=layout.mesh,
        in_specs=(tokens, tokens, tokens, w_in, w_in, w_out),
        out_specs=tokens,
        check_vma=False,
    )(x, experts, weights, gate, up, down)
