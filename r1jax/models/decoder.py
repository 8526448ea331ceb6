"""The decoder: embedding, dense layers, MoE layers, final norm, head, and the multi-token prediction module.

One definition serves learning, sampling and evaluation. Layers of a kind are stacked and scanned.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from r1jax import sharding
from r1jax.configs.model import ModelConfig
from r1jax.models.attention import write_slots
from r1jax.models.gqa import GQA
from r1jax.models.layers import MLP, Embedding, RMSNorm, matmul, matmul_features_first, parameter
from r1jax.models.mla import MLA
from r1jax.models.moe import MoE, Routing
from r1jax.models.rope import cos_sin
from r1jax.sharding import constrain, pin

TOKENS = ("batch", "length")  # logical axes of whole sequences,
PROMPTS = ("prompt", "length")  # of a rollout's prompts, which a group shares,
ROWS = ("prompt", "group")  # and of one token per row of a rollout

# Bytes of weights up to which decoding on CPU makes a copy of them, each layer by itself: see `prepare_decoding`.
LAYERS_APART = 256 << 20


class Block(nnx.Module):
    """One pre-norm layer: attention, then a dense MLP or a mixture of experts."""

    def __init__(self, config: ModelConfig, moe: bool, rngs: nnx.Rngs):
        eps, d = config.rms_norm_eps, config.hidden_size
        self.input_norm = RMSNorm(d, eps, config.param_dtype)
        self.attention = (MLA if config.attention == "mla" else GQA)(config, rngs)
        self.post_attention_norm = RMSNorm(d, eps, config.param_dtype)
        self.mlp = MoE(config, rngs) if moe else MLP(config, config.intermediate_size, rngs)
        self.moe = moe

    def _feed_forward(self, x, names, mask=None, experts=None) -> tuple[Array, Routing | None]:
        h = self.post_attention_norm(x)
        y, routing = self.mlp(h, names, mask, experts) if self.moe else (self.mlp(h, names), None)
        return constrain(x + y, *names, None), routing

    def __call__(self, x, cos, sin, segment_ids, mask, experts, names=TOKENS):
        """Whole sequences [B, T, D] -> (x, cache entries [B, T, *E], routing)."""
        y, entry = self.attention(self.input_norm(x), cos, sin, segment_ids, names)
        x, routing = self._feed_forward(constrain(x + y, *names, None), names, mask, experts)
        return x, entry, routing

    @property
    def alone(self) -> bool:
        """One layer, and not many of a kind with a leading axis in front of their arrays."""
        return self.input_norm.weight.ndim == 1

    def prepare(self, tokens: int) -> None:
        """Brings the weights into the form in which to `decode` that many tokens at a time, many times."""
        layout = sharding.current()
        self.attention.prepare()
        self.mlp = self.mlp.prepared(tokens // (1 if layout is None else layout.size("prompt") * layout.size("group")))

    def decode(self, x, cos, sin, prompt, prompt_mask, completion, step, in_place):
        """Q tokens per row side by side [P, G Q, D] -> (x, the completion's cache with their entries [P, G, C, *E] (in
        place) or these entries [P, G, Q, *E], routing)."""
        h = self.input_norm(x)
        y, written = self.attention.decode(h, cos, sin, prompt, prompt_mask, completion, step, in_place)
        x, routing = self._feed_forward(constrain(x + y, *ROWS, None), ROWS)
        return x, written, routing


class MTP(nnx.Module):
    """Multi-token prediction (DeepSeek-V3, section 2.2): one more layer that predicts one token further.

    The embedding half comes first, as in the released checkpoints (the paper's formula has the halves the other way).
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        d, eps = config.hidden_size, config.rms_norm_eps
        self.enorm = RMSNorm(d, eps, config.param_dtype)
        self.hnorm = RMSNorm(d, eps, config.param_dtype)
        self.eh_proj = parameter(rngs, config, (2 * d, d), ("embed", None), 2 * d)
        self.block = Block(config, config.num_moe_layers > 0, rngs)
        self.norm = RMSNorm(d, eps, config.param_dtype)

    def __call__(self, hidden, embedded, cos, sin, segment_ids, mask, names=TOKENS):
        """Trunk states at i [B, T, D] and embeddings of token i + 1 -> (states that predict token i + 2 [B, T, D],
        cache entries [B, T, *E], routing)."""
        x, entries, routing = self.block(self._join(hidden, embedded), cos, sin, segment_ids, mask, None, names)
        return self.norm(x), entries, routing

    def decode(self, hidden, embedded, cos, sin, prompt, prompt_mask, completion, step):
        """The same for Q pairs per row side by side [P, G Q, D] -> (states, the completion's cache with them)."""
        x = self._join(hidden, embedded)
        x, completion, _ = self.block.decode(x, cos, sin, prompt, prompt_mask, completion, step, in_place=True)
        return self.norm(x), completion

    def _join(self, hidden, embedded):
        x = jnp.concatenate([self.enorm(embedded), self.hnorm(hidden)], axis=-1)
        return matmul(x, self.eh_proj[...].astype(x.dtype))


@struct.dataclass
class Trunk:
    """What a pass over whole sequences gives."""

    hidden: Float[Array, "B T D"]  # after the final norm
    routing: Routing | None  # MoE layers stacked in front
    entries: tuple[Array, ...] | None  # per stack of layers, cache entries [L, B, T, *E]


@struct.dataclass
class Cache:
    """The sampler's memory: one array for each stack of layers, or for each layer, then without L."""

    prompt: tuple[Float[Array, "*L P S *E"], ...]
    completion: tuple[Float[Array, "*L P G C *E"], ...]


def _layers(state: nnx.State) -> int:
    return jax.tree.leaves(state)[0].shape[0]


def _side_by_side(x: Array) -> Array:
    """[P, G, Q] -> [P, G Q]: what everything but attention sees."""
    return x.reshape(x.shape[0], -1)


class LayersApart(nnx.Module):
    """Layers and head to decode with, and the prediction module to draft with; see `Decoder.prepare_decoding`."""

    def __init__(self, blocks: list[Block], head: Float[Array, "V D"] | None, mtp: MTP | None, rows: int):
        self.blocks = nnx.List(blocks)
        if head is not None:  # and not the embedding
            self.head = nnx.Param(head)
        for block in blocks:
            block.prepare(rows)
        if mtp is not None:
            self.mtp = nnx.merge(*nnx.split(mtp))  # a copy: the module that there is takes whole sequences
            self.mtp.block.prepare(rows)


class Decoder(nnx.Module):
    """A causal language model over right-padded tokens."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.embed = Embedding(config, rngs)

        def stack(count: int, moe: bool) -> Block | None:
            if not count:
                return None
            return nnx.vmap(lambda r: Block(config, moe, r))(rngs.split(count))

        self.dense_layers = stack(config.first_k_dense_replace, False)
        self.moe_layers = stack(config.num_moe_layers, True)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, config.param_dtype)
        if not config.tie_word_embeddings:
            shape = (config.hidden_size, config.vocab_size)
            self.lm_head = parameter(rngs, config, shape, ("embed", "vocab"), config.hidden_size, wide=True)
        self.mtp = nnx.List([MTP(config, rngs) for _ in range(config.num_nextn_predict_layers)])

    @property
    def head(self) -> Float[Array, "D V"]:
        """The output matrix, float32: log-probabilities from a bfloat16 head are too coarse to train on."""
        w = self.embed.weight[...].T if self.config.tie_word_embeddings else self.lm_head[...]
        return w.astype(jnp.promote_types(self.config.dtype, jnp.float32))

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """float32 logits of final-normed states."""
        if hasattr(self, "apart"):
            w = (self.embed.weight if self.config.tie_word_embeddings else self.apart.head)[...]
            return matmul_features_first(hidden.astype(jnp.promote_types(hidden.dtype, w.dtype)), w)
        head = self.head
        return matmul(hidden.astype(head.dtype), head)

    def _stacks(self) -> list[Block]:
        """Each stack that exists, in order."""
        return [m for m in (self.dense_layers, self.moe_layers) if m is not None]

    def prepare_decoding(self, rows: int, draft: bool = False, limit: int | None = None) -> None:
        """Lays out, once for many steps, what `decode` and `draft` of `rows` tokens at a time run through, in `apart`.

        A scan over layers cuts each out of its stack, which on CPU copies it, at every step: that takes as long as the
        step itself. So where a copy of all weights takes at most `limit` bytes (None: `LAYERS_APART`), every layer
        stands alone, cut out once, its weights in the form that suits so many rows, and so does the head. Elsewhere,
        and for a model that has been prepared, there is nothing to do. For a model that samples only: what it has
        prepared does not follow its weights.
        """
        if self.layers_apart(limit) and not hasattr(self, "apart"):
            head = None if self.config.tie_word_embeddings else self.lm_head[...].T
            self.apart = LayersApart(self._parts(apart=True), head, self.mtp[0] if draft else None, rows)

    def _parts(self, apart: bool) -> list[Block]:
        """The stacks, or each layer of a stack by itself, as decoding goes through them."""
        parts = []
        for stack in self._stacks():
            graph, state = nnx.split(stack)
            alone = range(_layers(state)) if apart or _layers(state) == 1 else ()
            layers = [nnx.merge(graph, jax.tree.map(lambda a, i=i: a[i], state)) for i in alone]
            parts += layers or [stack]
        return parts

    def by_part(self, entries: tuple[Float[Array, "L P S *E"], ...]) -> tuple[Float[Array, "*L P S *E"], ...]:
        """A prompt's cache entries, given for dense and for MoE layers, in the parts that decoding goes through."""
        parts, apart = [], self.layers_apart()
        for e in entries:
            parts += [*e] if apart or e.shape[0] == 1 else [e]
        return tuple(self._of_prompts(e) for e in parts)

    def layers_apart(self, limit: int | None = None) -> bool:
        """Whether decoding here takes every layer by itself: has been prepared, or is to be within so many bytes."""
        if hasattr(self, "apart"):
            return True
        if not (sharding.on_cpu() and sharding.weights_whole()):
            return False
        layout = sharding.current()
        copies = 1 if layout is None else layout.mesh.size  # every device has its own
        head = [] if self.config.tie_word_embeddings else [self.lm_head[...]]
        leaves = jax.tree.leaves([nnx.state(part) for part in (*self._stacks(), *self.mtp)]) + head
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        return copies * size <= (LAYERS_APART if limit is None else limit)

    def _of_prompts(self, entries: Float[Array, "*L P S *E"]) -> Float[Array, "*L P S *E"]:
        """Laid out as a cache holds them."""
        return constrain(entries, *self.cache_axes(entries, "prompt"))

    def cache_axes(self, entries: Array, *rows: str) -> tuple[str | None, ...]:
        """The logical axes of a cache's array, of which `rows` are those between layers and slots."""
        behind = (None,) * (1 + self._entry_rank)  # slots and what each holds
        return (None,) * (entries.ndim - len(rows) - len(behind)) + rows + behind

    def prompt_slots(self, cache: Cache) -> int:
        """S, of the prompts in a cache."""
        return cache.prompt[0].shape[-1 - self._entry_rank]

    @property
    def _entry_rank(self) -> int:
        return 1 if self.config.attention == "mla" else 3

    def trunk(
        self,
        tokens: Int[Array, "B T"],
        *,
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        mask: Bool[Array, "B T"] | None = None,
        experts: Int[Array, "L B T k"] | None = None,
        want_entries: bool = False,
        names: tuple[str, str] = TOKENS,
    ) -> Trunk:
        """Runs every layer over whole sequences.

        Args:
          positions: 0..T-1 unless given (packed rows restart theirs).
          segment_ids: keeps packed examples apart; 0 is padding.
          mask: tokens that are not padding (all unless given); others reach no routed expert and count in no load or
            balance loss.
          experts: replays these choices of the MoE layers instead of routing anew.
          want_entries: also return every layer's cache entries.
          names: logical axes of the tokens.
        """
        cos, sin = cos_sin(self.config, self._positions(tokens, positions))
        x = constrain(self.embed(tokens), *names, None)
        entries, routing = [], None
        for stack in self._stacks():
            graph, state = nnx.split(stack)

            def layer(x, xs, graph=graph):
                state, chosen = xs
                # Pinned within the scan, so that what it accumulates gradients in is split as the parameters are.
                x, entry, routing = nnx.merge(graph, pin(state))(x, cos, sin, segment_ids, mask, chosen, names)
                return x, (entry if want_entries else None, routing)

            if self.config.remat:
                layer = jax.checkpoint(layer)
            chosen = experts if stack is self.moe_layers else None
            x, (entry, routing) = lax.scan(layer, x, (state, chosen), unroll=self._unroll(state))
            entries.append(entry)
        return Trunk(self.norm(x), routing, tuple(entries) if want_entries else None)

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T V"]:
        """Logits of the next token at every position; float32."""
        return self.logits(self.trunk(tokens).hidden)

    def mtp_hidden(
        self,
        hidden: Float[Array, "B T D"],
        tokens: Int[Array, "B T"],
        *,
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        mask: Bool[Array, "B T"] | None = None,
    ) -> list[tuple[Float[Array, "B T D"], Routing | None]]:
        """States of each prediction module; entry i of module k (from 0) predicts token i + 2 + k.

        The last 1 + k positions have no token to embed and are to be left out by the caller.
        """
        cos, sin = cos_sin(self.config, self._positions(tokens, positions))
        out = []
        for k, module in enumerate(self.mtp):
            embedded = self.embed(jnp.roll(tokens, -(k + 1), axis=1))
            run = jax.checkpoint(module) if self.config.remat else module
            hidden, _, routing = run(hidden, embedded, cos, sin, segment_ids, mask)
            out.append((hidden, routing))
        return out

    def mtp_logits(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T-1 V"]:
        """The first prediction module's logits: entry i predicts token i + 2."""
        (hidden, _), *_ = self.mtp_hidden(self.trunk(tokens).hidden, tokens)
        return self.logits(hidden[:, :-1])

    def prefill(
        self, tokens: Int[Array, "P S"], lengths: Int[Array, "P"]
    ) -> tuple[Float[Array, "P V"], tuple[Array, ...], Routing | None]:
        """Logits of the token after each prompt, the prompts' cache entries, and the routers' choices."""
        if hasattr(self, "apart") and self.config.attention == "gqa" and self.moe_layers is None:
            hidden, entries, routing = *self._prefill_apart(tokens), None
        else:
            mask = jnp.arange(tokens.shape[1]) < lengths[:, None]
            trunk = self.trunk(tokens, mask=mask, want_entries=True, names=PROMPTS)
            hidden, entries, routing = trunk.hidden, self.by_part(trunk.entries), trunk.routing
        last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
        return self.logits(last), entries, routing

    def _prefill_apart(self, tokens: Int[Array, "P S"]) -> tuple[Float[Array, "P S D"], tuple[Array, ...]]:
        """Final states and cache entries by the layers that decode, which need not be cut out of their stack. For those
        that serve whole sequences too as they are prepared: experts and latent attention do not."""
        cos, sin = cos_sin(self.config, self._positions(tokens, None))
        x = constrain(self.embed(tokens), *PROMPTS, None)
        entries = []
        for block in self.apart.blocks:
            x, entry, _ = block(x, cos, sin, None, None, None, PROMPTS)
            entries.append(self._of_prompts(entry))
        return self.norm(x), tuple(entries)

    def decode(
        self,
        tokens: Int[Array, "P G"],
        positions: Int[Array, "P G"],
        cache: Cache,
        prompt_mask: Bool[Array, "P S"],
        step: Int[Array, ""],
    ) -> tuple[Float[Array, "P G V"], Cache, Int[Array, "L P G k"] | None]:
        """Reads one token per row, whose completion slot is `step`: next logits, the cache with it, its experts."""
        tokens, positions = tokens[..., None], positions[..., None]
        x, cache, experts = self.decode_several(tokens, positions, cache, prompt_mask, step)
        return self.logits(x[:, :, 0]), cache, experts

    def decode_several(
        self,
        tokens: Int[Array, "P G Q"],
        positions: Int[Array, "P G Q"],
        cache: Cache,
        prompt_mask: Bool[Array, "P S"],
        step: Int[Array, "*PG"],
    ) -> tuple[Float[Array, "P G Q D"], Cache, Int[Array, "L P G*Q k"] | None]:
        """Reads Q consecutive tokens per row into its slots from `step` on: final states, the cache, their experts.

        `step` is one number for all rows, or each row's own.
        """
        cos, sin = cos_sin(self.config, _side_by_side(positions))
        x = constrain(self.embed(_side_by_side(tokens)), *ROWS, None)
        completion, experts = [], []
        parts = self.apart.blocks if hasattr(self, "apart") else self._parts(self.layers_apart())
        for part, prompt, written in zip(parts, cache.prompt, cache.completion, strict=True):
            (graph, state), alone = nnx.split(part), part.alone

            def layer(x, xs, graph=graph, alone=alone):
                state, prompt, written = xs
                block = nnx.merge(graph, state)
                x, written, routing = block.decode(x, cos, sin, prompt, prompt_mask, written, step, in_place=alone)
                return x, (written, None if routing is None else routing.experts)

            if alone:
                x, (written, chosen) = layer(x, (state, prompt, written))
                chosen = None if chosen is None else chosen[None]
            else:
                x, (entries, chosen) = lax.scan(layer, x, (state, prompt, written), unroll=self._unroll(state))
                # One write for the whole stack, after it has been read: the cache is updated in place.
                written = write_slots(written, entries, step, axis=3)
            completion.append(written)
            experts += [] if chosen is None else [chosen]
        experts = jnp.concatenate(experts) if experts else None
        x = self.norm(x).reshape(*tokens.shape, -1)
        return x, cache.replace(completion=tuple(completion)), experts

    def draft_prefill(
        self, tokens: Int[Array, "P S"], hidden: Float[Array, "P S D"], mask: Bool[Array, "P S"]
    ) -> Float[Array, "P S *E"]:
        """The first prediction module's cache entries of a prompt. Entry i is of the state at i and token i + 1, so
        that the last one of a prompt, whose next token has yet to be drawn, does not count."""
        cos, sin = cos_sin(self.config, self._positions(tokens, None))
        embedded = constrain(self.embed(jnp.roll(tokens, -1, axis=1)), *PROMPTS, None)
        return self._of_prompts(self.mtp[0](hidden, embedded, cos, sin, None, mask, PROMPTS)[1])

    def draft(
        self,
        hidden: Float[Array, "P G Q D"],
        tokens: Int[Array, "P G Q"],
        positions: Int[Array, "P G Q"],
        cache: Cache,
        prompt_mask: Bool[Array, "P S"],
        step: Int[Array, "*PG"],
    ) -> tuple[Float[Array, "P G Q D"], Cache]:
        """Runs the first prediction module on Q states per row and the tokens that follow them: its states, whose
        `logits` are of the token after those, and its cache with what it read in its slots from `step` on."""
        cos, sin = cos_sin(self.config, _side_by_side(positions))
        embedded = constrain(self.embed(_side_by_side(tokens)), *ROWS, None)
        hidden = constrain(hidden.reshape(embedded.shape), *ROWS, None)
        args = (cache.prompt[0], prompt_mask, cache.completion[0], step)
        module = getattr(getattr(self, "apart", None), "mtp", self.mtp[0])
        x, completion = module.decode(hidden, embedded, cos, sin, *args)
        return x.reshape(*tokens.shape, -1), cache.replace(completion=(completion,))

    def empty_completions(
        self, entries: tuple[Float[Array, "*L P S *E"], ...], group: int, slots: int
    ) -> tuple[Float[Array, "*L P G C *E"], ...]:
        """Room for `slots` completion entries per row, for prompts' entries."""

        def room(e: Array) -> Array:
            at = e.ndim - 1 - self._entry_rank  # of S
            empty = jnp.zeros((*e.shape[:at], group, slots, *e.shape[at + 1 :]), e.dtype)
            return constrain(empty, *self.cache_axes(empty, *ROWS))

        return tuple(room(e) for e in entries)

    def _unroll(self, state: nnx.State) -> int:
        return min(self.config.scan_unroll, _layers(state))

    def _positions(self, tokens: Array, positions: Array | None) -> Array:
        return jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape) if positions is None else positions
