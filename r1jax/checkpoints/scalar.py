"""Reward models on disk: a folder of `save_model`, with head.json beside it, by which nobody takes it for a generator.

<folder>/head.json       what the head was trained to judge (`ScalarHead`)
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import NamedTuple

import jax
from flax import nnx

from r1jax.checkpoints import hf
from r1jax.checkpoints.hf_config import read_json
from r1jax.checkpoints.model import (
    DESCRIPTION,
    HEAD,
    check_vacant,
    config_from_json,
    own_folder,
    restore_weights,
    save_model,
)
from r1jax.configs.model import ModelConfig
from r1jax.data.preferences import Kind
from r1jax.errors import CheckpointError
from r1jax.files import write_json
from r1jax.models.scalar import ScalarModel, scalar_config


@dataclasses.dataclass(frozen=True)
class ScalarHead:
    """What a head was trained to judge."""

    kind: Kind
    """By pairs: scores compare responses to one prompt. Pointwise: sigmoid(score) is how probably one is safe."""
    summary_only: bool
    """It sees the response without its thinking."""


class OpenedScalar(NamedTuple):
    """A reward model, and the folder that its tokenizer lies in."""

    model: ScalarModel
    config: ModelConfig
    assets: Path
    head: ScalarHead


def save_scalar_model(
    path: str | os.PathLike,
    model: ScalarModel,
    config: ModelConfig,
    assets: str | os.PathLike | None,
    head: ScalarHead,
) -> None:
    """Writes a reward model's folder, as `save_model` does a generator's."""
    folder = Path(path)
    check_vacant(folder)
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / HEAD, dataclasses.asdict(head))
    save_model(folder, model, scalar_config(config), assets)


def open_scalar_model(
    path: str | os.PathLike, dtype: jax.typing.DTypeLike | None = None, mesh: jax.sharding.Mesh | None = None
) -> OpenedScalar:
    """The reward model in `path`, its folder or its run's, laid out over `mesh` as the learner has it.

    `dtype` of parameters and activations, as in `open_model`; the head stays float32.

    Raises:
      CheckpointError: no reward model that can be read lies there.
    """
    folder = own_folder(path)
    if not ((folder / DESCRIPTION).exists() and (folder / HEAD).exists()):
        raise CheckpointError(f"{folder} holds no reward model (no {HEAD}): train one with r1jax reward-model")
    config = config_from_json(read_json(folder / DESCRIPTION), folder / DESCRIPTION)
    try:
        head = ScalarHead(**read_json(folder / HEAD))
    except TypeError as error:
        raise CheckpointError(f"{folder / HEAD} does not describe a head of this version of r1jax ({error})") from None
    model, config = restore_weights(folder / "weights", config, None, mesh, ScalarModel)
    if dtype is not None:
        name = hf.checked_dtype(dtype)
        config = config.replace(dtype=name, param_dtype=name)
        state = nnx.state(model)
        params, buffers = nnx.split_state(state["decoder"], nnx.Param, ...)
        state["decoder"] = nnx.merge_state(jax.tree.map(lambda a: a.astype(name), params), buffers)
        model = nnx.merge(nnx.graphdef(nnx.eval_shape(lambda: ScalarModel(config, nnx.Rngs(params=0)))), state)
    return OpenedScalar(model, config, folder, head)
