"""Compiles the GRPO programs for a TPU topology with no TPU attached, and prints what each needs of a chip's memory.

    python tpu/aot.py [--preset deepseek-v3-671b] [--topology v5p:8x8x8] [--mesh.fsdp 32 --mesh.expert 16]

The programs are those that training compiles: `make_grpo_update`, `make_logps`, the decoder's step and the whole
sampler. Only shapes are made, never arrays. It says what fits; it says nothing of speed.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

# libtpu compiles; nothing here may look for a TPU, or ask a cloud what machine this is.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
import jax.numpy as jnp
import tyro
from flax import nnx
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from r1jax import sharding
from r1jax.configs.model import ModelConfig
from r1jax.configs.presets import model_preset
from r1jax.configs.training import GRPOConfig, OptimizerConfig
from r1jax.errors import ConfigError, check_field, exit_on_error
from r1jax.models.decoder import Cache, Decoder
from r1jax.recipes.config import MeshConfig
from r1jax.training.grpo import GRPOBatch, make_grpo_update, make_logps, make_rollout
from r1jax.training.optimizer import make_optimizer
from r1jax.training.state import TrainState, init_state, model_graph, state_shardings, with_reference

GB = 1e9
HBM = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32, "tpu7x": 192}  # GB a chip
PROGRAMS = ("update", "logps", "decode", "sample")


@dataclasses.dataclass(frozen=True)
class Options:
    """Compile for a TPU topology ahead of time and print the memory that each program needs per chip."""

    preset: str = "deepseek-v3-671b"
    topology: str = "v5p:8x8x8"
    """Generation and chips along each axis of the torus, as libtpu names them."""
    mesh: MeshConfig = dataclasses.field(default_factory=lambda: MeshConfig(data=1, fsdp=32, expert=16))
    program: Literal["update", "logps", "decode", "sample", "all"] = "all"
    sequences: int = 512
    """Completions per update ..."""
    group: int = 16
    """... of which so many share a prompt."""
    length: int = 4096
    """Tokens of a sequence, its prompt included ..."""
    prompt: int = 512
    """... and of a prompt."""
    minibatches: int = 1
    microbatches: int = 1
    layers: int | None = None
    """Only so many layers (the dense ones first): a quick look at a change."""
    limit: float | None = None
    """GB a chip; the generation's unless given."""
    hlo: Path | None = None
    """Also write each compiled program's text into this folder."""


# ---------------------------------------------------------------------------------------------------- programs


@dataclasses.dataclass(frozen=True)
class Program:
    """A function as training jits it, on shapes."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    layout: sharding.Layout
    donate: tuple[int, ...] = ()
    out_shardings: Any = None


@dataclasses.dataclass(frozen=True)
class Need:
    """What a compiled program needs of one chip, in bytes."""

    program: str
    seconds: float
    arguments: int
    outputs: int  # those that do not take a donated argument's place
    temporaries: int  # program code included
    kept: int  # the training state that the program is not given, but that lies on the chip meanwhile

    @property
    def total(self) -> int:
        return self.arguments + self.outputs + self.temporaries + self.kept


def shapes(tree: Any, shardings: Any) -> Any:
    """Shapes with a place on the mesh."""
    return jax.tree.map(lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), tree, shardings)


def bytes_per_chip(tree: Any) -> int:
    """Of arrays or shapes with shardings, before padding."""
    return sum(
        a.dtype.itemsize * int(jnp.prod(jnp.array(a.sharding.shard_shape(a.shape)))) for a in jax.tree.leaves(tree)
    )


def programs(model: ModelConfig, config: GRPOConfig, prompt: int, mesh: Mesh) -> Iterator[tuple[Program, TrainState]]:
    """The programs of a GRPO step, each with the training state that lies on the mesh while it runs."""
    learn, sample = sharding.Layout(mesh, "learn"), sharding.Layout(mesh, "sample")
    graph = model_graph(model)
    optimizer = make_optimizer(OptimizerConfig(), 10_000)

    def make(key: jax.Array) -> TrainState:
        return with_reference(init_state(model, optimizer, key), optimizer, "bfloat16")

    state = jax.eval_shape(make, jax.random.key(0))
    places = state_shardings(state, learn)
    state = shapes(state, places)

    def array(shape, dtype, *names, layout=learn):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=layout.sharding(names))

    rows, length, p = config.batch_size, prompt + config.max_completion_length, config.num_prompts
    allowed = array((model.vocab_size,), bool, None)
    tokens = lambda dtype: array((rows, length), dtype, "batch", "length")  # noqa: E731
    batch = GRPOBatch(tokens(jnp.int32), tokens(bool), tokens(jnp.float32), array((rows,), bool, "batch"), allowed)
    scored = batch.replace(
        ref_logps=tokens(jnp.float32),
        advantages=array((rows,), jnp.float32, "batch"),
        counted=array((rows,), bool, "batch"),
    )
    update = make_grpo_update(model, graph, config, optimizer)
    yield Program("update", update, (state, scored), learn, (0,), (places, None)), state
    logps = make_logps(model, graph, config)
    out = learn.sharding(("batch", "length"))
    yield Program("logps", logps, (state.ref_state, batch), learn, out_shardings=out), state

    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=learn.replicated)
    lengths = array((p,), jnp.int32, "prompt")
    prompts = array((p, prompt), jnp.int32, "prompt", None)
    rollout = make_rollout(model, graph, config.sampling, (1,), 2, sample)
    yield Program("sample", rollout, (state.model_state, prompts, lengths, lengths, allowed, key), sample), state

    copy = jax.eval_shape(lambda s: sharding.relay(s, sample, model.dtype), state.model_state)
    copy = shapes(copy, sharding.state_shardings(copy, sample))
    step = (p, config.num_generations)
    with sharding.use(sample):
        cache, mask = jax.eval_shape(lambda s, t, n: _cache(graph, config, s, t, n), copy, prompts, lengths)
    axes = nnx.merge(graph, copy).cache_axes
    places = [tuple(sample.sharding(axes(a, *rows)) for a in part) for rows, part in (
        (("prompt",), cache.prompt), (("prompt", "group"), cache.completion))]  # fmt: skip
    cache = shapes(cache, Cache(*places))
    row = array(step, jnp.int32, "prompt", "group")
    mask = array(mask.shape, bool, "prompt", None)

    def decode(s: nnx.State, *args: Any) -> Any:
        decoder: Decoder = nnx.merge(graph, s)
        return decoder.decode(*args)

    args = (copy, row, row, cache, mask, jax.ShapeDtypeStruct((), jnp.int32, sharding=sample.replicated))
    yield Program("decode", decode, args, sample, (3,)), state


def _cache(graph: nnx.GraphDef, config: GRPOConfig, state: nnx.State, tokens: jax.Array, lengths: jax.Array) -> Any:
    """An empty cache for a rollout, and its prompts' mask."""
    model: Decoder = nnx.merge(graph, state)
    _, entries, _ = model.prefill(tokens, lengths)
    room = model.empty_completions(entries, config.num_generations, config.max_completion_length)
    return Cache(entries, room), jnp.arange(tokens.shape[1]) < lengths[:, None]


def compile_program(program: Program, state: TrainState) -> tuple[Need, Any]:
    """Lowers and compiles; what it needs, and the compiled program."""

    def under_layout(*args):
        with sharding.use(program.layout):
            return program.function(*args)

    start = time.monotonic()
    jitted = jax.jit(under_layout, donate_argnums=program.donate, out_shardings=program.out_shardings)
    compiled = jitted.lower(*program.args).compile()
    seconds = time.monotonic() - start
    memory = compiled.memory_analysis()
    # The sampler's own copy is not part of the training state; everything else it is given is.
    given = {id(leaf) for leaf in jax.tree.leaves(program.args)}
    kept = [leaf for leaf in jax.tree.leaves(state) if id(leaf) not in given]
    need = Need(
        program.name,
        seconds,
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes,
        memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        bytes_per_chip(kept),
    )
    return need, compiled


# ---------------------------------------------------------------------------------------------------- topology


def topology_devices(name: str) -> list[Any]:
    """The devices of a topology that is not there.

    Raises:
      ConfigError: libtpu is missing, or knows no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("libtpu is not installed, and it is what compiles for TPUs: pip install 'r1jax[tpu]'")
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except Exception as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"topology={name!r}: libtpu does not know it ({first}); v5p:8x8x8 is 512 chips") from None


def hbm(topology: str) -> float:
    generation = topology.split(":")[0]
    check_field(generation in HBM, "topology", topology, f"pass --limit: memory is known of {', '.join(HBM)}")
    return HBM[generation]


def table(needs: Sequence[Need], limit: float, title: str) -> Table:
    out = Table(title=title, title_justify="left")
    out.add_column("program")
    for name in ("compile s", "arguments", "outputs", "temporaries", "kept", "total GB", f"fits {limit:g} GB"):
        out.add_column(name, justify="right")
    for n in needs:
        parts = (n.arguments, n.outputs, n.temporaries, n.kept, n.total)
        fits = "yes" if n.total <= limit * GB else "NO"
        out.add_row(n.program, f"{n.seconds:.0f}", *(f"{b / GB:.2f}" for b in parts), fits)
    return out


def main(options: Options) -> int:
    """Exit status: 0 if everything fits, 1 if not."""
    model = model_preset(options.preset)
    if options.layers:
        dense = min(model.first_k_dense_replace, options.layers)
        model = model.replace(num_hidden_layers=options.layers, first_k_dense_replace=dense)
    group, sequences, prompt, length = options.group, options.sequences, options.prompt, options.length
    check_field(group > 0 and sequences % group == 0, "group", group, f"must divide sequences={sequences}")
    check_field(0 < prompt < length, "prompt", prompt, f"must be positive and less than length={length}")
    config = GRPOConfig(
        num_prompts=sequences // group,
        num_generations=group,
        max_completion_length=length - prompt,
        num_minibatches=options.minibatches,
        num_microbatches=options.microbatches,
    )
    limit = options.limit or hbm(options.topology)
    devices = topology_devices(options.topology)
    mesh = sharding.make_mesh(dataclasses.asdict(options.mesh), devices)
    console = Console(width=110)
    needs = []
    for program, state in programs(model, config, options.prompt, mesh):
        if options.program in ("all", program.name):
            console.print(f"compiling {program.name} ...", highlight=False)
            need, compiled = compile_program(program, state)
            needs.append(need)
            if options.hlo:
                options.hlo.mkdir(parents=True, exist_ok=True)
                (options.hlo / f"{program.name}.txt").write_text(compiled.as_text())
            del compiled
            console.print(table(needs[-1:], limit, ""))
            gc.collect()
    sizes = " x ".join(f"{axis} {n}" for axis, n in mesh.shape.items() if n > 1)
    title = (
        f"{options.preset}, {model.num_hidden_layers} layers; {options.topology}, {len(devices)} chips: {sizes}; "
        f"{sequences} x {length} tokens; GB a chip"
    )
    console.print(table(needs, limit, title))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB
    console.print(f"host memory at its highest: {peak:.1f} GB", highlight=False)
    return int(any(n.total > limit * GB for n in needs))


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main(tyro.cli(Options)))
