"""Groups of completions from one jitted program: prefill each prompt once, decode until every row has ended."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from r1jax.configs.training import SamplingConfig
from r1jax.losses.logprobs import allowed_logits
from r1jax.models.decoder import ROWS, Cache, Decoder
from r1jax.runtime import host_memory
from r1jax.sampling.truncation import draw
from r1jax.sharding import constrain

OF_THE_HOST = 1 / 4  # of its memory, which weights that are prepared ahead may take a second time


@struct.dataclass
class Rollout:
    """P prompts with G completions each, C tokens at most. What counts is told by lengths, never by token ids."""

    completions: Int[Array, "P G C"]  # the stop token included; pad past the end
    lengths: Int[Array, "P G"]  # completion tokens
    truncated: Bool[Array, "P G"]  # ended by its length and not by a stop token
    logps: Float[Array, "P G C"]  # of each token under the distribution it was drawn from; 0 past the end
    log_mass: Float[Array, "P G C"]  # log of the mass that top-k / top-p kept; 0 with neither
    prompt_experts: Int[Array, "L P S k"] | None = None  # if recorded: each MoE layer's choice for prompt tokens
    experts: Int[Array, "L P G C k"] | None = None  # and for completion tokens


@struct.dataclass
class Decoding:
    """State of the decode loop. `logits` are those of slot `step`, the next to be drawn."""

    step: Int[Array, ""]
    logits: Float[Array, "P G V"]
    finished: Bool[Array, "P G"]
    cache: Cache
    rollout: Rollout


def make_sampler(
    graph: nnx.GraphDef,
    config: SamplingConfig,
    stop_ids: tuple[int, ...],
    pad_id: int,
    record_experts: bool = False,
) -> Callable[..., Rollout]:
    """Returns the pure function

        sample(state, prompts [P, S], prompt_lengths [P], max_lengths [P], allowed [V], key) -> Rollout

    `state` is everything that `graph` needs (parameters and correction biases); prompts are right-padded; `max_lengths`
    are each row's completion limit, at most config.max_completion_length; `allowed` are the ids that may be drawn.
    The noise is a function of `key` alone, whatever the mesh: pass a fresh key on every call.
    """
    begin, advance = make_decoding(graph, config, stop_ids, pad_id, record_experts)

    def sample(
        state: nnx.State,
        prompts: Int[Array, "P S"],
        prompt_lengths: Int[Array, "P"],
        max_lengths: Int[Array, "P"],
        allowed: Bool[Array, "V"],
        key: PRNGKeyArray,
    ) -> Rollout:
        decoding = begin(state, prompts, prompt_lengths, max_lengths)
        return advance(state, decoding, prompt_lengths, max_lengths, allowed, key).rollout

    return sample


def prepare_sampling(
    graph: nnx.GraphDef, state: nnx.State, rows: int, draft: bool = False
) -> tuple[nnx.GraphDef, nnx.State]:
    """What `graph` and `state` become for many calls of one sampler, which otherwise prepares itself in each of them
    (and, beside all that training holds, only small models).

    Under the layout that the sampler is to run under, and not to be jitted: what need not change is handed on.

    Args:
      rows: prompts times group; twice as many to sample with drafts.
      draft: prepare the prediction module too.
    """
    model: Decoder = nnx.merge(graph, state)
    # Several processes, whose hosts may differ, must come to the same decision.
    limit = None if jax.process_count() > 1 else int(OF_THE_HOST * host_memory())
    if not model.layers_apart(limit):
        return graph, state

    @jax.jit
    def prepare(state: nnx.State):
        model: Decoder = nnx.merge(graph, state)
        model.prepare_decoding(rows, draft, limit)
        return nnx.split(model.apart)

    model.apart = nnx.merge(*prepare(state))
    return nnx.split(model)


def make_decoding(
    graph: nnx.GraphDef,
    config: SamplingConfig,
    stop_ids: tuple[int, ...],
    pad_id: int,
    record_experts: bool = False,
) -> tuple[Callable[..., Decoding], Callable[..., Decoding]]:
    """The two halves of `make_sampler`, for callers that want tokens as they come:

        begin(state, prompts, prompt_lengths, max_lengths) -> Decoding
        advance(state, decoding, prompt_lengths, max_lengths, allowed, key, until=None) -> Decoding

    `advance` goes on until every row has ended, or until slot `until` [] is the next to be drawn.
    """
    group, slots = config.num_generations, config.max_completion_length
    stops = jnp.array(stop_ids, jnp.int32)

    def begin(
        state: nnx.State,
        prompts: Int[Array, "P S"],
        prompt_lengths: Int[Array, "P"],
        max_lengths: Int[Array, "P"],
    ) -> Decoding:
        model: Decoder = nnx.merge(graph, state)
        p = prompts.shape[0]
        limits = jnp.minimum(max_lengths, slots)[:, None]
        logits, entries, routing = model.prefill(prompts, prompt_lengths)
        rollout = empty_rollout(p, group, slots, pad_id)
        if record_experts and routing is not None:
            layers, k = routing.experts.shape[0], routing.experts.shape[-1]
            # Slots that are never decoded replay distinct experts: the dispatch buffers rely on that.
            experts = jnp.broadcast_to(jnp.arange(k, dtype=jnp.int32), (layers, p, group, slots, k))
            rollout = rollout.replace(prompt_experts=routing.experts, experts=experts)
        return Decoding(
            step=jnp.int32(0),
            logits=constrain(jnp.broadcast_to(logits[:, None], (p, group, logits.shape[-1])), *ROWS, None),
            finished=jnp.broadcast_to(limits <= 0, (p, group)),
            cache=Cache(entries, model.empty_completions(entries, group, slots)),
            rollout=rollout,
        )

    def advance(
        state: nnx.State,
        decoding: Decoding,
        prompt_lengths: Int[Array, "P"],
        max_lengths: Int[Array, "P"],
        allowed: Bool[Array, "V"],
        key: PRNGKeyArray,
        until: Int[Array, ""] | None = None,
    ) -> Decoding:
        model: Decoder = nnx.merge(graph, state)
        model.prepare_decoding(decoding.finished.size)
        limits = jnp.minimum(max_lengths, slots)[:, None]
        prompt_mask = jnp.arange(model.prompt_slots(decoding.cache)) < prompt_lengths[:, None]

        def body(carry: tuple[Decoding, Bool[Array, ""]]) -> tuple[Decoding, Bool[Array, ""]]:
            loop, _ = carry
            drawn = draw(config, jax.random.fold_in(key, loop.step), allowed_logits(loop.logits, allowed))
            alive = ~loop.finished
            tokens = jnp.where(alive, drawn.tokens, pad_id).astype(jnp.int32)
            stopped = (drawn.tokens[..., None] == stops).any(axis=-1)
            full = loop.step + 1 >= limits
            r = loop.rollout

            def put(rows, values):
                return lax.dynamic_update_slice_in_dim(rows, values[..., None].astype(rows.dtype), loop.step, axis=2)

            r = r.replace(
                completions=put(r.completions, tokens),
                lengths=r.lengths + alive,
                truncated=r.truncated | (alive & full & ~stopped),
                logps=put(r.logps, jnp.where(alive, drawn.logps, 0.0)),
                log_mass=put(r.log_mass, jnp.where(alive, drawn.log_mass, 0.0)),
            )
            positions = jnp.broadcast_to(prompt_lengths[:, None] + loop.step, tokens.shape)
            logits, cache, chosen = model.decode(tokens, positions, loop.cache, prompt_mask, loop.step)
            if r.experts is not None:
                r = r.replace(experts=lax.dynamic_update_slice_in_dim(r.experts, chosen[:, :, :, None], loop.step, 3))
            finished = loop.finished | stopped | full
            # Asked here and not between steps, so that devices which must hear from each other go on meanwhile.
            more = ~finished.all()
            return Decoding(loop.step + 1, constrain(logits, *ROWS, None), finished, cache, r), more

        def unfinished(carry: tuple[Decoding, Bool[Array, ""]]) -> Bool[Array, ""]:
            loop, more = carry
            return more if until is None else more & (loop.step < until)

        return lax.while_loop(unfinished, body, (decoding, ~decoding.finished.all()))[0]

    return begin, advance


def empty_rollout(prompts: int, group: int, slots: int, pad_id: int) -> Rollout:
    """Before the first token."""
    rows = jnp.zeros((prompts, group, slots), jnp.float32)
    return Rollout(
        completions=jnp.full((prompts, group, slots), pad_id, jnp.int32),
        lengths=jnp.zeros((prompts, group), jnp.int32),
        truncated=jnp.zeros((prompts, group), bool),
        logps=rows,
        log_mass=rows,
    )
