"""Gradients of a batch taken in parts, so that no more than one part's activations exist at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

Batch = TypeVar("Batch")


def split_rows(a: Array, count: int, axis: int = 0) -> Array:
    """[..., B, ...] -> [count, ..., B / count, ...]: part i takes every count-th row from i on.

    Strided, so that on a mesh no row changes its device.
    """
    shape = (*a.shape[:axis], a.shape[axis] // count, count, *a.shape[axis + 1 :])
    return jnp.moveaxis(a.reshape(shape), axis + 1, 0)


def in_parts(function: Callable[[Batch], tuple[PyTree, PyTree]], batch: Batch, count: int) -> tuple[PyTree, PyTree]:
    """`accumulate` over `count` parts of a batch's rows; function(batch) itself where that is one."""
    return function(batch) if count == 1 else accumulate(function, jax.tree.map(lambda a: split_rows(a, count), batch))


def accumulate(function: Callable[[Batch], tuple[PyTree, PyTree]], parts: Batch) -> tuple[PyTree, PyTree]:
    """(sums, peaks) over the parts stacked in front of `parts`, of function(part) -> (sums, peaks), one at a time.

    Sums are added and peaks maximised. They equal those of the whole batch where the function divides by denominators
    of the whole batch: a mean over each part would weigh the tokens of short parts more.
    """
    sums, peaks = jax.eval_shape(function, jax.tree.map(lambda a: a[0], parts))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), sums)
    least = jax.tree.map(lambda s: jnp.full(s.shape, -jnp.inf, s.dtype), peaks)

    def add(total, part):
        sums, peaks = function(part)
        return (jax.tree.map(jnp.add, total[0], sums), jax.tree.map(jnp.maximum, total[1], peaks)), None

    return lax.scan(add, (zeros, least), parts)[0]
