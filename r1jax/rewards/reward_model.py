"""A trained reward model as a reward function. It needs the device: give it to `RewardPool` as `local`.

This module imports JAX, and is not imported by `r1jax.rewards`, whose other functions run in processes without it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx

from r1jax import sharding
from r1jax.checkpoints.scalar import open_scalar_model
from r1jax.data.chat import ChatTemplate
from r1jax.data.conversations import Encoder
from r1jax.data.hf_tokenizer import load_tokenizer
from r1jax.data.preferences import PreferenceEncoder, pad, padded_length
from r1jax.errors import check_field


class RewardModelReward:
    """Scores of a model that `r1jax reward-model` trained, with TRL's signature.

    It sees what it was trained to see: the summary that follows the thinking, or the whole response. A pointwise
    model's score is the logarithm of the odds that a response is safe.

    Args:
      path: the reward model's folder, or its run's.
      mesh: laid out as for learning; None: one device.
      batch_size: sequences scored at a time; None: 16, or the next multiple of the devices that a batch lies on.
      dtype: of parameters and activations; None: as they were saved.
      empty: the score of a completion without anything to judge, such as one that was cut off while it thought. None:
        it cannot be scored, and gets no advantage.
      probability: sigmoid of the score, which lies in 0..1 beside rule rewards.
      name: what metrics call it.

    Raises:
      CheckpointError: no reward model lies there.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        mesh: jax.sharding.Mesh | None = None,
        batch_size: int | None = None,
        dtype: jax.typing.DTypeLike | None = None,
        empty: float | None = None,
        probability: bool = False,
        name: str = "reward_model",
    ):
        mesh = sharding.make_mesh({}, jax.local_devices()[:1]) if mesh is None else mesh
        self._layout = sharding.Layout(mesh, "learn")
        parts = self._layout.size("batch")
        batch_size = -(-16 // parts) * parts if batch_size is None else batch_size
        check_field(
            batch_size >= 1 and batch_size % parts == 0, "batch_size", batch_size, f"must be a multiple of {parts}"
        )
        model, self._config, assets, self.head = open_scalar_model(path, dtype, mesh)
        self._encoder = PreferenceEncoder(
            Encoder(load_tokenizer(assets), ChatTemplate.find(assets)), self.head.kind, self.head.summary_only
        )
        graph, self._state = nnx.split(model)
        self._batch_size, self._empty, self._probability = batch_size, empty, probability
        self.__name__ = name

        @jax.jit
        def score(state, tokens, lengths):
            with sharding.use(self._layout):
                return nnx.merge(graph, state)(tokens, lengths)

        self._score = score

    def __call__(self, prompts: list[str], completions: list[str], **columns) -> list[float | None]:
        """One score a completion, of the prompt's text as the policy saw it and the completion's.

        None for a completion that leaves nothing to judge, unless `empty` is given, and for one that, with its prompt,
        is longer than the model's positions.
        """
        encoded = [self._encoder.encode(*row) for row in zip(prompts, completions, strict=True)]
        scores: list[float | None] = [self._empty if ids is None else None for ids in encoded]
        positions = self._config.max_position_embeddings
        rows = [i for i, ids in enumerate(encoded) if ids is not None and len(ids) <= positions]
        rows.sort(key=lambda i: len(encoded[i]))  # rows of a batch need about the same padding
        for start in range(0, len(rows), self._batch_size):
            batch = rows[start : start + self._batch_size]
            for i, score in zip(batch, self._scores([encoded[i] for i in batch]), strict=True):
                scores[i] = float(score)
        return scores

    def _scores(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """float64 [len(sequences)], of at most a batch; a program is compiled for each power of two of the length."""
        missing = self._batch_size - len(sequences)
        length = padded_length(max(map(len, sequences)), self._config.max_position_embeddings)
        tokens, lengths = pad([*sequences, *sequences[-1:] * missing], length)
        tokens = jax.device_put(tokens, self._layout.sharding(("batch", "length")))
        lengths = jax.device_put(lengths, self._layout.sharding(("batch",)))
        scores = np.asarray(jax.device_get(self._score(self._state, tokens, lengths)), np.float64)[: len(sequences)]
        return 1 / (1 + np.exp(-scores)) if self._probability else scores
