"""One model from whatever folder holds it: a published checkpoint, r1jax's own, or a run's newest policy.

    <folder>/model.json      the `ModelConfig`
    <folder>/weights/        the parameters (`RunCheckpoints`), restored straight into any mesh's shards
    <folder>/weights.json    their `fingerprint`, which is the same wherever they were written; the files are not
    <folder>/tokenizer.*     and whatever else came with the source

is r1jax's own: no names to map, no transposes, saved and read by every host at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from r1jax import sharding
from r1jax.checkpoints import hf
from r1jax.checkpoints.hf_config import read_json
from r1jax.checkpoints.run import RunCheckpoints
from r1jax.configs.model import ModelConfig, RopeScaling
from r1jax.errors import CheckpointError, ConfigError
from r1jax.files import write_json
from r1jax.models.decoder import Decoder

DESCRIPTION = "model.json"
HEAD = "head.json"
"""In the folder of a model that has a scalar head (`r1jax.checkpoints.scalar`)."""
FINGERPRINT = "weights.json"


class Described(NamedTuple):
    """Where the weights are (None: in published files), their model's shape, and the folder of its tokenizer."""

    weights: Path | None
    config: ModelConfig
    assets: Path


class Opened(NamedTuple):
    """A model, and the folder that its tokenizer lies in."""

    model: Decoder
    config: ModelConfig
    assets: Path


def open_model(
    path: str | os.PathLike,
    dtype: jax.typing.DTypeLike | None = None,
    mesh: jax.sharding.Mesh | None = None,
    *,
    show_progress: bool = False,
    **changes: object,
) -> Opened:
    """The model in `path`, laid out over `mesh` as the learner has it (None: on one device).

    Args:
      path: a published checkpoint (config.json, *.safetensors), a folder of `save_model`, or the folder of a run, whose
        newest reinforcement learning checkpoint is taken, or else its base model.
      dtype: of parameters and activations; None: float32 for a published checkpoint, and otherwise as it was saved.
      changes: fields of `ModelConfig` that do not change the function, such as remat=True.

    Raises:
      CheckpointError: nothing that can be read lies there.
    """
    weights, config, assets = describe(path)
    if weights is None:
        model, config = hf.load(path, dtype or jnp.float32, mesh, show_progress=show_progress, **changes)
        return Opened(model, config, assets)
    return Opened(*restore_weights(weights, config.replace(**changes), dtype, mesh), assets)


def describe(path: str | os.PathLike) -> Described:
    """What lies in `path`, without its weights. Raises `CheckpointError` where that is no model that writes text."""
    folder = own_folder(path)
    if (folder / DESCRIPTION).exists():
        if (folder / HEAD).exists():
            raise CheckpointError(
                f"{folder} holds a reward model, which scores text and writes none: point at the model that it judges, "
                f"or at the one that it was made from"
            )
        config = config_from_json(read_json(folder / DESCRIPTION), folder / DESCRIPTION)
        return Described(folder / "weights", config, folder)
    if (folder / "config.json").exists() and "grpo" in (run := read_json(folder / "config.json")):
        config = config_from_json(run.get("model"), folder / "config.json")
        weights = folder / "checkpoints" / "rl"
        if RunCheckpoints(weights).latest_step() is None:
            weights = folder / "checkpoints" / "base"
        return Described(weights, config, folder / "world")
    if (folder / "config.json").exists():
        return Described(None, hf.describe(folder)[0], folder)
    raise CheckpointError(
        f"{folder} holds no model (no config.json, no {DESCRIPTION}): point at a published checkpoint, a converted "
        f"one, or a run's folder"
    )


def own_folder(path: str | os.PathLike) -> Path:
    """The folder of r1jax's own model in `path`: itself, or what training left in its run's folder."""
    folder = Path(path)
    return folder / "model" if (folder / "model" / DESCRIPTION).exists() else folder


def fingerprint(model: nnx.Module) -> str:
    """16 hex digits of the parameters: whatever else changes, the same weights have the same, on any mesh.

    The sum of each array's bits, as unsigned integers that wrap around, is exact in any order of addition.
    """

    state = nnx.state(model)
    named = [(str(path), str(v.get_value().dtype)) for path, v in nnx.to_flat_state(state)]
    told = json.dumps([named, [int(s) for s in jax.device_get(_sums_of_bits(state))]])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


@jax.jit
def _sums_of_bits(state: nnx.State) -> list[jax.Array]:
    def bits(a: jax.Array) -> jax.Array:
        size = min(a.dtype.itemsize, 4)  # wider ones become several
        return jax.lax.bitcast_convert_type(a, f"uint{8 * size}").astype(jnp.uint32).sum(dtype=jnp.uint32)

    return [bits(a) for a in jax.tree.leaves(state)]


def save_model(
    path: str | os.PathLike, model: nnx.Module, config: ModelConfig, assets: str | os.PathLike | None
) -> None:
    """Writes r1jax's own folder, which must not hold a model yet; `assets` is a folder whose tokenizer comes along."""
    folder = Path(path)
    check_vacant(folder)
    _, params, buffers = nnx.split(model, nnx.Param, ...)
    RunCheckpoints(folder / "weights").save(0, {"params": params, "buffers": buffers}, {})
    known = fingerprint(model)
    if jax.process_index() == 0:
        if assets is not None:
            hf.copy_assets(assets, folder)
            source = Path(assets) / "config.json"
            named = read_json(source) if source.exists() else {}
            ids = {name: value for name, value in named.items() if name.endswith("_token_id")}
            if ids:  # some tokenizers have theirs nowhere else
                (folder / source.name).write_text(json.dumps(ids) + "\n")
        write_json(folder / FINGERPRINT, {"fingerprint": known})
        write_json(folder / DESCRIPTION, dataclasses.asdict(config))  # last: by it the folder is known as a model


def saved_fingerprint(path: str | os.PathLike) -> str:
    """The `fingerprint` of the model in a folder of `save_model`, whose weights need not be read for it.

    A folder from before fingerprints were saved is opened. Raises `CheckpointError` where a file of the weights is
    missing or has another size.
    """
    folder = Path(path)
    RunCheckpoints(folder / "weights").check()
    if (folder / FINGERPRINT).exists():
        return str(read_json(folder / FINGERPRINT).get("fingerprint"))
    return fingerprint(open_model(folder).model)


def check_vacant(path: str | os.PathLike) -> None:
    """Raises `CheckpointError` where a model of any kind lies already, or the arrays of one."""
    folder = Path(path)
    known = any((folder / name).exists() for name in (DESCRIPTION, "config.json")) or any(folder.glob("*.safetensors"))
    if folder.is_file() or known or RunCheckpoints(folder / "weights").latest_step() is not None:
        raise CheckpointError(f"{folder} is a file or holds a model already: choose another folder, or remove it first")


def config_from_json(values: object, where: Path) -> ModelConfig:
    """A `ModelConfig` from its fields, as `dataclasses.asdict` gives them."""
    try:
        values = dict(values)
        scaling = values.pop("rope_scaling", None)
        return ModelConfig(**values, rope_scaling=scaling and RopeScaling(**scaling))
    except (TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{where} does not describe a model of this version of r1jax ({error})") from None


def restore_weights(
    weights: Path,
    config: ModelConfig,
    dtype: jax.typing.DTypeLike | None,
    mesh: jax.sharding.Mesh | None,
    module: type[nnx.Module] = Decoder,
) -> tuple[nnx.Module, ModelConfig]:
    """The module of `config` whose arrays `save_model` or a run wrote in `weights`, and the config in its dtype.

    `dtype` and `mesh` as in `open_model`. Raises `CheckpointError` where the arrays are others.
    """
    name = None if dtype is None else hf.checked_dtype(dtype)
    mesh = sharding.make_mesh({}, jax.local_devices()[:1]) if mesh is None else mesh
    state = nnx.state(nnx.eval_shape(lambda: module(config, nnx.Rngs(params=0))))
    places = sharding.state_shardings(state, sharding.Layout(mesh, "learn"))
    abstract = jax.tree.map(lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), state, places)
    params, buffers = nnx.split_state(abstract, nnx.Param, ...)
    _, saved, _ = RunCheckpoints(weights).restore({"params": params, "buffers": buffers}, partial=True)
    params = saved["params"]
    if name is not None:
        params = jax.tree.map(lambda a: a.astype(name), params)
        config = config.replace(dtype=name, param_dtype=name)
    graph = nnx.graphdef(nnx.eval_shape(lambda: module(config, nnx.Rngs(params=0))))
    return nnx.merge(graph, params, saved["buffers"]), config
