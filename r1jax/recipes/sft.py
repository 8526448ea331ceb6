"""Supervised fine-tuning: a model learns to answer as examples do. Packed sequences, loss on responses alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from r1jax.configs.training import OptimizerConfig, SupervisedLossConfig
from r1jax.recipes.fine_tuning import FineTuning, FineTuningConfig, fine_tune

_OPTIMIZER = OptimizerConfig(learning_rate=5e-5, lr_scheduler_type="cosine", min_lr_ratio=0.1, weight_decay=0.0)
_LOSS = SupervisedLossConfig(bias_update_rate=0.0)  # a few examples say little about the load that experts will have


@dataclasses.dataclass(frozen=True)
class SFTConfig(FineTuningConfig):
    """Supervised fine-tuning of a model on conversations.

    Defaults are R1's where the paper gives one: two epochs, cosine schedule from 5e-5 to 5e-6 (arXiv 2501.12948, B.4).
    """

    data: str
    """A file or folder, "tfds:NAME" or "hf:OWNER/NAME". Rows have "messages", "prompt" and "completion", or "text"."""
    run_dir: Path = Path("runs/sft")
    """Everything the run writes lands here; the model itself in its folder "model"."""
    epochs: int = 2
    rows: int = 16
    """Packed rows per step, of `length` tokens."""
    turns: Literal["all", "last"] = "all"
    """Which of the assistant's messages are learned."""
    optimizer: OptimizerConfig = _OPTIMIZER
    loss: SupervisedLossConfig = _LOSS
    kind: ClassVar[str] = "sft"


def run(config: SFTConfig) -> Path:
    """Fine-tunes, or does what is left of it, and returns the folder of the model.

    Raises:
      R1JaxError: in one sentence, whatever a person can mend. What was saved before stays valid.
    """
    return fine_tune(config, _SFT(config))


class _SFT(FineTuning):
    phase = "sft"
    title = "supervised fine-tuning"

    def __init__(self, config: SFTConfig):
        from r1jax.models.decoder import Decoder

        self.config, self.module = config, Decoder

    def encoder(self, tokenizer: Any, template: Any) -> Callable:
        from r1jax.data.conversations import Encoder

        return Encoder(tokenizer, template, self.config.turns, self.config.think)

    def counts(self, examples: Sequence) -> dict[str, int]:
        return {
            "tokens": sum(len(example.tokens) for example in examples),
            "learned_tokens": sum(sum(example.mask) for example in examples),
        }

    def batches(self, examples: Sequence, length: int, epochs: int, seed: int) -> Sequence[dict]:
        from r1jax.data.iterators import SFTBatches

        return SFTBatches(examples, self.config.rows, length, epochs, seed)

    def put(self, runtime: Any, batch: dict) -> Any:
        from r1jax.training.loop import device_batch

        return device_batch(runtime, batch)

    def update(self, runtime: Any, optimizer: Any) -> Callable:
        from r1jax.training.supervised import make_supervised_update

        return make_supervised_update(
            runtime.model, runtime.graph, self.config.loss, optimizer, self.config.num_microbatches
        )

    def evaluation(self, runtime: Any, state: Any, batches: Sequence[dict]) -> Callable[[Any, int], dict[str, float]]:
        """The mean loss of the held-out examples' targets."""
        import jax

        from r1jax.training.supervised import make_supervised_loss

        loss = make_supervised_loss(runtime.model, runtime.graph)
        example = self.put(runtime, batches[0])
        program = runtime.programs.compile("evaluation", loss, state.model_state, example, layout=runtime.learn)

        def evaluate(state: Any, step: int) -> dict[str, float]:
            parts = [program(state.model_state, self.put(runtime, batches[i])) for i in range(len(batches))]
            total, count = (float(sum(part)) for part in zip(*jax.device_get(parts), strict=True))
            return {"eval_loss": total / count}

        return evaluate

    def save(self, folder: Path, model: Any, shape: Any, assets: Path) -> None:
        from r1jax.checkpoints.model import save_model

        save_model(folder, model, shape, assets)
