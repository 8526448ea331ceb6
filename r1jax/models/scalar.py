"""A decoder that gives one number for a sequence: what reward models are."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from r1jax.configs.model import ModelConfig
from r1jax.models.decoder import Decoder
from r1jax.models.layers import matmul


def scalar_config(config: ModelConfig) -> ModelConfig:
    """The decoder's shape without what a scalar head makes idle: the output matrix and the prediction modules."""
    return config.replace(tie_word_embeddings=True, num_nextn_predict_layers=0)


class ScalarModel(nnx.Module):
    """A decoder whose last state of each sequence a head turns into one number.

    The head is float32 whatever the model's dtypes, and starts small: normal with a variance of 1 / (hidden_size + 1)
    (Stiennon et al., "Learning to summarize from human feedback", arXiv 2009.01325, appendix B.1). It has no bias: in
    a difference of two scores one would cancel.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        config = scalar_config(config)
        self.decoder = Decoder(config, rngs)
        self.score = nnx.Param(initial_score(config, rngs.params()), logical=("embed", None), wide=True)

    def __call__(self, tokens: Int[Array, "B T"], lengths: Int[Array, "B"]) -> Float[Array, "B"]:
        """float32 scores of right-padded sequences, each read at its last token; `lengths` are at least 1."""
        mask = jnp.arange(tokens.shape[1]) < lengths[:, None]
        hidden = self.decoder.trunk(tokens, mask=mask).hidden
        last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
        return matmul(last.astype(self.score[...].dtype), self.score[...])[:, 0]


def scalar_state(config: ModelConfig, decoder: nnx.State, score: Float[Array, "D 1"]) -> nnx.State:
    """The state of a `ScalarModel` of this config: a `Decoder`'s arrays, without those that it has no use for, and a
    head's."""
    theirs = dict(nnx.to_flat_state(decoder))
    ours = nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda: ScalarModel(config, nnx.Rngs(params=0)))))
    filled = ((path, v.replace(score if path == ("score",) else theirs[path[1:]].get_value())) for path, v in ours)
    return nnx.from_flat_state(filled)


def initial_score(config: ModelConfig, key: PRNGKeyArray) -> Float[Array, "D 1"]:
    """A fresh head, float32 or wider."""
    noise = jax.random.normal(key, (config.hidden_size, 1), jnp.float32)
    return (noise / math.sqrt(config.hidden_size + 1)).astype(jnp.promote_types(config.param_dtype, jnp.float32))
