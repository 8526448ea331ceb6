"""What r1jax makes of a published checkpoint, to be held against what transformers does (`tests/goldens/make.py`)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from helpers import relative_error

from r1jax.checkpoints import hf
from r1jax.configs.training import SamplingConfig
from r1jax.models.decoder import Decoder
from r1jax.models.rope import cos_sin
from r1jax.sampling.sampler import make_sampler
from r1jax.sharding import Layout, use

# Of the largest logit. Rounding in DeepSeek-V3's routers is amplified by the experts' weights.
TOLERANCE = {"qwen2": 2e-5, "qwen3": 2e-5, "llama3": 2e-5}
DEEPSEEK_TOLERANCE = 5e-5
GRADIENT_TOLERANCE = 1e-4  # norm of the difference over norm, for each parameter
# Programs that run once: LLVM's optimisation would take longer than it saves.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
MESH = {"fsdp": 2, "expert": 2, "tensor": 2}


def tolerance(name: str) -> float:
    return TOLERANCE.get(name, DEEPSEEK_TOLERANCE)


class Loaded:
    """A checkpoint as `hf.load` gives it, float32, on one device or on a mesh."""

    def __init__(self, path: Path, mesh: jax.sharding.Mesh | None = None, **changes):
        self.model, self.config = hf.load(path, mesh=mesh, **changes)
        self.layout = mesh and Layout(mesh, "learn")
        self.graph, self.state = nnx.split(self.model)

    def logits(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """(logits [B, T, V], the prediction module's [B, T - 1, V])."""

        @_jit
        def run(state, tokens):
            with use(self.layout):
                return _outputs(nnx.merge(self.graph, state), tokens)

        logits, ahead = jax.device_get(run(self.state, tokens))
        assert logits.dtype == np.float32
        return logits, ahead

    def gradients(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """By published name: of the mean loss of the next token, plus that of the one after by the module."""
        params, rest = nnx.split_state(self.state, nnx.Param, ...)

        def loss(params):
            logits, ahead = _outputs(nnx.merge(self.graph, params, rest), tokens)
            total = _cross_entropy(logits[:, :-1], tokens[:, 1:])
            return total if ahead is None else total + _cross_entropy(ahead[:, :-1], tokens[:, 2:])

        gradients = nnx.merge(self.graph, _jit(jax.grad(loss))(params), rest)
        return dict(hf.tensors(gradients, self.config))

    def greedy(self, prompts: np.ndarray, lengths: np.ndarray, steps: int) -> np.ndarray:
        """The likeliest `steps` tokens after each right-padded prompt [P, S], no token ending a row: [P, steps]."""
        sampling = SamplingConfig(temperature=0.0, num_generations=1, max_completion_length=steps)
        sample = _jit(make_sampler(self.graph, sampling, stop_ids=(), pad_id=0))
        limits, allowed = np.full(len(prompts), steps, np.int32), np.ones(self.config.vocab_size, bool)
        rollout = sample(self.state, prompts, lengths, limits, allowed, jax.random.key(0))
        return np.asarray(rollout.completions[:, 0])

    def hidden_states(self, tokens: np.ndarray) -> list[np.ndarray]:
        """States [B, T, D] after the embedding, after each layer, and after the final norm."""
        model = self.model
        x = model.embed(tokens)
        cos, sin = cos_sin(self.config, jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape))
        seen = [x]
        for stack in (model.dense_layers, model.moe_layers):
            if stack is None:
                continue
            graph, layers = nnx.split(stack)
            for i in range(len(jax.tree.leaves(layers)[0])):
                layer = nnx.merge(graph, jax.tree.map(lambda a, i=i: a[i], layers))
                x, *_ = layer(x, cos, sin, None, None, None)
                seen.append(x)
        return [np.asarray(x) for x in (*seen, model.norm(x))]


def _outputs(model: Decoder, tokens: np.ndarray) -> tuple[jax.Array, jax.Array | None]:
    """`model(tokens)` and `model.mtp_logits(tokens)`, whose trunk is here compiled once."""
    hidden = model.trunk(tokens).hidden
    ahead = [model.logits(h[:, :-1]) for h, _ in model.mtp_hidden(hidden, tokens)]
    return model.logits(hidden), ahead[0] if ahead else None


def _cross_entropy(logits: jax.Array, targets: np.ndarray) -> jax.Array:
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)
    return -picked.mean()


def layer_report(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> str:
    """Where two models' `hidden_states` part: the largest difference after each layer, and the position it is at."""
    names = ["embedding", *(f"layer {i}" for i in range(len(ours) - 2)), "final norm"]
    lines = []
    for name, a, b in zip(names, ours, theirs, strict=True):
        position = np.unravel_index(np.abs(a - b).argmax(), a.shape)[1]
        lines.append(f"{name}: relative difference {relative_error(a, b):.1e}, the largest at position {position}")
    return "\n".join(lines)
