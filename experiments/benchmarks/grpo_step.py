"""Where a GRPO step's time goes, and how near each part comes to this machine's matrix-product rate.

    python experiments/benchmarks/grpo_step.py [--preset nano] [--trace]

Prompts are real, completions run to their full length (an untrained model never stops), so that every figure is of the
longest step. Times are medians over `--repeats`; GFLOP/s counts the products that the architecture needs (2 x weights
x tokens forward, twice that again backward, and attention's), none of what an implementation adds. The rate beside them
is float32 products of [4096, 1024] x [1024, 1024] in the same process, measured between the parts.
"""

from __future__ import annotations

from r1jax.runtime import use_huge_pages

if __name__ == "__main__":
    use_huge_pages()  # before JAX is imported

import dataclasses
import re
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from r1jax import sharding
from r1jax.configs.presets import MODEL_PRESETS
from r1jax.data.corpus import corpus_tokenizer
from r1jax.data.iterators import PromptBatches
from r1jax.data.problems import generate
from r1jax.errors import ConfigError, exit_on_error
from r1jax.losses.grpo import group_advantages
from r1jax.models.flops import grpo_step_flops
from r1jax.recipes.config import PRESETS
from r1jax.rewards import RewardPool, get_reward
from r1jax.training.grpo import make_grpo_update, make_logps
from r1jax.training.loop import Runtime, Sampling
from r1jax.training.optimizer import make_optimizer
from r1jax.training.programs import Programs
from r1jax.training.state import init_state, model_graph, with_reference


@dataclasses.dataclass(frozen=True)
class Options:
    preset: str = "nano"
    scan_unroll: int | None = None
    """Layers per scan step; the preset's unless given."""
    repeats: int = 5
    trace: bool = False
    """Also say what the update spends its time in."""


def matrix_rate() -> float:
    """FLOP/s of plain float32 products, all cores."""
    x, w = jnp.ones((4096, 1024)), jnp.ones((1024, 1024))
    product = jax.jit(jnp.matmul)
    product(x, w).block_until_ready()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        product(x, w).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * 4096 * 1024 * 1024 / min(times)


def kind_of(source: str) -> str:
    """What sort of work an operation is, from the JAX operation it was compiled from."""
    if source in ("dot_general", "ragged_dot"):
        return "products"
    if source.startswith(("reduce", "cumsum", "argmax", "logsumexp")):
        return "reductions"
    if source in ("top_k", "sort", "gather", "scatter", "scatter-add"):
        return "sorting and gathering"
    return "elementwise and copies"


def operations(trace_dir: Path, hlo: str) -> list[tuple[str, str, float]]:
    """(kind, JAX operation and result, seconds of thread time) of the newest trace, largest first.

    `hlo` is the traced program, whose instructions name their source.
    """
    instruction = r'^\s*(?:ROOT )?%?([\w.\-]+) = (\S+?)(?:\{\S*)? ([\w\-]+)\(.*op_name="([^"]*)"'
    found = re.findall(instruction, hlo, flags=re.MULTILINE)
    sources = {name: (opcode, op, shape) for name, shape, opcode, op in found}
    path = max(trace_dir.rglob("*.xplane.pb"), key=lambda p: p.stat().st_mtime)
    totals: dict[tuple[str, str], float] = {}
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for event in (event for line in plane.lines for event in line.events):
            opcode, op, shape = sources.get(str(dict(event.stats).get("hlo_op")), ("", "", ""))
            if opcode in ("", "while", "call", "conditional"):  # their parts are counted
                continue
            source, backward = op.split("/")[-1], " (backward)" if "transpose(" in op else ""
            key = (kind_of(source), f"{source} {shape}{backward}")
            totals[key] = totals.get(key, 0.0) + event.duration_ns / 1e9
    return sorted(((*key, seconds) for key, seconds in totals.items()), key=lambda item: -item[2])


def main(options: Options) -> None:
    console = Console(width=120)
    if options.preset not in PRESETS:
        raise ConfigError(f"preset={options.preset!r}: must be one of {', '.join(PRESETS)}")
    run, model = PRESETS[options.preset], MODEL_PRESETS[options.preset]
    if options.scan_unroll:
        model = model.replace(scan_unroll=options.scan_unroll)
    grpo = run.grpo
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tokenizer = corpus_tokenizer(run.base.corpus, folder / "tokenizer.model")
        graph = model_graph(model)
        programs = Programs(folder, console)
        runtime = Runtime(sharding.make_mesh({"data": -1}), model, graph, tokenizer, programs, None, console, 0)
        optimizer = make_optimizer(run.optimizer, 100)
        state = jax.jit(lambda k: with_reference(init_state(model, optimizer, k), optimizer, "float32"))(
            jax.random.key(0)
        )
        state = jax.device_put(state, runtime.learn.replicated)
        prompts = PromptBatches(generate(0, 500, "train"), tokenizer, grpo.num_prompts, run.max_prompt_length, 0)
        sample = Sampling(runtime, "sample", grpo.sampling, grpo.num_prompts, run.max_prompt_length, state.model_state)
        one = dataclasses.replace(grpo.sampling, max_completion_length=1)
        prefill = Sampling(runtime, "prefill", one, grpo.num_prompts, run.max_prompt_length, state.model_state)
        batch = prompts[0]
        rollout, record = sample(state.model_state, batch, 0)
        logps = programs.compile("logps", make_logps(model, graph, grpo), state.ref_state, record, layout=runtime.learn)
        plain, ref_logps = record, logps(state.ref_state, record)
        rewards = np.random.default_rng(0).normal(size=rollout.lengths.shape).astype(np.float32)
        advantages = group_advantages(jnp.asarray(rewards)).advantages.reshape(-1)
        record = record.replace(
            ref_logps=ref_logps,
            advantages=runtime.put(advantages, "batch"),
            counted=runtime.put(np.ones(grpo.batch_size, bool), "batch"),
        )
        update = programs.compile(
            "update", make_grpo_update(model, graph, grpo, optimizer), state, record, layout=runtime.learn, donate=(0,)
        )
        names = {get_reward(name).__name__: name for name in run.reward.functions}
        texts = [tokenizer.decode(row) for row in np.asarray(rollout.completions).reshape(grpo.batch_size, -1)]
        columns = {k: [v for v in vs for _ in range(grpo.num_generations)] for k, vs in batch.columns.items()}
        repeated = [p for p in batch.prompts for _ in range(grpo.num_generations)]
        seconds: dict[str, list[float]] = {}
        rates = []

        def timed(name, function, *args):
            start = time.perf_counter()
            result = jax.block_until_ready(function(*args))
            seconds.setdefault(name, []).append(time.perf_counter() - start)
            return result

        with RewardPool(names) as pool:
            for i in range(options.repeats + 1):
                timed("prefill", prefill, state.model_state, batch, i)
                timed("sample", sample, state.model_state, batch, i)
                timed("reward", lambda: pool.submit(repeated, texts, columns).result())
                timed("logps", logps, state.ref_state, plain)
                state, _ = timed("update", update, state, record)
                rates.append(matrix_rate())
        if options.trace:
            with jax.profiler.trace(str(folder / "trace")):
                state, _ = jax.block_until_ready(update(state, record))
            spent = operations(folder / "trace", update.as_text())
            total = sum(seconds for *_, seconds in spent)
            kinds = {kind: sum(s for k, _, s in spent if k == kind) for kind, *_ in spent}
            console.print(f"one update: {total:.2f} s of thread time", highlight=False)
            for kind, share in sorted(kinds.items(), key=lambda item: -item[1]):
                console.print(f"{share / total:6.1%}  {kind}", highlight=False)
            for kind, name, part in spent[:25]:
                console.print(f"{part * 1e3:9.1f} ms  {kind}: {name}", highlight=False)
    median = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    steps = grpo.max_completion_length
    flops = grpo_step_flops(model, grpo, run.max_prompt_length)
    median["decode"] = median.pop("sample") - median["prefill"]
    rate = statistics.median(rates)
    total = sum(median.values())
    table = Table(title=f"{options.preset}: {grpo.batch_size} completions of {steps} tokens; "
                        f"matrix rate {rate / 1e9:.0f} GFLOP/s")  # fmt: skip
    for column in ("part", "ms", "share", "GFLOP/s", "of the matrix rate"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for name in ("prefill", "decode", "reward", "logps", "update"):
        achieved = flops.get(name, 0) / median[name]
        cells = (f"{achieved / 1e9:.1f}", f"{achieved / rate:.0%}") if name in flops else ("", "")
        table.add_row(name, f"{median[name] * 1e3:.0f}", f"{median[name] / total:.0%}", *cells)
    console.print(table)


if __name__ == "__main__":
    with exit_on_error():
        main(tyro.cli(Options, description=__doc__))
