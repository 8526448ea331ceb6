"""`r1jax convert`: a published checkpoint to r1jax's own folder, and such a folder or a run to a published one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from rich.console import Console

from r1jax.errors import check_field


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """Writes the model in one folder as another folder."""

    source: Path
    """A published checkpoint, a folder that this command wrote, or the folder of a run."""
    target: Path
    """A folder that holds no model yet."""
    format: Literal["hf", "r1jax"] = "hf"
    """hf: config.json and safetensors, for other tools; r1jax: Orbax, which every host reads and writes at once."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the weights written; unless given, float32 for a published source, else as they are."""
    fp8: bool = False
    """Quantise projections to e4m3 in blocks of 128 x 128, as DeepSeek-V3 is published (hf only)."""
    max_shard_size: int = 5_000_000_000
    """Bytes in a safetensors file."""

    def __post_init__(self):
        check_field(not self.fp8 or self.format == "hf", "fp8", self.fp8, "goes with --format hf only")
        check_field(self.max_shard_size > 0, "max_shard_size", self.max_shard_size, "must be positive")


def convert(config: ConvertConfig) -> None:
    """Reads, checks and writes; the target is a model only once everything is in it."""
    from r1jax.checkpoints import hf
    from r1jax.checkpoints.model import check_vacant, open_model, save_model

    check_vacant(config.target)
    model, shape, assets = open_model(config.source, config.dtype, show_progress=True)
    ids = None
    if not (assets / "config.json").exists():  # a run's tokenizer, whose ids no published file tells
        from r1jax.data.hf_tokenizer import load_tokenizer

        tokenizer = load_tokenizer(assets)
        eos = tokenizer.eos_ids[0] if len(tokenizer.eos_ids) == 1 else list(tokenizer.eos_ids)
        ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": eos, "pad_token_id": tokenizer.pad_id}
    if config.format == "hf":
        hf.save(
            config.target,
            model,
            shape,
            assets=assets,
            token_ids=ids,
            quantise_fp8=config.fp8,
            max_shard_size=config.max_shard_size,
            show_progress=True,
        )
    else:
        save_model(config.target, model, shape, assets)
    Console().print(f"written: {config.target}", soft_wrap=True, highlight=False)
