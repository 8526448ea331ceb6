"""What fine-tuning runs share, whatever they learn: settings, the run's folder, resuming, the model at the end."""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from r1jax.configs.training import MeshConfig, OptimizerConfig
from r1jax.errors import ConfigError, check_field
from r1jax.recipes.run_folder import alone, check_same_data, check_unchanged, open_run

if TYPE_CHECKING:  # they take seconds to import, and a help text shows the settings without them
    import optax
    from flax import nnx

    from r1jax.configs.model import ModelConfig
    from r1jax.data.chat import ChatTemplate
    from r1jax.data.tokenizer import Tokenizer
    from r1jax.models.decoder import Decoder
    from r1jax.training.loop import Runtime
    from r1jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class FineTuningConfig:
    """The settings of every kind of fine-tuning. A kind adds a "kind", by which a folder knows whose run it is."""

    checkpoint: Path
    """A published checkpoint, a converted one, or the folder of a run."""
    data: str
    """A file or folder, "tfds:NAME" or "hf:OWNER/NAME"."""
    split: str | None = None
    eval_data: str | None = None
    """Rows of the same form, measured and never learned."""
    run_dir: Path = Path("runs/fine_tuning")
    """Everything the run writes lands here; the model itself in its folder "model"."""
    seed: int = 0
    epochs: int = 1
    rows: int = 16
    length: int | None = None
    """Tokens at most; unless given, 2048, or the model's positions if they are fewer. Longer examples are left out and
    counted."""
    num_microbatches: int = 1
    """Parts whose gradients are accumulated before each optimizer step."""
    chat_template: Path | None = None
    """A jinja file in the place of the checkpoint's own template; the model takes it along. A base model has none."""
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
    """Steps between checkpoints, and between measurements on eval_data."""
    keep_checkpoints: int = 2
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)

    def __post_init__(self):
        check_field(self.seed >= 0, "seed", self.seed, "must not be negative")
        for name in ("epochs", "rows", "num_microbatches", "save_every", "keep_checkpoints"):
            check_field(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        check_field(self.length is None or self.length >= 2, "length", self.length, "must be at least 2")
        divides = self.rows % self.num_microbatches == 0
        check_field(divides, "num_microbatches", self.num_microbatches, f"must divide rows={self.rows}")

    def as_json(self) -> dict[str, Any]:
        """Everything that decides the run's numbers, as plain JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str)) | {"kind": self.kind}

    def check_same_run(self, earlier: dict[str, Any]) -> None:
        """Raises `ConfigError` naming the first setting in which a resumed run differs from what began there."""
        if earlier.get("kind") != self.kind:
            raise ConfigError(f"run_dir={str(self.run_dir)!r}: holds a run of another kind; choose another --run-dir")
        check_unchanged(self, earlier, ("run_dir", "resume", "save_every", "keep_checkpoints"))


class FineTuning(abc.ABC):
    """What a kind of fine-tuning does its own way."""

    phase: str
    """Under which metrics are logged and checkpoints saved."""
    title: str
    module: type[nnx.Module]
    """What learns: the decoder, or what has one in it."""

    @abc.abstractmethod
    def encoder(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> Callable[[Mapping[str, Any]], list]:
        """What turns a row into examples, dataclasses of plain values whose len() is their number of tokens."""

    @abc.abstractmethod
    def counts(self, examples: Sequence) -> dict[str, int]:
        """What the data set's card says beside its numbers of rows and examples."""

    @abc.abstractmethod
    def batches(self, examples: Sequence, length: int, epochs: int, seed: int) -> Sequence[dict]:
        """Passes over the examples, in batches by number."""

    @abc.abstractmethod
    def put(self, runtime: Runtime, batch: dict) -> Any:
        """A batch on the mesh."""

    def start(self, runtime: Runtime, decoder: Decoder) -> nnx.State:
        """What the module begins with, made of the checkpoint's decoder."""
        from flax import nnx

        return nnx.state(decoder)

    @abc.abstractmethod
    def update(self, runtime: Runtime, optimizer: optax.GradientTransformation) -> Callable:
        """The pure function (state, batch) -> (state, metrics)."""

    @abc.abstractmethod
    def evaluation(
        self, runtime: Runtime, state: TrainState, batches: Sequence[dict]
    ) -> Callable[[TrainState, int], dict[str, float]]:
        """What measures held-out batches (one pass over them): (state, step) -> metrics."""

    @abc.abstractmethod
    def save(self, folder: Path, model: nnx.Module, shape: ModelConfig, assets: Path) -> None:
        """Writes the model's folder."""


def fine_tune(config: FineTuningConfig, task: FineTuning) -> Path:
    """Fine-tunes, or does what is left of it, and returns the folder of the model.

    Raises:
      R1JaxError: in one sentence, whatever a person can mend. What was saved before stays valid.
    """
    import jax
    from flax import nnx
    from rich.console import Console

    from r1jax import sharding
    from r1jax.checkpoints.model import DESCRIPTION, describe
    from r1jax.checkpoints.run import RunCheckpoints
    from r1jax.evaluation.report import write_report
    from r1jax.runtime import compile_cache
    from r1jax.training.loop import Runtime, train_supervised
    from r1jax.training.metrics import MetricsLog
    from r1jax.training.optimizer import make_optimizer
    from r1jax.training.programs import Programs
    from r1jax.training.state import abstract_state, init_state, model_graph

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
    tokenizer, encode = _encoder(config, task, assets, shape.vocab_size)
    examples, card = encode(config.data, config.split)
    cards = {"data": card}
    held_out = []
    if config.eval_data is not None:
        held_out, cards["eval_data"] = encode(config.eval_data, None)
    batches = task.batches(examples, config.length, config.epochs, config.seed)
    optimizer = make_optimizer(config.optimizer, len(batches))
    shape = shape.replace(dtype=config.dtype, param_dtype="float32", remat=config.remat)
    abstract = abstract_state(lambda key: init_state(shape, optimizer, key, task.module), layout)  # the mesh fits

    run_dir = open_run(config)  # from here on something is written
    with alone(run_dir):
        check_same_data(run_dir / "data.json", cards)
        _say(console, card, batches)
        if (run_dir / "model" / DESCRIPTION).exists():
            console.print("this run is complete: its model is there", highlight=False)
            return run_dir / "model"
        compile_cache(run_dir / "compile_cache")
        checkpoints = RunCheckpoints(run_dir / "checkpoints" / task.phase, config.keep_checkpoints)
        done = checkpoints.latest_step()
        if done is not None:
            console.print(f"resuming after step {done}", highlight=False)
        with MetricsLog(run_dir, {} if done is None else {task.phase: done}) as log:
            programs = Programs(run_dir, console)
            graph = model_graph(shape, task.module)
            runtime = Runtime(mesh, shape, graph, tokenizer, programs, log, console, config.seed)
            if done is None:
                state = _start(config, task, runtime, optimizer, abstract)
            else:
                _, state, _ = checkpoints.restore(abstract)
            evaluate = None
            if held_out:
                evaluate = task.evaluation(runtime, state, task.batches(held_out, config.length, 1, 0))
            state = train_supervised(
                runtime, state, task.update(runtime, optimizer), batches, checkpoints, len(batches), config.save_every,
                task.phase, task.title, evaluate, task.put,
            )  # fmt: skip
        if (run_dir / "model").exists() and jax.process_index() == 0:  # begun by a process that was killed
            shutil.rmtree(run_dir / "model")
        if config.chat_template is not None:
            assets = _with_template(assets, run_dir / "assets", config.chat_template)
        task.save(run_dir / "model", nnx.merge(graph, state.params, state.buffers), shape, assets)
        console.print(f"model: {run_dir / 'model'}", soft_wrap=True, highlight=False)
        console.print(f"report: {write_report(run_dir)}", soft_wrap=True, highlight=False)
    return run_dir / "model"


def _start(
    config: FineTuningConfig, task: FineTuning, runtime: Runtime, optimizer: Any, abstract: TrainState
) -> TrainState:
    """The checkpoint's weights, and whatever the task adds to them, with a fresh optimizer."""
    from flax import nnx

    from r1jax.checkpoints.model import open_model
    from r1jax.training.state import shardings_of, start_state

    model, _, _ = open_model(config.checkpoint, "float32", runtime.mesh, show_progress=True)
    params, buffers = nnx.split_state(task.start(runtime, model), nnx.Param, ...)
    begin = runtime.programs.compile(
        "optimizer",
        lambda params, buffers: start_state(params, buffers, optimizer),
        params,
        buffers,
        layout=runtime.learn,
        donate=(0, 1),
        out_shardings=shardings_of(abstract),
        run_once=True,
    )
    return begin(params, buffers)


def _encoder(
    config: FineTuningConfig, task: FineTuning, assets: Path, vocab_size: int
) -> tuple[Any, Callable[..., Any]]:
    """The checkpoint's tokenizer, and a function from a data set to (examples, card)."""
    from r1jax.data.chat import ChatTemplate
    from r1jax.data.conversations import encode_rows
    from r1jax.data.hf_tokenizer import load_tokenizer
    from r1jax.data.sources import iterate_all_rows
    from r1jax.data.tokenizer import check_fits

    tokenizer = load_tokenizer(assets)
    check_fits(tokenizer, vocab_size, assets)
    encoder = task.encoder(tokenizer, ChatTemplate.find(assets, config.chat_template))

    def encode(source: str, split: str | None):
        rows = iterate_all_rows(source, split)
        examples, counts = encode_rows(rows, encoder, source, config.length, config.skip_malformed)
        digest = hashlib.sha256()
        for example in examples:
            values = [getattr(example, field.name) for field in dataclasses.fields(example)]
            digest.update(json.dumps(values).encode())
        counts |= task.counts(examples)
        return examples, {"source": source, "split": split, **counts, "sha256": digest.hexdigest()}

    return tokenizer, encode


def _with_template(assets: Path, folder: Path, template: Path) -> Path:
    """A copy of a checkpoint's tokenizer and settings, with another chat template."""
    import jax

    from r1jax.checkpoints.hf import copy_assets

    if jax.process_index() == 0:
        folder.mkdir(exist_ok=True)
        copy_assets(assets, folder)
        shutil.copyfile(template, folder / "chat_template.jinja")
    return folder


def _say(console: Any, card: dict[str, Any], batches: Sequence) -> None:
    """What will be learned, before anything is computed."""
    counts = {name: value for name, value in card.items() if isinstance(value, int)}
    left_out = {name: counts.pop(name) for name in ("malformed", "too_long")}
    rows, examples = counts.pop("rows"), counts.pop("examples")
    console.print(
        f"{examples:,} examples of {rows:,} rows"
        + "".join(f", {count:,} {name.replace('_', ' ')}" for name, count in counts.items())
        + f", in {len(batches):,} steps"
        + "".join(f"; {count:,} {name.replace('_', ' ')} left out" for name, count in left_out.items() if count),
        highlight=False,
        soft_wrap=True,
    )
