"""The arithmetic problems as a TFDS data set in ArrayRecord files, built and read without TensorFlow."""

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from r1jax.data.problems import LEVELS, generate


@dataclasses.dataclass(eq=False, kw_only=True)
class ArithmeticConfig(tfds.core.BuilderConfig):
    """Sizes are problems per split; `levels` as in `problems.generate`.

    The name, which is the folder's, says all of it: a data set on disk is never taken for one with other settings.
    """

    name: str = ""
    train_size: int = 20_000
    test_size: int = 512
    levels: tuple[int, ...] = LEVELS
    seed: int = 0

    def __post_init__(self):
        levels = "-".join(map(str, self.levels))
        self.name = self.name or f"levels{levels}_train{self.train_size}_test{self.test_size}_seed{self.seed}"


class Builder(tfds.core.GeneratorBasedBuilder):
    """Features: question, answer and kind (text), terms (int32 [n]), level (int32)."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (ArithmeticConfig(description="Problems of 3 to 6 terms."),)

    # TFDS 4.9.10 looks this up with importlib_resources, which it does not install.
    code_path = pathlib.Path(__file__)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Running totals of signed single digits within 0..60, in symbols or in words.",
            features=tfds.features.FeaturesDict(
                {
                    "question": tfds.features.Text(),
                    "answer": tfds.features.Text(),
                    "terms": tfds.features.Sequence(np.int32),
                    "level": tfds.features.Scalar(np.int32),
                    "kind": tfds.features.Text(),
                }
            ),
            # Readers shuffle by index; keeping the order makes the files the same on every machine.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager
        config = self.builder_config
        return {
            "train": self._generate_examples("train", config.train_size),
            "test": self._generate_examples("test", config.test_size),
        }

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict]]:
        config = self.builder_config
        for i, problem in enumerate(generate(config.seed, count, split, config.levels)):
            yield i, dataclasses.asdict(problem)
