"""DeepSeekMoE with auxiliary-loss-free balancing (DeepSeek-V3, arXiv 2412.19437, section 2.1.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from r1jax.configs.model import ModelConfig
from r1jax.models.experts import few_tokens, routed_experts
from r1jax.models.layers import MLP, FeaturesFirst, parameter
from r1jax.sharding import on_cpu

MOST_TO_COMPARE = 32  # router scores among which `top_k` compares each with each


class RouterBias(nnx.Variable):
    """The correction bias: float32, moved by `balance_bias` and never by a gradient."""


@struct.dataclass
class Routing:
    """What one MoE layer's router decided (stacked over layers by the decoder)."""

    experts: Int[Array, "A B k"]  # chosen for each token
    load: Float[Array, "E"]  # tokens sent to each expert, padding excluded
    balance_loss: Float[Array, ""]  # sequence-wise auxiliary loss before its coefficient (equations 17 to 20)


def top_k(x: Float[Array, "*B E"], k: int) -> tuple[Float[Array, "*B k"], Int[Array, "*B k"]]:
    """`lax.top_k`. Among few it compares each with each: on CPU XLA gathers what `lax.top_k` is given."""
    n = x.shape[-1]
    if n > MOST_TO_COMPARE:
        return lax.top_k(x, k)
    i = jnp.arange(n)
    mine, others = x[..., :, None], x[..., None, :]
    rank = ((others > mine) | ((others == mine) & (i < i[:, None]))).sum(axis=-1)
    chosen = rank[..., None, :] == jnp.arange(k)[:, None]  # [*B, k, E]
    index = jnp.where(chosen, i, 0).sum(axis=-1)
    return jnp.where(chosen, x[..., None, :], 0).sum(axis=-1), index


class Router(nnx.Module):
    """Sigmoid (or softmax) affinities and group-limited top-k; everything in float32."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        e, d = config.n_routed_experts, config.hidden_size
        self.weight = parameter(rngs, config, (d, e), ("embed", None), d, wide=True)
        self.e_score_correction_bias = RouterBias(jnp.zeros(e, jnp.float32), logical=(None,))
        self.top_k, self.n_group, self.topk_group = config.num_experts_per_tok, config.n_group, config.topk_group
        self.normalise, self.route_scale = config.norm_topk_prob, config.routed_scaling_factor
        self.affinity = jax.nn.sigmoid if config.scoring_func == "sigmoid" else jax.nn.softmax

    def scores(self, x: Float[Array, "A B D"]) -> Float[Array, "A B E"]:
        wide = jnp.promote_types(x.dtype, jnp.float32)
        product = jnp.matmul(x.astype(wide), self.weight[...].astype(wide), precision=lax.Precision.HIGHEST)
        return self.affinity(product)

    def select(self, scores: Float[Array, "A B E"]) -> Int[Array, "A B k"]:
        """The top k of score + bias, among the experts of the best groups (a group's score: its top two, summed)."""
        biased = lax.stop_gradient(scores) + self.e_score_correction_bias[...].astype(scores.dtype)
        if self.n_group > 1:
            groups = biased.reshape(*biased.shape[:-1], self.n_group, -1)
            best = top_k(groups, min(2, groups.shape[-1]))[0].sum(axis=-1)
            kept = jax.nn.one_hot(top_k(best, self.topk_group)[1], self.n_group, dtype=bool).any(axis=-2)
            # -inf and not 0: a biased score can be negative, and must then still beat the groups left out.
            biased = jnp.where(kept[..., None], groups, -jnp.inf).reshape(biased.shape)
        return top_k(biased, self.top_k)[1]

    def __call__(
        self, x: Float[Array, "A B D"], mask: Bool[Array, "A B"] | None, experts: Int[Array, "A B k"] | None
    ) -> tuple[Float[Array, "A B k"], Routing]:
        """Weights of the chosen experts (unbiased scores, normalised, scaled). `experts` replays an earlier choice."""
        scores = self.scores(x)
        if experts is None:
            experts = self.select(scores)
        weights = jnp.take_along_axis(scores, experts, axis=-1)
        if self.normalise:
            weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-20)
        mask = jnp.ones(x.shape[:2], scores.dtype) if mask is None else mask.astype(scores.dtype)
        chosen = jax.nn.one_hot(experts, scores.shape[-1], dtype=scores.dtype).sum(axis=-2) * mask[..., None]
        per_sequence = chosen.sum(axis=1)
        length = jnp.maximum(mask.sum(axis=1), 1)[:, None]
        share = scores / scores.sum(axis=-1, keepdims=True) * mask[..., None]
        fraction = per_sequence * (scores.shape[-1] / self.top_k) / length
        balance = (lax.stop_gradient(fraction) * share.sum(axis=1) / length).sum(axis=-1).mean()
        return weights * self.route_scale, Routing(experts, lax.stop_gradient(per_sequence.sum(axis=0)), balance)


class MoE(nnx.Module):
    """Shared experts for every token, and each token's routed experts."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        e, d, f = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.router = Router(config, rngs)
        self.gate_proj = parameter(rngs, config, (e, d, f), ("expert", "embed", "moe_mlp"), d)
        self.up_proj = parameter(rngs, config, (e, d, f), ("expert", "embed", "moe_mlp"), d)
        self.down_proj = parameter(rngs, config, (e, f, d), ("expert", "moe_mlp", "embed"), f)
        self.shared = MLP(config, f * config.n_shared_experts, rngs) if config.n_shared_experts else None
        self.backend, self.chunk = config.moe_backend, config.moe_chunk

    def __call__(
        self,
        x: Float[Array, "A B D"],
        names: tuple[str, str],
        mask: Bool[Array, "A B"] | None = None,
        experts: Int[Array, "A B k"] | None = None,
    ) -> tuple[Float[Array, "A B D"], Routing]:
        weights, routing = self.router(x, mask, experts)
        matrices = (self.gate_proj[...], self.up_proj[...], self.down_proj[...])
        chosen = routing.experts
        if mask is not None:  # padding goes nowhere
            chosen = jnp.where(mask[..., None], chosen, -1)
        y = routed_experts(x, chosen, weights, *matrices, names, self._backend, self.chunk)
        if self.shared is not None:
            y = y + self.shared(x, names)
        return y, routing

    @property
    def _backend(self) -> str:
        """Asked where it is traced: a model may be made before it is known for which devices."""
        return ("tiled" if on_cpu() else "ragged") if self.backend == "auto" else self.backend

    def prepared(self, tokens: int) -> MoE | EveryExpert:
        """The form in which a CPU device takes that many tokens at a time, many times, with all weights."""
        every = self._backend == "tiled" and few_tokens(tokens, self.router.top_k, self.gate_proj.shape[0])
        return EveryExpert(self) if every else self


class EveryExpert(nnx.Module):
    """A mixture of experts for few tokens: each goes through all experts, shared ones too, side by side.

    On CPU that is cheaper than copying the weights of each tile together, and as dropless.
    """

    def __init__(self, moe: MoE):
        self.routed, d, width = moe.gate_proj.shape
        shared = [] if moe.shared is None else [moe.shared]

        def into(name: str) -> Float[Array, "E F D"]:
            wide = [getattr(mlp, name)[...].T.reshape(-1, width, d) for mlp in shared]
            return jnp.concatenate([jnp.swapaxes(getattr(moe, name)[...], 1, 2), *wide])

        down = jnp.concatenate([moe.down_proj[...].reshape(-1, d), *(mlp.down_proj[...] for mlp in shared)])
        self.router = moe.router
        self.mlps = FeaturesFirst(into("gate_proj"), into("up_proj"), down.T.reshape(d, -1, width))

    def __call__(
        self,
        x: Float[Array, "A B D"],
        names: tuple[str, str],
        mask: Bool[Array, "A B"] | None = None,
        experts: Int[Array, "A B k"] | None = None,
    ) -> tuple[Float[Array, "A B D"], Routing]:
        weights, routing = self.router(x, mask, experts)
        if mask is not None:
            weights = jnp.where(mask[..., None], weights, 0)
        tokens = x.shape[0] * x.shape[1]
        number = jnp.arange(self.mlps.out_proj.shape[1])[:, None]
        chosen = (routing.experts.reshape(tokens, -1) == number[..., None]).astype(weights.dtype)  # [E, N, k]
        share = jnp.einsum("enk,nk->en", chosen, weights.reshape(tokens, -1)) + (number >= self.routed)
        return self.mlps(x, names, share), routing


def balance_bias(bias: Float[Array, "*L E"], load: Float[Array, "*L E"], rate: float) -> Float[Array, "*L E"]:
    """Auxiliary-loss-free balancing: `rate` up for experts under the mean load, down for those over it."""
    return bias + rate * jnp.sign(load.mean(axis=-1, keepdims=True) - load)
