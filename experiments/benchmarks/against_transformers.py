"""Time to first logits and decode rate beside transformers': same weights, same machine, one run.

    pip install -e '.[parity]' && python experiments/benchmarks/against_transformers.py [--preset qwen2.5-0.5b]

A random checkpoint is written in the published layout and read by both. *First logits* is from the folder to the
logits of every prompt, compilation included (r1jax's is given once with an empty compilation cache and once with a
filled one; imports are left out). *Decode* is greedy, a batch of 16 ragged prompts and 128 new tokens, no stop token,
prefill included (r1jax's weights are prepared for decoding once, as `Generator` does). The two take turns of two runs,
of which the second counts, and the medians are compared, so that a noisy machine troubles both and neither pays for a
processor that was at rest. r1jax splits the batch over a mesh of simulated devices, one for each of two cores, which
for small models and few rows is faster than to split each product (`--devices 1`); transformers has its own threads on
the same cores.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from r1jax.errors import ConfigError, exit_on_error
from r1jax.runtime import use_huge_pages


@dataclasses.dataclass(frozen=True)
class Options:
    preset: str = "mini"
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch: int = 16
    prompt: int = 64
    """Tokens of the longest prompt; the shortest has a quarter."""
    tokens: int = 128
    repeats: int = 5
    devices: int = 2
    """Simulated CPU devices of r1jax's mesh; 1 leaves the cores to XLA's own threads."""


def ragged(options: Options, vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded prompts [B, S] and their lengths."""
    rng = np.random.default_rng(0)
    lengths = np.linspace(options.prompt // 4, options.prompt, options.batch).astype(np.int32)
    return rng.integers(3, vocab, (options.batch, options.prompt)).astype(np.int32), lengths


def first_logits_of_r1jax(folder: str, dtype: str, batch: int, prompt: int) -> None:
    """In a process of its own: a compilation cache is read once."""
    import jax

    from r1jax.checkpoints import hf

    tokens = ragged(Options(batch=batch, prompt=prompt), 256)[0]
    jax.devices()
    start = time.monotonic()
    model, _ = hf.load(folder, dtype)
    from flax import nnx

    jax.block_until_ready(nnx.jit(lambda model, tokens: model(tokens))(model, tokens))
    print(time.monotonic() - start)


def main(options: Options) -> None:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed: pip install -e '.[parity]'") from None
    environment = os.environ.copy()
    os.environ["XLA_FLAGS"] = (  # read once, when JAX starts
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={options.devices}"
    ).strip()
    import jax
    from flax import nnx

    from r1jax import sharding
    from r1jax.checkpoints import hf
    from r1jax.configs.presets import model_preset
    from r1jax.configs.training import SamplingConfig
    from r1jax.models.decoder import Decoder
    from r1jax.sampling.sampler import make_sampler, prepare_sampling

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    console = Console(width=110)
    config = model_preset(options.preset).replace(dtype=options.dtype, param_dtype=options.dtype)
    prompts, lengths = ragged(options, config.vocab_size)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "checkpoint"
        hf.save(folder, nnx.jit(lambda: Decoder(config, nnx.Rngs(params=0)))(), config)
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": f"{scratch}/cache",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        call = [sys.executable, __file__, "--first-logits", str(folder), options.dtype]
        call += [str(options.batch), str(options.prompt)]
        cold, cached = (
            float(subprocess.run(call, env=environment, check=True, capture_output=True, text=True).stdout)
            for _ in range(2)
        )
        start = time.monotonic()
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, options.dtype))
        with torch.inference_mode():
            theirs(torch.tensor(prompts, dtype=torch.long))
        first = time.monotonic() - start
        model, config = hf.load(folder, options.dtype)

    graph, state = nnx.split(model)
    sampling = SamplingConfig(temperature=0.0, num_generations=1, max_completion_length=options.tokens)
    layout = sharding.Layout(sharding.make_mesh({"data": options.devices}), "sample")
    whole, rows = layout.replicated, layout.sharding(("prompt",))
    state, allowed, key = jax.device_put((state, np.ones(config.vocab_size, bool), jax.random.key(0)), whole)
    with sharding.use(layout):  # as `Generator` does
        graph, state = prepare_sampling(graph, state, options.batch)
    sampler = make_sampler(graph, sampling, stop_ids=(), pad_id=0)

    @jax.jit
    def sample(*args):
        with sharding.use(layout):
            return sampler(*args)

    limits = np.full(options.batch, options.tokens, np.int32)
    batch = jax.device_put((prompts, lengths, limits), rows)
    # transformers pads on the left.
    left = np.stack([np.roll(row, options.prompt - n) for row, n in zip(prompts, lengths, strict=True)])
    mask = np.arange(options.prompt) >= options.prompt - lengths[:, None]

    def ours() -> np.ndarray:
        rollout = sample(state, *batch, allowed, key)
        return np.asarray(rollout.completions[:, 0])

    def reference() -> np.ndarray:
        inputs = {"input_ids": torch.tensor(left, dtype=torch.long), "attention_mask": torch.tensor(mask).long()}
        n = options.tokens
        out = theirs.generate(
            **inputs, max_new_tokens=n, min_new_tokens=n, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        return out[:, options.prompt :].numpy()

    same = (ours() == reference()).mean()  # and both are warm
    seconds: dict[str, list[float]] = {"r1jax": [], "transformers": []}
    for _ in range(options.repeats):
        for name, run in (("r1jax", ours), ("transformers", reference)):
            time.sleep(0.5)  # so that the other's threads are at rest,
            run()  # and the processor is not
            start = time.monotonic()
            run()
            seconds[name].append(time.monotonic() - start)
    rate = {name: options.batch * options.tokens / statistics.median(times) for name, times in seconds.items()}

    table = Table(title=f"{options.preset}, {options.dtype}: {options.batch} prompts of {lengths.min()} to "
                        f"{lengths.max()} tokens; {same:.1%} of greedy tokens are the same")  # fmt: skip
    for column in ("", "r1jax", "transformers", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("first logits, compiling (s)", f"{cold:.2f}", f"{first:.2f}", f"{first / cold:.2f}x as fast")
    table.add_row(
        "first logits, compiled before (s)", f"{cached:.2f}", f"{first:.2f}", f"{first / cached:.2f}x as fast"
    )
    ours_rate, their_rate = rate["r1jax"], rate["transformers"]
    table.add_row(
        f"decode, {options.tokens} tokens (tokens/s)", f"{ours_rate:.0f}", f"{their_rate:.0f}",
        f"{ours_rate / their_rate:.2f}x as fast",
    )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--first-logits"]:
        first_logits_of_r1jax(*sys.argv[2:4], *map(int, sys.argv[4:6]))
    else:
        use_huge_pages()
        with exit_on_error():
            main(tyro.cli(Options))
