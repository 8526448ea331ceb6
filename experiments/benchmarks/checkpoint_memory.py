"""What host memory importing a published checkpoint takes beyond the parameters it places, and how fast it is.

    python experiments/benchmarks/checkpoint_memory.py [--gigabytes 3] [--fp8] [--dtype bfloat16] [--mesh fsdp=8]

A random DeepSeek-V3 checkpoint of many layers is written to a temporary folder and imported by a process of its own on
eight simulated CPU devices, whose memory is sampled from outside while it works. On a CPU the parameters themselves lie
in host memory; they are counted as they are placed and taken off. The limit: 1.3 x the largest shard of a stacked
parameter, plus one tensor.
"""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Literal

if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):  # read once, when JAX starts
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

from r1jax.checkpoints import fp8, hf
from r1jax.checkpoints.hf_config import config_to_hf
from r1jax.checkpoints.hf_names import sources
from r1jax.checkpoints.tensor_files import Planned, write_tensors
from r1jax.configs.model import ModelConfig
from r1jax.errors import exit_on_error
from r1jax.models.decoder import Decoder
from r1jax.sharding import Layout, make_mesh, state_shardings


@dataclasses.dataclass(frozen=True)
class Options:
    gigabytes: float = 3.0
    """Size of the checkpoint, about."""
    fp8: bool = False
    """Projections as FP8 with block scales; bfloat16 otherwise."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """What the parameters are imported as."""
    mesh: tuple[str, ...] = ("fsdp=8",)
    """Axes of the mesh, NAME=DEVICES."""


def shape(layers: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=16_384, hidden_size=1024, num_hidden_layers=layers, first_k_dense_replace=1, intermediate_size=2560,
        num_attention_heads=8, q_lora_rank=384, kv_lora_rank=256, qk_nope_head_dim=128, qk_rope_head_dim=64,
        v_head_dim=128, n_routed_experts=16, n_shared_experts=1, num_experts_per_tok=4, n_group=4, topk_group=2,
        moe_intermediate_size=512, num_nextn_predict_layers=1, param_dtype="bfloat16",
    )  # fmt: skip


def model_state(config: ModelConfig) -> nnx.State:
    return nnx.state(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(params=0))))


def planned(config: ModelConfig, quantised: bool) -> list[Planned]:
    """Every tensor of the checkpoint."""
    state, out = model_state(config), []
    variables = dict(nnx.to_flat_state(state))
    for path, source in sources(config, state).items():
        variable = variables[path]
        tensor = source.shape(variable.shape[source.names.ndim :])
        for name in source.names.flat:
            if quantised and "_proj" in name and "eh_proj" not in name:
                out.append(Planned(name, fp8.DTYPE, tensor))
                out.append(Planned(name + fp8.SUFFIX, np.dtype(np.float32), fp8.scale_shape(tensor, fp8.BLOCK)))
            else:
                out.append(Planned(name, np.dtype(variable.dtype), tensor))
    return out


def write_checkpoint(folder: Path, gigabytes: float, quantised: bool) -> ModelConfig:
    """Random weights, a tensor at a time."""
    three, four = (sum(t.nbytes for t in planned(shape(n), quantised)) for n in (3, 4))
    config = shape(max(3, 3 + round((gigabytes * 1e9 - three) / (four - three))))
    plan = planned(config, quantised)
    noise = np.random.default_rng(0).normal(size=1_000_003)
    pools = {t.dtype: (noise * (100 if t.dtype == fp8.DTYPE else 0.02)).astype(t.dtype) for t in plan}
    arrays = (np.resize(pools[t.dtype], t.shape) for t in plan)
    write_tensors(folder, plan, arrays, 1_000_000_000, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config_to_hf(config, quantised)))
    return config


def import_checkpoint(folder: Path, dtype: str, mesh: dict[str, int], placed, ready, go, cpu, seconds) -> None:
    """In a process of its own: imports, counting in `placed` the bytes that are handed to devices."""
    device_put, devices, seen = jax.device_put, make_mesh(mesh), set()

    def counting(x, device):
        placed.value += x.nbytes  # before: whatever of the array is not yet on the device is still on the host
        array = device_put(x, device)
        if (pointer := array.unsafe_buffer_pointer()) in seen:  # the host's own array, kept for another device too
            placed.value -= x.nbytes
        seen.add(pointer)
        return array

    jax.block_until_ready(device_put(np.zeros(8, np.float32), devices.devices.flat[0]))
    jax.device_put = counting
    ready.set()
    go.wait()
    start, start_cpu = time.perf_counter(), time.process_time()
    model, _ = hf.load(folder, dtype, devices)
    jax.block_until_ready(nnx.state(model))
    cpu.value, seconds.value = time.process_time() - start_cpu, time.perf_counter() - start


def resident(process: int) -> dict[str, int]:
    """RssAnon, RssFile and VmHWM of a process, in bytes."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {name: int(kb.split()[0]) << 10 for name, _, kb in (line.partition(":") for line in lines) if "kB" in kb}


@dataclasses.dataclass
class Figures:
    """Bytes, and seconds."""

    checkpoint: int
    parameters: int
    shard: int
    """The largest shard of a stacked parameter."""
    tensor: int
    """The largest tensor, as imported."""
    beyond: int
    """The most anonymous memory beyond what there was before, and the parameters placed so far."""
    mapped: int
    """The most of the files that was mapped and resident: the system's to take back."""
    peak: int
    cpu: float
    seconds: float

    @property
    def limit(self) -> float:
        return 1.3 * self.shard + self.tensor


def measure(folder: Path, config: ModelConfig, dtype: str, mesh: dict[str, int]) -> Figures:
    """Imports `folder` in another process and watches it."""
    state = model_state(config.replace(param_dtype=dtype))
    variables = dict(nnx.to_flat_state(state))
    places = dict(nnx.to_flat_state(state_shardings(state, Layout(make_mesh(mesh), "learn"))))
    shard = tensor = 0
    for path, source in sources(config, state).items():
        variable, stacked = variables[path], source.names.ndim
        item = jnp.dtype(variable.dtype).itemsize
        tensor = max(tensor, item * math.prod(variable.shape[stacked:]))
        if stacked:
            shard = max(shard, item * math.prod(places[path].get_value().shard_shape(variable.shape)))

    context = multiprocessing.get_context("spawn")
    placed, cpu, seconds = context.Value("q", 0), context.Value("d", 0.0), context.Value("d", 0.0)
    ready, go = context.Event(), context.Event()
    child = context.Process(target=import_checkpoint, args=(folder, dtype, mesh, placed, ready, go, cpu, seconds))
    child.start()
    while not ready.wait(1):
        if not child.is_alive():
            raise SystemExit("the importing process failed")
    before = resident(child.pid)["RssAnon"]
    go.set()
    beyond = mapped = peak = 0
    while not seconds.value and child.is_alive():
        expected = before + placed.value  # read first: what is placed meanwhile counts against the import
        now = resident(child.pid)
        beyond, mapped, peak = (
            max(a, b)
            for a, b in zip(
                (beyond, mapped, peak), (now["RssAnon"] - expected, now["RssFile"], now["VmHWM"]), strict=True
            )
        )
        time.sleep(0.0005)
    child.join()
    if child.exitcode:
        raise SystemExit("the importing process failed")
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return Figures(size, placed.value, shard, tensor, beyond, mapped, peak, cpu.value, seconds.value)


def main(options: Options) -> None:
    console = Console(width=120)
    mesh = {name: int(size) for name, size in (axis.split("=") for axis in options.mesh)}
    with tempfile.TemporaryDirectory() as folder:
        config = write_checkpoint(Path(folder), options.gigabytes, options.fp8)
        f = measure(Path(folder), config, options.dtype, mesh)
    stored = "FP8" if options.fp8 else "bfloat16"
    title = f"{config.num_hidden_layers} layers, {stored} to {options.dtype}, {' '.join(options.mesh)}"
    table = Table(title=title, show_header=False)
    rows = {
        "checkpoint": f.checkpoint,
        "parameters placed, copies on several devices included": f.parameters,
        "largest shard of a stacked parameter": f.shard,
        "largest tensor, as imported": f.tensor,
        "peak host memory beyond the placed parameters": f.beyond,
        "limit: 1.3 x that shard + that tensor": f.limit,
        "pages of the files mapped at once (the system's to take back)": f.mapped,
        "peak resident memory of the process, all included": f.peak,
    }
    table.add_column()
    table.add_column(justify="right")
    for name, size in rows.items():
        table.add_row(name, f"{size / 1e6:,.1f} MB")
    table.add_row("peak / (largest shard + largest tensor)", f"{f.beyond / (f.shard + f.tensor):.2f}")
    table.add_row("import", f"{f.seconds:.1f} s, {f.checkpoint / 1e6 / f.seconds:.0f} MB/s")
    table.add_row("of CPU time", f"{f.cpu:.1f} s, {f.checkpoint / 1e6 / f.cpu:.0f} MB/s")
    console.print(table)
    if f.beyond > f.limit:
        raise SystemExit("over the limit")


if __name__ == "__main__":
    with exit_on_error():
        main(tyro.cli(Options, description=__doc__))
