"""Attention itself, for whole sequences and for one step against a cache.

Both kinds of attention (`mla.py`, `gqa.py`) share the shapes here: a layer writes one *entry* per token to its cache
(MLA: the latent and the rotated key [R]; GQA: key and value [2, Hkv, K]), and decoding reads three segments: the
prompt, which a whole group shares, the completion so far, and the token itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from r1jax.errors import check_field
from r1jax.models.layers import precision

NEG_INF = -1e30  # finite, so that a fully masked (padding) row gives a uniform softmax and not NaN

# A decode step attends to the smallest of these many completion slots that holds what has been written, so that its
# cost follows the length reached and not the length allowed.
DECODE_BUCKET = 32


def softmax(scores: Float[Array, "*B S"], dtype: jnp.dtype) -> Float[Array, "*B S"]:
    """Softmax in float32 (float64 for float64 scores), rounded to `dtype`."""
    wide = jnp.promote_types(scores.dtype, jnp.float32)
    return jax.nn.softmax(scores.astype(wide), axis=-1).astype(dtype)


def causal_attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T Hkv K"],
    v: Float[Array, "B T Hkv V"],
    segment_ids: Int[Array, "B T"] | None,
    scale: float,
    chunk: int,
) -> Float[Array, "B T H V"]:
    """Each position attends to itself and to earlier ones of its own segment.

    Sequences are right-padded, so that padding is only ever *later* than what counts and needs no mask of its own.
    With `chunk` > 0 queries are taken that many at a time and scores are recomputed in the backward pass: the
    [T, T] matrix never exists whole.
    """
    b, t, h, _ = q.shape
    groups = h // k.shape[2]
    prec = precision(q.dtype)

    def block(start: Int[Array, ""], q: Float[Array, "B C H K"]) -> Float[Array, "B C H V"]:
        c = q.shape[1]
        rows = start + jnp.arange(c)
        q = q.reshape(b, c, k.shape[2], groups, -1)
        scores = jnp.einsum("bthgk,bshk->bhgts", q, k, precision=prec) * scale
        visible = jnp.arange(t)[None, :] <= rows[:, None]
        if segment_ids is None:
            visible = visible[None]
        else:
            own = lax.dynamic_slice_in_dim(segment_ids, start, c, axis=1)
            visible = visible[None] & (own[:, :, None] == segment_ids[:, None, :])
        weights = softmax(jnp.where(visible[:, None, None], scores, NEG_INF), q.dtype)
        out = jnp.einsum("bhgts,bshv->bthgv", weights, v, precision=prec)
        return out.reshape(b, c, h, -1)

    check_field(not chunk or t <= chunk or t % chunk == 0, "attention_chunk", chunk, f"must divide the length {t}")
    if not chunk or t <= chunk:
        return block(jnp.int32(0), q)
    blocks = jnp.moveaxis(q.reshape(b, t // chunk, chunk, h, -1), 1, 0)
    starts = jnp.arange(0, t, chunk)
    out = lax.map(lambda args: jax.checkpoint(block)(*args), (starts, blocks))
    return jnp.moveaxis(out, 0, 1).reshape(b, t, h, -1)


def decode_attention(
    score: Callable[[Float[Array, "..."], str], Float[Array, "..."]],
    read: Callable[[Float[Array, "..."], Float[Array, "..."], str], Float[Array, "P G Q H V"]],
    prompt: Float[Array, "P S *E"],
    prompt_mask: Bool[Array, "P S"],
    completion: Float[Array, "P G C *E"],
    entries: Float[Array, "P G Q *E"],
    step: Int[Array, "*PG"],
    scale: float,
    in_place: bool,
) -> tuple[Float[Array, "P G Q H V"], Float[Array, "P G S *E"]]:
    """Q consecutive queries per row over prompt, completion and themselves (causally), in one softmax.

    The segments are never put together: each is weighted by exponentials under the common maximum, and what was read is
    divided by their common sum. Slots stay in front of queries and heads, as they lie in the cache, so that neither
    the products nor the reductions over slots need it transposed.

    Args:
      score: scores of these queries against a segment's entries; told the segment's layout, "shared" for
        [P, S, *E] (one copy for the group), which gives [P, S, G, Q, H], or "own" for [P, G, S, *E], [P, G, S, Q, H].
      read: the weighted sum of a segment's values, likewise.
      entries: what the queries' own tokens leave in the cache.
      step: completion slots already written, of all rows [] or of each [P, G]; the others are masked.
      in_place: write the entries into their slots first and read them there, which is best where the layer's cache is
        an array of its own; as one of many layers it would be copied.

    Returns:
      What was read, and the completion with the entries in it (in place) or the entries.
    """
    q = entries.shape[2]
    wide = jnp.promote_types(entries.dtype, jnp.float32)
    axis = {"shared": 1, "own": 2}  # of the slots
    among = (jnp.arange(q)[:, None] <= jnp.arange(q))[..., None]  # [S=Q, Q, 1]
    if in_place:
        completion = write_slots(completion, entries, step)

    def over(slots: int) -> Float[Array, "P G Q H V"]:
        segments = [(prompt, "shared", prompt_mask[:, :, None, None, None])]
        if in_place:
            seen = jnp.arange(slots)[:, None] <= (step[..., None] + jnp.arange(q))[..., None, :]
            segments += [(completion[:, :, :slots], "own", seen[..., None])]
        else:
            seen = jnp.arange(slots) < step[..., None]
            segments += [(completion[:, :, :slots], "own", seen[..., None, None]), (entries, "own", among)]
        # Added, not selected: a selection by slot, whose mask is the same for all heads beside each other, keeps XLA on
        # CPU from vectorising the exponentials that it is fused with, which then take ten times as long.
        scores = [score(e, kind).astype(wide) * scale + jnp.where(mask, 0, NEG_INF) for e, kind, mask in segments]
        peak = functools.reduce(
            jnp.maximum, [s.max(axis=axis[kind]) for s, (_, kind, _) in zip(scores, segments, strict=True)]
        )
        total, out = 0.0, 0.0
        for s, (e, kind, _) in zip(scores, segments, strict=True):
            weights = jnp.exp(s - jnp.expand_dims(peak, axis[kind]))
            total += weights.sum(axis=axis[kind])
            out += read(weights.astype(e.dtype), e, kind).astype(wide)
        return (out / total[..., None]).astype(entries.dtype)

    buckets = decode_buckets(completion.shape[2])
    if len(buckets) == 1:
        out = over(buckets[0])
    else:
        index = jnp.searchsorted(jnp.array(buckets), jnp.max(step) + (q if in_place else 0), side="left")
        out = lax.switch(index, [functools.partial(over, b) for b in buckets])
    return out, completion if in_place else entries


def write_slots(
    completion: Float[Array, "*L P G C *E"],
    entries: Float[Array, "*L P G Q *E"],
    step: Int[Array, "*PG"],
    axis: int = 2,
) -> Float[Array, "*L P G C *E"]:
    """Puts entries into slots step .. step + Q - 1 of every row; slots past the last are left out.

    Args:
      axis: of the slots; what lies in front of [P, G] is kept as it is.
    """
    if step.ndim == 0:
        return lax.dynamic_update_slice_in_dim(completion, entries, step, axis=axis)
    sizes = entries.shape[axis - 2 : axis + 1]
    p, g, q = (jnp.arange(n).reshape(shape) for n, shape in zip(sizes, ((-1, 1, 1), (-1, 1), (-1,)), strict=True))
    index = (slice(None),) * (axis - 2) + (p, g, step[..., None] + q)
    return completion.at[index].set(entries, mode="drop")


def by_row(x: Float[Array, "P G*Q *E"], completion: Float[Array, "P G C *F"]) -> Float[Array, "P G Q *E"]:
    """Takes the queries of each row of the cache apart, which everything but attention sees side by side."""
    return x.reshape(x.shape[0], completion.shape[1], -1, *x.shape[2:])


def decode_buckets(capacity: int) -> tuple[int, ...]:
    """Doubling sizes up to `capacity`: attention over b slots serves every step at which at most b are written."""
    buckets, size = [], DECODE_BUCKET
    while size < capacity:
        buckets.append(size)
        size *= 2
    return (*buckets, capacity)
