"""Reward models: a decoder with a scalar head learns which responses people prefer, or which are safe.

R1's last stage has one of each (arXiv 2501.12948, section 3.1 and supplement B.4): helpfulness, from pairs, sees the
final summary only; harmlessness, from labelled responses, sees the whole response.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from r1jax.configs.training import OptimizerConfig
from r1jax.recipes.fine_tuning import FineTuning, FineTuningConfig, fine_tune

_OPTIMIZER = OptimizerConfig(learning_rate=6e-6, weight_decay=0.0)


@dataclasses.dataclass(frozen=True)
class RewardModelConfig(FineTuningConfig):
    """Training of a reward model from a decoder.

    Defaults are those of R1's helpfulness model: one epoch, 256 pairs a step, learning rate 6e-6.
    """

    data: str
    """A file or folder, "tfds:NAME" or "hf:OWNER/NAME". Rows of pairs have "prompt", "chosen" and "rejected", or the
    last two as whole conversations; pointwise ones have "prompt", "completion" and "label"."""
    run_dir: Path = Path("runs/reward_model")
    """Everything the run writes lands here; the model itself in its folder "model"."""
    kind: Literal["pairs", "pointwise"] = "pairs"
    """What it learns from: which of two responses was preferred, or whether a response is safe."""
    summary_only: bool = False
    """It sees responses without their thinking."""
    rows: int = 256
    """Pairs, or labelled responses, per step."""
    optimizer: OptimizerConfig = _OPTIMIZER


def run(config: RewardModelConfig) -> Path:
    """Trains a reward model, or does what is left of it, and returns its folder (`r1jax.checkpoints.scalar`).

    Raises:
      R1JaxError: in one sentence, whatever a person can mend. What was saved before stays valid.
    """
    return fine_tune(config, _RewardModel(config))


class _RewardModel(FineTuning):
    phase = "reward_model"
    title = "reward model"

    def __init__(self, config: RewardModelConfig):
        from r1jax.models.scalar import ScalarModel

        self.config, self.module = config, ScalarModel

    def encoder(self, tokenizer: Any, template: Any) -> Callable:
        from r1jax.data.conversations import Encoder
        from r1jax.data.preferences import PreferenceEncoder

        encoder = Encoder(tokenizer, template, "last", self.config.think)
        return PreferenceEncoder(encoder, self.config.kind, self.config.summary_only)

    def counts(self, examples: Sequence) -> dict[str, int]:
        counts = {"tokens": sum(len(ids) for example in examples for ids in example.sequences)}
        if self.config.kind == "pointwise":
            counts["positive"] = sum(example.target == 1 for example in examples)
        return counts

    def batches(self, examples: Sequence, length: int, epochs: int, seed: int) -> Sequence[dict]:
        from r1jax.data.preferences import PreferenceBatches

        return PreferenceBatches(examples, self.config.rows, epochs, seed)

    def put(self, runtime: Any, batch: dict) -> Any:
        from r1jax.training.reward_model import preference_batch

        return preference_batch(batch, runtime.learn)

    def start(self, runtime: Any, decoder: Any) -> Any:
        import jax
        from flax import nnx

        from r1jax.models.scalar import initial_score, scalar_state

        score = initial_score(runtime.model, runtime.key("head", 0))
        score = jax.device_put(score, runtime.learn.sharding(("embed", None)))
        return scalar_state(runtime.model, nnx.state(decoder), score)

    def update(self, runtime: Any, optimizer: Any) -> Callable:
        from r1jax.training.reward_model import make_reward_model_update

        return make_reward_model_update(runtime.graph, self.config.kind, optimizer, self.config.num_microbatches)

    def evaluation(self, runtime: Any, state: Any, batches: Sequence[dict]) -> Callable[[Any, int], dict[str, float]]:
        """Loss, accuracy and mean margin of the held-out examples, the last two with their 95% intervals."""
        import jax
        import numpy as np

        from r1jax.evaluation.metrics import estimate
        from r1jax.training.reward_model import held_out_margins, make_scores

        example = self.put(runtime, batches[0])
        program = runtime.programs.compile(
            "evaluation", make_scores(runtime.graph), state.model_state, example, layout=runtime.learn
        )

        def evaluate(state: Any, step: int) -> dict[str, float]:
            margins = []
            for number in range(len(batches)):
                batch = batches[number]
                scores = jax.device_get(program(state.model_state, self.put(runtime, batch)))
                margins.append(held_out_margins(scores, batch["targets"], self.config.kind)[batch["counted"]])
            margins = np.concatenate(margins)
            metrics = {"eval_loss": float(np.logaddexp(0, -margins).mean())}
            for name, values in (("eval_accuracy", margins > 0), ("eval_margin", margins)):
                metrics[name], metrics[f"{name}/low"], metrics[f"{name}/high"] = estimate(values)
            return metrics

        return evaluate

    def save(self, folder: Path, model: Any, shape: Any, assets: Path) -> None:
        from r1jax.checkpoints.scalar import ScalarHead, save_scalar_model

        head = ScalarHead(self.config.kind, self.config.summary_only)
        save_scalar_model(folder, model, shape, assets, head)
