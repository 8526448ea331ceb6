"""The mesh, and the one table that says which mesh axes carry each logical axis.

Every parameter, activation, cache and batch names its axes logically ("embed", "heads", ...). `RULES` maps those names
to mesh axes, once for learning and once for sampling: learning shards weights over `fsdp` and gathers each layer as it
is used, sampling keeps a layer's weights where they are and moves the (few) activations instead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from r1jax.errors import ConfigError

# `context` has room in every spec that names "length"; splitting attention over it is another issue's work.
MESH_AXES = ("data", "fsdp", "expert", "tensor", "context")

Axes = tuple[str, ...]

_COMMON: dict[str, Axes] = {
    # Activations. A group's completions lie on `expert`, its prompts on the other batch axes, so that
    # [prompts, group] flattens to a batch laid out exactly as "batch" is.
    "batch": ("data", "fsdp", "expert"),
    "prompt": ("data", "fsdp"),
    "group": ("expert",),
    "length": ("context",),
    # Weights
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "expert": ("expert",),
}
RULES: dict[str, dict[str, Axes]] = {
    "learn": _COMMON | {"embed": ("fsdp",), "lora": ("fsdp",), "moe_mlp": ("tensor",)},
    "sample": _COMMON | {"embed": (), "lora": (), "moe_mlp": ("fsdp", "tensor")},
}
# Logical axes that split weights, as a table in `RULES` has them.
WEIGHT_AXES = ("heads", "kv_heads", "mlp", "vocab", "expert", "embed", "lora", "moe_mlp")


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and the table in force on it; hashable, so that it can be a static argument."""

    mesh: Mesh
    mode: str  # a key of RULES

    def axes(self, name: str | None) -> Axes:
        """The mesh axes of more than one device that carry logical axis `name` (None: not split)."""
        return tuple(a for a in RULES[self.mode].get(name, ()) if self.mesh.shape[a] > 1) if name else ()

    def size(self, name: str) -> int:
        """How many ways logical axis `name` is split."""
        return math.prod(self.mesh.shape[a] for a in self.axes(name))

    def spec(self, names: Sequence[str | None]) -> PartitionSpec:
        return PartitionSpec(*(self.axes(n) or None for n in names))

    def sharding(self, names: Sequence[str | None]) -> NamedSharding:
        return NamedSharding(self.mesh, self.spec(names))

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())


class _Active(threading.local):
    layout: Layout | None = None


_active = _Active()


def current() -> Layout | None:
    """The layout that the code being traced runs under, or None on one device."""
    return _active.layout


def on_cpu() -> bool:
    """Whether the code being traced is to run on CPU devices (it may be compiled for others than there are here)."""
    layout = current()
    return (jax.default_backend() if layout is None else layout.mesh.devices.flat[0].platform) == "cpu"


def weights_whole() -> bool:
    """Whether the current layout splits no weights: every device holds all of them."""
    layout = current()
    return layout is None or not any(layout.axes(name) for name in WEIGHT_AXES)


@contextlib.contextmanager
def use(layout: Layout | None) -> Iterator[None]:
    """Traces the code inside under `layout`; `constrain` and the expert layers read it."""
    previous, _active.layout = _active.layout, layout
    try:
        yield
    finally:
        _active.layout = previous


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Asks the compiler to lay `x` out by the logical `names` of its axes. The identity with no layout in force."""
    layout = current()
    if layout is None or layout.mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, layout.sharding(names))


def pin(state: Any) -> Any:
    """Asks that every parameter of a traced `nnx.State` lie where the current layout puts it; so does its gradient.

    Gradients are states too. Unasked, the compiler leaves them whole on every device that shares a parameter.
    """
    layout = current()
    if layout is None or layout.mesh.size == 1:
        return state

    def one(variable):
        place = layout.sharding(logical_axes(variable))
        return variable.replace(jax.lax.with_sharding_constraint(variable.get_value(), place))

    return jax.tree.map(one, state, is_leaf=lambda v: isinstance(v, nnx.Variable))


def make_mesh(shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes of `MESH_AXES`.

    Args:
      shape: devices on each named axis; absent axes have 1, and one axis may be -1: whatever is left.
      devices: all of JAX's devices unless given.

    Raises:
      ConfigError: an unknown axis, or sizes whose product is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    unknown = set(shape) - set(MESH_AXES)
    if unknown:
        raise ConfigError(f"mesh axis {sorted(unknown)[0]!r}: must be one of {', '.join(MESH_AXES)}")
    sizes = {a: int(shape.get(a, 1)) for a in MESH_AXES}
    free = [a for a, n in sizes.items() if n == -1]
    known = math.prod(n for n in sizes.values() if n != -1)
    bad = next((a for a, n in sizes.items() if n < 1 and n != -1), None)
    if bad or len(free) > 1:
        raise ConfigError(f"mesh={dict(shape)}: each axis must be positive, and one at most may be -1 (the rest)")
    if free and len(devices) % known == 0:
        sizes[free[0]] = len(devices) // known
        known = len(devices)
    if known != len(devices):
        raise ConfigError(
            f"mesh={dict(shape)}: its axes multiply to {known}, but JAX sees {len(devices)} "
            f"device{'s' * (len(devices) > 1)}; choose sizes whose product is the number of devices"
        )
    if len(devices) > 1:
        from jax.experimental import mesh_utils

        grid = mesh_utils.create_device_mesh(tuple(sizes.values()), devices=devices, allow_split_physical_axes=True)
    else:
        grid = np.array(devices).reshape(tuple(sizes.values()))
    return Mesh(grid, MESH_AXES)


def logical_axes(variable: nnx.Variable) -> tuple[str | None, ...]:
    """The logical axes of a parameter. Layers stacked in front of what the module declared are not split."""
    names = variable.get_metadata().get("logical", ())
    return (None,) * (len(variable.shape) - len(names)) + tuple(names)


def state_shardings(state: Any, layout: Layout) -> Any:
    """The sharding of every parameter in an `nnx.State` (of arrays or of shapes), as a tree of the same structure.

    Raises:
      ConfigError: an axis that its mesh axes do not divide, naming the parameter.
    """

    def one(path, variable):
        names = logical_axes(variable)
        for dim, name in zip(variable.shape, names, strict=True):
            if dim % (n := layout.size(name) if name else 1):
                raise ConfigError(
                    f"mesh axis {'x'.join(layout.axes(name))}={n} does not divide {name}={dim} of parameter "
                    f"{jax.tree_util.keystr(path)}; choose a mesh whose {'x'.join(layout.axes(name))} divides {dim}"
                )
        return variable.replace(layout.sharding(names))

    return jax.tree_util.tree_map_with_path(one, state, is_leaf=lambda v: isinstance(v, nnx.Variable))


def relay(state: Any, layout: Layout, dtype: str) -> Any:
    """Moves a traced model state into `layout`, matrices first rounded to the dtype in which they enter products.

    What the learner holds in its own layout becomes the sampler's copy for one rollout; weights marked `wide` keep
    their dtype, so that both compute with the same numbers.
    """

    def one(variable):
        if not isinstance(variable, nnx.Param):
            return variable
        value = variable.get_value()
        if not variable.get_metadata().get("wide"):
            value = value.astype(dtype)
        if layout.mesh.size > 1:
            value = jax.lax.with_sharding_constraint(value, layout.sharding(logical_axes(variable)))
        return variable.replace(value)

    return jax.tree.map(one, state, is_leaf=lambda v: isinstance(v, nnx.Variable))
