"""Pretraining of a miniature base model as a part of a recipe: from nothing, on packed documents."""

from __future__ import annotations

import jax
import numpy as np

from r1jax.checkpoints.run import RunCheckpoints
from r1jax.data.iterators import Indexable
from r1jax.recipes.config import PretrainConfig
from r1jax.training.loop import Runtime, train_supervised
from r1jax.training.optimizer import make_optimizer
from r1jax.training.state import TrainState, abstract_state, init_state, shardings_of
from r1jax.training.supervised import make_supervised_update


def pretrain(
    config: PretrainConfig,
    runtime: Runtime,
    checkpoints: RunCheckpoints,
    done: int | None,
    batches: Indexable[dict[str, np.ndarray]],
    save_every: int,
    title: str,
) -> TrainState:
    """The pretrained model: from nothing, from checkpoint `done` on the way, or the finished one."""
    optimizer = make_optimizer(config.optimizer, config.steps)
    abstract = abstract_state(lambda key: init_state(runtime.model, optimizer, key), runtime.learn)
    if done is None:
        key = runtime.key("init", 0)
        init = runtime.programs.compile(
            "initialisation",
            lambda key: init_state(runtime.model, optimizer, key),
            key,
            layout=runtime.learn,
            out_shardings=shardings_of(abstract),
            run_once=True,
        )
        state = init(key)
    else:
        _, state, _ = checkpoints.restore(abstract)
    parameters = sum(p.size for p in jax.tree.leaves(state.params))
    runtime.console.print(f"{title}: {parameters:,} parameters on {runtime.mesh.size} device(s)")
    update = make_supervised_update(runtime.model, runtime.graph, config.loss, optimizer)
    return train_supervised(
        runtime, state, update, batches, checkpoints, config.steps, save_every, "pretrain", "pretraining the base model"
    )
