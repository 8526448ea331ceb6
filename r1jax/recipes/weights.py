"""A model on its way through a recipe: the weights that training begins with, and the folder that it ends in."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from r1jax.checkpoints.model import DESCRIPTION, open_model, save_model
from r1jax.configs.model import ModelConfig
from r1jax.models.decoder import Decoder
from r1jax.training.loop import Runtime
from r1jax.training.state import TrainState


def begin(checkpoint: Path, runtime: Runtime) -> TrainState:
    """The checkpoint's weights in float32, in the learner's layout, without an optimizer."""
    model, _, _ = open_model(checkpoint, "float32", runtime.mesh, show_progress=True)
    _, params, buffers = nnx.split(model, nnx.Param, ...)
    return TrainState(jnp.int32(0), params, buffers, ())


def keep_model(folder: Path, model: Decoder, shape: ModelConfig, assets: Path) -> None:
    """Writes a model's folder, unless it is there; what a killed process began is removed first."""
    if (folder / DESCRIPTION).exists():
        return
    if folder.exists() and jax.process_index() == 0:
        shutil.rmtree(folder)
    save_model(folder, model, shape, assets)
