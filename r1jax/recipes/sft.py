"""Supervised fine-tuning: a model learns to answer as examples do. Packed sequences, loss on responses alone."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from r1jax.configs.training import MeshConfig, OptimizerConfig, SupervisedLossConfig
from r1jax.errors import ConfigError, check_field
from r1jax.recipes.run_folder import alone, check_unchanged, open_run

_OPTIMIZER = OptimizerConfig(learning_rate=5e-5, lr_scheduler_type="cosine", min_lr_ratio=0.1, weight_decay=0.0)
_LOSS = SupervisedLossConfig(bias_update_rate=0.0)  # a few examples say little about the load that experts will have


@dataclasses.dataclass(frozen=True)
class SFTConfig:
    """Supervised fine-tuning of a model on conversations.

    Defaults are R1's where the paper gives one: two epochs, cosine schedule from 5e-5 to 5e-6 (arXiv 2501.12948, B.4).
    """

    checkpoint: Path
    """A published checkpoint, a converted one, or the folder of a run."""
    data: str
    """A file or folder, "tfds:NAME" or "hf:OWNER/NAME". Rows have "messages", "prompt" and "completion", or "text"."""
    split: str | None = None
    eval_data: str | None = None
    """Rows of the same form, whose loss is measured and never learned."""
    run_dir: Path = Path("runs/sft")
    """Everything the run writes lands here; the model itself in its folder "model"."""
    seed: int = 0
    epochs: int = 2
    rows: int = 16
    """Packed rows per step ..."""
    length: int | None = None
    """... of this many tokens; unless given, 2048, or the model's positions if they are fewer. Longer examples are left
    out and counted."""
    num_microbatches: int = 1
    """Parts whose gradients are accumulated before each optimizer step."""
    turns: Literal["all", "last"] = "all"
    """Which of the assistant's messages are learned."""
    think: bool = False
    """Prompts end with an opened <think>."""
    skip_malformed: bool = False
    """Leave rows out that are malformed, and count them, instead of stopping at the first."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations and products; parameters are float32."""
    remat: bool = False
    """Recompute each layer in the backward pass: less memory, more time."""
    resume: bool = True
    """Go on where an earlier run in run_dir stopped."""
    save_every: int = 100
    """Steps between checkpoints, and between measurements of the loss on eval_data."""
    keep_checkpoints: int = 2
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    optimizer: OptimizerConfig = _OPTIMIZER
    loss: SupervisedLossConfig = _LOSS

    def __post_init__(self):
        check_field(self.seed >= 0, "seed", self.seed, "must not be negative")
        for name in ("epochs", "rows", "num_microbatches", "save_every", "keep_checkpoints"):
            check_field(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        check_field(self.length is None or self.length >= 2, "length", self.length, "must be at least 2")
        divides = self.rows % self.num_microbatches == 0
        check_field(divides, "num_microbatches", self.num_microbatches, f"must divide rows={self.rows}")

    def as_json(self) -> dict[str, Any]:
        """Everything that decides the run's numbers, as plain JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str)) | {"kind": "sft"}

    def check_same_run(self, earlier: dict[str, Any]) -> None:
        """Raises `ConfigError` naming the first setting in which a resumed run differs from what began there."""
        if earlier.get("kind") != "sft":
            raise ConfigError(f"run_dir={str(self.run_dir)!r}: holds a run of another kind; choose another --run-dir")
        check_unchanged(self, earlier, ("run_dir", "resume", "save_every", "keep_checkpoints"))


def run(config: SFTConfig) -> Path:
    """Fine-tunes, or does what is left of it, and returns the folder of the model.

    Raises:
      R1JaxError: in one sentence, whatever a person can mend. What was saved before stays valid.
    """
    import jax
    from flax import nnx
    from rich.console import Console

    from r1jax import sharding
    from r1jax.checkpoints.model import DESCRIPTION, describe, open_model, save_model
    from r1jax.checkpoints.run import RunCheckpoints
    from r1jax.data.iterators import SFTBatches
    from r1jax.evaluation.report import write_report
    from r1jax.runtime import compile_cache, keep_host_memory
    from r1jax.training.loop import Runtime, train_supervised
    from r1jax.training.metrics import MetricsLog
    from r1jax.training.optimizer import make_optimizer
    from r1jax.training.programs import Programs
    from r1jax.training.state import TrainState, abstract_state, init_state, model_graph, shardings_of
    from r1jax.training.supervised import make_supervised_update

    keep_host_memory()
    console = Console()
    mesh = sharding.make_mesh(vars(config.mesh))
    layout = sharding.Layout(mesh, "learn")
    rows = config.rows // config.num_microbatches
    if rows % layout.size("batch"):
        raise ConfigError(
            f"rows / num_microbatches={rows}: must be a multiple of {layout.size('batch')}, the devices on mesh "
            f"{' x '.join(layout.axes('batch'))}"
        )
    _, shape, assets = describe(config.checkpoint)
    if config.length is None:
        config = dataclasses.replace(config, length=min(2048, shape.max_position_embeddings))
    if config.length > shape.max_position_embeddings:
        raise ConfigError(
            f"length={config.length}: must not exceed the model's max_position_embeddings="
            f"{shape.max_position_embeddings}"
        )
    tokenizer, encode = _encoder(config, assets, shape.vocab_size)
    examples, card = encode(config.data, config.split)
    cards = {"data": card}
    held_out = []
    if config.eval_data is not None:
        held_out, cards["eval_data"] = encode(config.eval_data, None)
    batches = SFTBatches(examples, config.rows, config.length, config.epochs, config.seed)
    optimizer = make_optimizer(config.optimizer, len(batches))
    shape = shape.replace(dtype=config.dtype, param_dtype="float32", remat=config.remat)
    abstract = abstract_state(lambda key: init_state(shape, optimizer, key), layout)  # a mesh that fits, if none raises

    run_dir = open_run(config)  # from here on something is written
    with alone(run_dir):
        _check_same_data(run_dir / "data.json", cards)
        _say(console, card, batches)
        if (run_dir / "model" / DESCRIPTION).exists():
            console.print("this run is complete: its model is there", highlight=False)
            return run_dir / "model"
        compile_cache(run_dir / "compile_cache")
        checkpoints = RunCheckpoints(run_dir / "checkpoints" / "sft", config.keep_checkpoints)
        done = checkpoints.latest_step()
        if done is not None:
            console.print(f"resuming after step {done}", highlight=False)
        with MetricsLog(run_dir, {} if done is None else {"sft": done}) as log:
            programs = Programs(run_dir, console)
            runtime = Runtime(mesh, shape, model_graph(shape), tokenizer, programs, log, console, config.seed)
            if done is None:
                model, _, _ = open_model(config.checkpoint, "float32", mesh, show_progress=True)
                _, params, buffers = nnx.split(model, nnx.Param, ...)
                begin = programs.compile(
                    "optimizer",
                    lambda params, buffers: TrainState(jax.numpy.int32(0), params, buffers, optimizer.init(params)),
                    params,
                    buffers,
                    layout=layout,
                    donate=(0, 1),
                    out_shardings=shardings_of(abstract),
                    run_once=True,
                )
                state = begin(params, buffers)
                del model, params, buffers
            else:
                _, state, _ = checkpoints.restore(abstract)
            update = make_supervised_update(shape, runtime.graph, config.loss, optimizer, config.num_microbatches)
            evaluate = _evaluation(config, runtime, state, held_out) if held_out else None
            state = train_supervised(
                runtime, state, update, batches, checkpoints, len(batches), config.save_every,
                "sft", "supervised fine-tuning", evaluate,
            )  # fmt: skip
        if (run_dir / "model").exists() and jax.process_index() == 0:  # begun by a process that was killed
            shutil.rmtree(run_dir / "model")
        save_model(run_dir / "model", nnx.merge(runtime.graph, state.params, state.buffers), shape, assets)
        console.print(f"model: {run_dir / 'model'}", soft_wrap=True, highlight=False)
        console.print(f"report: {write_report(run_dir)}", soft_wrap=True, highlight=False)
    return run_dir / "model"


def _encoder(config: SFTConfig, assets: Path, vocab_size: int) -> tuple[Any, Callable[..., Any]]:
    """The checkpoint's tokenizer, and a function from a data set to (examples, card)."""
    from r1jax.data.chat import ChatTemplate
    from r1jax.data.conversations import Encoder, encode_rows
    from r1jax.data.hf_tokenizer import load_tokenizer
    from r1jax.data.sources import iterate_rows
    from r1jax.data.tokenizer import check_fits

    tokenizer = load_tokenizer(assets)
    check_fits(tokenizer, vocab_size, assets)
    encoder = Encoder(tokenizer, ChatTemplate.find(assets), config.turns, config.think)

    def encode(source: str, split: str | None):
        rows = iterate_rows(source, split)
        examples, counts = encode_rows(rows, encoder, source, config.length, config.skip_malformed)
        digest = hashlib.sha256()
        for example in examples:
            digest.update(json.dumps([example.tokens, example.mask]).encode())
        counts |= {
            "tokens": sum(len(example.tokens) for example in examples),
            "learned_tokens": sum(sum(example.mask) for example in examples),
        }
        return examples, {"source": source, "split": split, **counts, "sha256": digest.hexdigest()}

    return tokenizer, encode


def _check_same_data(path: Path, cards: dict[str, dict[str, Any]]) -> None:
    """Writes the data sets' cards, or compares them with those that the run began with."""
    if path.exists():
        earlier = json.loads(path.read_text())
        for name, card in cards.items():
            if earlier[name]["sha256"] != card["sha256"]:
                raise ConfigError(
                    f"{name}={card['source']!r}: its examples are no longer those that the run in {path.parent} began "
                    f"with; use another --run-dir"
                )
        return
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(cards, indent=2) + "\n")
    os.replace(partial, path)


def _say(console: Any, card: dict[str, Any], batches: Sequence) -> None:
    left_out = {name: card[name] for name in ("malformed", "too_long") if card[name]}
    console.print(
        f"{card['examples']:,} examples of {card['rows']:,} rows, {card['learned_tokens']:,} tokens to learn of "
        f"{card['tokens']:,}, in {len(batches):,} steps"
        + "".join(f"; {count:,} {name.replace('_', ' ')} left out" for name, count in left_out.items()),
        highlight=False,
        soft_wrap=True,
    )


def _evaluation(config: SFTConfig, runtime: Any, state: Any, examples: list) -> Callable[[Any, int], dict[str, float]]:
    """The mean loss of the held-out examples' targets."""
    import jax

    from r1jax.data.iterators import SFTBatches
    from r1jax.training.loop import device_batch
    from r1jax.training.supervised import make_supervised_loss

    batches = SFTBatches(examples, config.rows, config.length, epochs=1, seed=0)
    loss = make_supervised_loss(runtime.model, runtime.graph)
    example = device_batch(runtime, batches[0])
    program = runtime.programs.compile("evaluation", loss, state.model_state, example, layout=runtime.learn)

    def evaluate(state: Any, step: int) -> dict[str, float]:
        parts = [program(state.model_state, device_batch(runtime, batches[i])) for i in range(len(batches))]
        total, count = (float(sum(part)) for part in zip(*jax.device_get(parts), strict=True))
        return {"eval_loss": total / count}

    return evaluate
