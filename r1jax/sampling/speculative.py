"""Self-speculative decoding: the multi-token prediction module drafts, the trunk verifies two tokens at a time.

A draft d from q is kept with probability min(1, p(d) / q(d)), and replaced by a draw from max(p - q, 0) otherwise, so
that what comes out is distributed as p (Leviathan et al., arXiv 2211.17192, section 2.3); DeepSeek-V3 (arXiv
2412.19437, section 5.4.3) uses its prediction module so.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from r1jax.configs.training import SamplingConfig
from r1jax.errors import ConfigError
from r1jax.losses.logprobs import allowed_logits
from r1jax.models.decoder import ROWS, Cache, Decoder
from r1jax.sampling.sampler import Rollout, empty_rollout
from r1jax.sampling.truncation import distribution
from r1jax.sharding import constrain


@struct.dataclass
class Speculation:
    """How well the drafts were: a row's passes through the trunk give 1 + accepted / passes tokens each."""

    passes: Int[Array, "P G"]  # decode passes, the prompt's not counted
    accepted: Int[Array, "P G"]  # drafts among the completion's tokens


@struct.dataclass
class _Loop:
    """State of the loop. Each row is at a slot of its own: all of its tokens so far have been read but the last."""

    step: Int[Array, ""]
    last: Int[Array, "P G"]  # the token that has yet to be read,
    draft: Int[Array, "P G"]  # a guess at the one after it,
    draft_logp: Float[Array, "P G V"]  # and what the guess was drawn from
    finished: Bool[Array, "P G"]
    trunk: Cache
    module: Cache
    rollout: Rollout
    speculation: Speculation


def make_speculative_sampler(
    graph: nnx.GraphDef, config: SamplingConfig, stop_ids: tuple[int, ...], pad_id: int
) -> Callable[..., tuple[Rollout, Speculation]]:
    """Returns a pure function of the arguments of `make_sampler`'s, whose completions have the same distribution (and
    are the same at temperature 0), in fewer passes. The first prediction module drafts one token at a time.

    Raises:
      ConfigError: when traced with a model that has no prediction module.
    """
    group, slots = config.num_generations, config.max_completion_length
    stops = jnp.array(stop_ids, jnp.int32)

    def sample(
        state: nnx.State,
        prompts: Int[Array, "P S"],
        prompt_lengths: Int[Array, "P"],
        max_lengths: Int[Array, "P"],
        allowed: Bool[Array, "V"],
        key: PRNGKeyArray,
    ) -> tuple[Rollout, Speculation]:
        model: Decoder = nnx.merge(graph, state)
        if not model.config.num_nextn_predict_layers:
            raise ConfigError(
                "num_nextn_predict_layers=0: speculative decoding needs a prediction module to draft with"
            )
        p, s = prompts.shape
        limits = jnp.broadcast_to(jnp.minimum(max_lengths, slots)[:, None], (p, group))
        starts = jnp.broadcast_to(prompt_lengths[:, None], (p, group))
        at = jnp.arange(s)
        trunk_mask, module_mask = at < prompt_lengths[:, None], at < prompt_lengths[:, None] - 1

        def is_stop(tokens: Int[Array, "P G"]) -> Bool[Array, "P G"]:
            return (tokens[..., None] == stops).any(axis=-1)

        def of(hidden: Float[Array, "P G D"]) -> tuple[Float[Array, "P G V"], Float[Array, "P G"]]:
            logits = constrain(model.logits(hidden), *ROWS, None)
            return distribution(config, allowed_logits(logits, allowed))

        def put(r: Rollout, tokens, logp, log_mass, where: Bool[Array, "P G"]) -> Rollout:
            """Appends a token to the rows of `where`."""
            rows = jnp.arange(p)[:, None], jnp.arange(group), jnp.where(where, r.lengths, slots)
            value = jnp.take_along_axis(logp, tokens[..., None], axis=-1)[..., 0]
            full = r.lengths + 1 >= limits
            return r.replace(
                completions=r.completions.at[rows].set(tokens, mode="drop"),
                logps=r.logps.at[rows].set(value, mode="drop"),
                log_mass=r.log_mass.at[rows].set(log_mass, mode="drop"),
                lengths=r.lengths + where,
                truncated=r.truncated | (where & full & ~is_stop(tokens)),
            )

        def drafted(hidden, tokens, first, taken, module: Cache, key):
            """Feeds the module states [P, G, Q, D] with the tokens after them, from slot `first`; guesses what follows
            number `taken` of them."""
            positions = starts[..., None] - 1 + first[..., None] + jnp.arange(tokens.shape[-1])
            states, module = model.draft(hidden, tokens, positions, module, module_mask, first)
            logp, _ = of(jnp.take_along_axis(states, taken[..., None, None], axis=2)[:, :, 0])
            return jax.random.categorical(key, logp).astype(jnp.int32), logp, module

        # The prompt, and the first token, which nothing has drafted.
        trunk = model.trunk(prompts, mask=trunk_mask, want_entries=True, names=("prompt", "length"))
        entries = model.by_part(trunk.entries)
        module_entries = model.draft_prefill(prompts, trunk.hidden, module_mask)
        model.prepare_decoding(2 * p * group, draft=True)
        last_state = jnp.take_along_axis(trunk.hidden, (prompt_lengths - 1)[:, None, None], axis=1)
        last_state = jnp.broadcast_to(last_state, (p, group, last_state.shape[-1]))
        logp, log_mass = of(last_state)
        keys = jax.random.split(jax.random.fold_in(key, 0))
        tokens = jax.random.categorical(keys[0], logp).astype(jnp.int32)
        rollout = put(empty_rollout(p, group, slots, pad_id), tokens, logp, log_mass, limits > 0)
        module = Cache((module_entries,), model.empty_completions((module_entries,), group, slots + 1))
        zeros = jnp.zeros((p, group), jnp.int32)
        draft, draft_logp, module = drafted(last_state[:, :, None], tokens[..., None], zeros, zeros, module, keys[1])

        def body(loop: _Loop) -> _Loop:
            keep, replace, more, guess = jax.random.split(jax.random.fold_in(key, loop.step), 4)
            alive, read = ~loop.finished, loop.rollout.lengths - 1
            pair = jnp.stack([loop.last, loop.draft], axis=-1)
            positions = starts[..., None] + read[..., None] + jnp.arange(2)
            hidden, trunk, _ = model.decode_several(pair, positions, loop.trunk, trunk_mask, read)
            (logp, log_mass), (next_logp, next_log_mass) = of(hidden[:, :, 0]), of(hidden[:, :, 1])

            # Verify the draft, or draw in its place what the draft's distribution has too little of.
            take = lambda logp: jnp.take_along_axis(logp, loop.draft[..., None], axis=-1)[..., 0]  # noqa: E731
            accepted = jnp.log(jax.random.uniform(keep, alive.shape)) < take(logp) - take(loop.draft_logp)
            rest = jnp.maximum(jnp.exp(logp) - jnp.exp(loop.draft_logp), 0.0)
            rest = jnp.where(rest.sum(axis=-1, keepdims=True) > 0, jnp.log(rest), logp)  # equal but for rounding
            first = jnp.where(accepted, loop.draft, jax.random.categorical(replace, rest)).astype(jnp.int32)
            second = jax.random.categorical(more, next_logp).astype(jnp.int32)

            rollout = put(loop.rollout, first, logp, log_mass, alive)
            finished = loop.finished | is_stop(first) | (rollout.lengths >= limits)
            both = accepted & ~finished
            rollout = put(rollout, second, next_logp, next_log_mass, both)
            finished |= both & (is_stop(second) | (rollout.lengths >= limits))

            tokens = jnp.stack([first, second], axis=-1)
            draft, draft_logp, module = drafted(hidden, tokens, read + 1, both.astype(jnp.int32), loop.module, guess)
            counts = loop.speculation
            counts = counts.replace(passes=counts.passes + alive, accepted=counts.accepted + (alive & accepted))
            last = jnp.where(both, second, first)
            return _Loop(loop.step + 1, last, draft, draft_logp, finished, trunk, module, rollout, counts)

        finished = (limits <= 1) | is_stop(tokens)
        cache = Cache(entries, model.empty_completions(entries, group, slots))
        loop = _Loop(
            jnp.int32(1), tokens, draft, draft_logp, finished, cache, module, rollout, Speculation(zeros, zeros)
        )
        loop = lax.while_loop(lambda loop: ~loop.finished.all(), body, loop)
        return loop.rollout, loop.speculation

    return sample
