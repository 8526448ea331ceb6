"""Completions of many prompts from one model, in batches of few shapes."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from r1jax import sharding
from r1jax.configs.model import ModelConfig
from r1jax.configs.training import SamplingConfig
from r1jax.data.tokenizer import Tokenizer
from r1jax.errors import ConfigError, DataError, check_field
from r1jax.models.decoder import Decoder
from r1jax.sampling.sampler import make_decoding, make_sampler, prepare_sampling
from r1jax.sampling.speculative import make_speculative_sampler

_SHORTEST = 16  # tokens; prompts are padded to this times a power of two, so that few programs are compiled


@dataclasses.dataclass(frozen=True)
class Completion:
    """What the sampler drew for one prompt, its stop token included. Token ids are the truth, text is made of them."""

    tokens: list[int]
    logps: list[float]  # of each token under the distribution it was drawn from
    finish_reason: str  # "stop" or "length"


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What a `Generator` has done so far."""

    tokens: int = 0
    passes: int = 0  # through the trunk, of rows that had not ended: one a token; with drafts not the prompts'
    accepted: int = 0  # drafts among the tokens


class _Programs(NamedTuple):
    state: nnx.State  # of all three
    sample: Callable[..., Any]
    begin: Callable[..., Any]
    advance: Callable[..., Any]


class Generator:
    """Draws `sampling.num_generations` completions for each prompt, `batch_size` prompts at a time.

    Args:
      model: of `r1jax.checkpoints`; on `mesh` if there is one, laid out as the learner has it.
      speculative: drafts with the model's prediction module: the same distribution in fewer passes.
      seed: completions are a function of it, of the prompts and of the batch size.

    Raises:
      ConfigError: a batch that the mesh does not divide, or drafts from a model without a prediction module.
    """

    def __init__(
        self,
        model: Decoder,
        config: ModelConfig,
        tokenizer: Tokenizer,
        sampling: SamplingConfig,
        *,
        mesh: jax.sharding.Mesh | None = None,
        batch_size: int = 16,
        speculative: bool = False,
        seed: int = 0,
    ):
        mesh = sharding.make_mesh({}, jax.local_devices()[:1]) if mesh is None else mesh
        check_sampling(config, sampling, mesh, batch_size, speculative)
        self.config, self.tokenizer, self._speculative = config, tokenizer, speculative
        self.layout, self.key = sharding.Layout(mesh, "sample"), jax.random.key(seed)
        graph, state = nnx.split(model)
        self._weights = graph, self._jit(lambda state: sharding.relay(state, self.layout, config.dtype))(state)
        self._allowed = self._put(tokenizer.valid_ids(config.vocab_size), None)
        self._prepare(sampling, batch_size)

    def _prepare(self, sampling: SamplingConfig, batch_size: int) -> None:
        self.sampling, self.batch_size, self.statistics = sampling, batch_size, Statistics()
        self.__dict__.pop("_programs", None)

    @functools.cached_property
    def _programs(self) -> _Programs:
        """Made at the first use: of other settings' weights a generator may never draw."""
        graph, state = self._weights
        rows = self.batch_size * self.sampling.num_generations * (2 if self._speculative else 1)
        with sharding.use(self.layout):
            graph, state = prepare_sampling(graph, state, rows, self._speculative)
        make = make_speculative_sampler if self._speculative else make_sampler
        settings = (graph, self.sampling, self.tokenizer.eos_ids, self.tokenizer.pad_id)
        begin, advance = make_decoding(*settings)
        return _Programs(state, self._jit(make(*settings)), self._jit(begin), self._jit(advance, donate_argnums=(1,)))

    def with_sampling(self, sampling: SamplingConfig, batch_size: int) -> Generator:
        """Another generator of the same weights, which it holds no second time (but for those that `prepare_sampling`
        makes anew). Raises `ConfigError` as this one."""
        check_sampling(self.config, sampling, self.layout.mesh, batch_size, self._speculative)
        other = copy.copy(self)
        other._prepare(sampling, batch_size)
        return other

    def __call__(
        self, prompts: Sequence[Sequence[int]], done: frozenset[int] = frozenset()
    ) -> Iterator[list[tuple[int, list[Completion]]]]:
        """Yields (number of the prompt, its completions) for a batch at a time, short prompts first.

        `done` are prompts to leave out, as when an interrupted call is taken up again: the others' completions do not
        depend on it.

        Raises:
          DataError: a prompt that is empty or, with its completion, longer than the model's positions. Before any work.
        """
        for i, prompt in enumerate(prompts):
            self.check(prompt, f"prompt {i}")
        programs = self._programs
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for number, start in enumerate(range(0, len(order), self.batch_size)):
            batch = order[start : start + self.batch_size]
            if done.issuperset(batch):
                continue
            arrays = self._arrays([prompts[i] for i in batch])
            out = jax.device_get(programs.sample(programs.state, *arrays, self._allowed, self._key(number)))
            rollout, told = out if self._speculative else (out, None)
            self._count(rollout, told)
            yield [(i, completions(rollout, row)) for row, i in enumerate(batch) if i not in done]

    def stream(self, prompt: Sequence[int], turn: int = 0, every: int = 8) -> Iterator[list[int]]:
        """Yields the tokens of one completion as they are drawn, up to `every` at a time; `turn` makes fresh noise."""
        self.check(prompt, "the conversation")
        tokens, lengths, limits = self._arrays([prompt])
        programs = self._programs
        decoding = programs.begin(programs.state, tokens, lengths, limits)
        seen, capacity = 0, self.sampling.max_completion_length
        while seen < capacity:
            until = np.int32(min(seen + every, capacity))
            args = (lengths, limits, self._allowed, self._key(turn), until)
            decoding = programs.advance(programs.state, decoding, *args)
            drawn, length = (np.asarray(a)[0, 0] for a in (decoding.rollout.completions, decoding.rollout.lengths))
            yield drawn[seen:length].tolist()
            if length < until or bool(np.asarray(decoding.finished)[0, 0]):
                return
            seen = int(length)

    def check(self, prompt: Sequence[int], name: str) -> None:
        """Raises `DataError` for a prompt that the model cannot complete."""
        check_prompt(self.config, self.sampling, prompt, name)

    def _arrays(self, prompts: Sequence[Sequence[int]]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(tokens, lengths, limits) of a batch; missing rows repeat the last and may draw nothing."""
        length = _SHORTEST
        while length < max(map(len, prompts)):
            length *= 2
        tokens = np.full((self.batch_size, length), self.tokenizer.pad_id, np.int32)
        lengths, limits = np.zeros((2, self.batch_size), np.int32)
        for row in range(self.batch_size):
            prompt = prompts[min(row, len(prompts) - 1)]
            tokens[row, : len(prompt)], lengths[row] = prompt, len(prompt)
            limits[row] = self.sampling.max_completion_length if row < len(prompts) else 0
        return self._put(tokens, "prompt", None), self._put(lengths, "prompt"), self._put(limits, "prompt")

    def _count(self, rollout: Any, told: Any) -> None:
        tokens = int(rollout.lengths.sum())  # rows without a prompt have none
        passes = tokens if told is None else int(told.passes.sum())
        accepted = 0 if told is None else int(told.accepted.sum())
        s = self.statistics
        self.statistics = Statistics(s.tokens + tokens, s.passes + passes, s.accepted + accepted)

    def _put(self, array: np.ndarray, *names: str | None) -> jax.Array:
        return jax.device_put(array, self.layout.sharding(names))

    def _key(self, number: int) -> jax.Array:
        return jax.device_put(jax.random.fold_in(self.key, number), self.layout.replicated)

    def _jit(self, function: Any, **options: Any) -> Any:
        layout = self.layout  # and not the generator, which holds what this returns

        @functools.partial(jax.jit, **options)
        def under_layout(*args):
            with sharding.use(layout):
                return function(*args)

        return under_layout


def check_sampling(
    config: ModelConfig, sampling: SamplingConfig, mesh: jax.sharding.Mesh, batch_size: int, speculative: bool = False
) -> None:
    """Raises `ConfigError` for what a `Generator` would refuse, before there is a model."""
    check_field(batch_size >= 1, "batch_size", batch_size, "must be at least 1")
    layout = sharding.Layout(mesh, "sample")
    for field, value, axis in (("batch_size", batch_size, "prompt"), ("n", sampling.num_generations, "group")):
        parts = layout.size(axis)
        check_field(value % parts == 0, field, value, f"must be a multiple of {parts}, the mesh's {axis} devices")
    if speculative and not config.num_nextn_predict_layers:
        raise ConfigError(
            "speculative=True: this model has no prediction module (num_nextn_predict_layers=0) to draft with"
        )


def check_prompt(config: ModelConfig, sampling: SamplingConfig, prompt: Sequence[int], name: str) -> None:
    """Raises `DataError` for a prompt that the model cannot complete."""
    length, positions = sampling.max_completion_length, config.max_position_embeddings
    if not prompt:
        raise DataError(f"{name} has no tokens: give at least one (this tokenizer adds none at the front)")
    if len(prompt) > positions - length:
        raise DataError(
            f"{name} has {len(prompt)} tokens, which leaves no room for {length} more in the model's {positions} "
            f"positions; shorten it, or lower --max-tokens"
        )


def completions(rollout: Any, row: int) -> list[Completion]:
    """The completions of one prompt of a rollout on the host."""
    return [
        Completion(tokens[:n].tolist(), [round(float(x), 6) for x in logps[:n]], "length" if cut else "stop")
        for tokens, logps, n, cut in zip(
            rollout.completions[row], rollout.logps[row], rollout.lengths[row], rollout.truncated[row], strict=True
        )
    ]
