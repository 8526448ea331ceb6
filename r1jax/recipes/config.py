"""Settings of an R1-Zero run, its presets, and their command line."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from r1jax.configs.model import ModelConfig
from r1jax.configs.presets import model_preset
from r1jax.configs.training import GRPOConfig, MeshConfig, OptimizerConfig, SupervisedLossConfig
from r1jax.data.corpus import CorpusConfig
from r1jax.errors import ConfigError, check_field
from r1jax.recipes.run_folder import check_unchanged

# The miniature's settings, which are the defaults: those of DeepSeek's classes are for a model of its size.
_BASE_OPTIMIZER = OptimizerConfig(
    learning_rate=4e-3, warmup_steps=30, lr_scheduler_type="cosine", min_lr_ratio=0.1, weight_decay=0.1
)
_GRPO = GRPOConfig(
    num_prompts=16,
    num_generations=16,
    max_completion_length=40,
    epsilon=0.2,
    epsilon_high=0.28,
    ref_model_sync_steps=50,
    num_microbatches=4,
)
_RL_OPTIMIZER = OptimizerConfig(learning_rate=6e-5, warmup_steps=3, weight_decay=0.0)


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Pretraining from scratch."""

    steps: int = 400
    rows: int = 64
    """Packed rows per step ..."""
    length: int = 96
    """... of this many tokens."""
    loss: SupervisedLossConfig = dataclasses.field(default_factory=SupervisedLossConfig)
    optimizer: OptimizerConfig = _BASE_OPTIMIZER

    def __post_init__(self):
        for name in ("steps", "rows", "length"):
            check_field(getattr(self, name) >= 1, f"base.{name}", getattr(self, name), "must be at least 1")


@dataclasses.dataclass(frozen=True)
class BaseConfig(PretrainConfig):
    """Pretraining of the base model, from scratch."""

    corpus: CorpusConfig = dataclasses.field(default_factory=CorpusConfig)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Held-out evaluation: pass@1 over k samples, and cons@k."""

    every: int = 10
    problems: int = 128
    k: int = 16
    temperature: float = 0.6
    top_p: float = 0.95

    def __post_init__(self):
        for name in ("every", "problems", "k"):
            check_field(getattr(self, name) >= 1, f"eval.{name}", getattr(self, name), "must be at least 1")
        check_field(self.temperature >= 0, "eval.temperature", self.temperature, "must not be negative; 0 is greedy")
        check_field(0 < self.top_p <= 1, "eval.top_p", self.top_p, "must lie in (0, 1]; 1 keeps all")


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """Reward functions, run in worker processes."""

    functions: tuple[str, ...] = ("exact_answer", "format")
    """Names r1jax knows, or package.module:function."""
    weights: tuple[float, ...] | None = None
    """One for each function; unless given, 1 each, but 0.2 for the format beside exact_answer."""
    parameters: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """Values for the functions' own parameters, by function as named above."""
    gate: str | None = None
    """One of the functions: what the others add counts only where it scores 1; what they take away always counts."""
    domains: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """By function as named above, the domains it is meant for: prompts of others ("domain") are not scored by it."""
    workers: int = 1
    timeout: float = 60.0
    """Seconds after which a batch's unfinished scores are given up."""

    def __post_init__(self):
        check_field(
            len(self.functions) == len(self.all_weights) > 0,
            "reward.weights",
            self.weights,
            f"must hold one weight for each of the {len(self.functions)} reward functions",
        )
        check_field(all(map(math.isfinite, self.all_weights)), "reward.weights", self.weights, "must be finite")
        for field, names in (("reward.parameters", self.parameters), ("reward.domains", self.domains)):
            for name in names:
                check_field(
                    name in self.functions,
                    field,
                    name,
                    f"no such function is in reward.functions; use one of {', '.join(self.functions)}",
                )
        for name, domains in self.domains.items():
            ok = isinstance(domains, tuple | list) and domains and all(isinstance(d, str) and d for d in domains)
            check_field(ok, f"reward.domains[{name!r}]", domains, "give one domain or more, as a tuple of texts")
        check_field(
            self.gate is None or self.gate in self.functions,
            "reward.gate",
            self.gate,
            f"must be one of reward.functions: {', '.join(self.functions)}",
        )
        check_field(self.workers >= 1, "reward.workers", self.workers, "must be at least 1")
        check_field(self.timeout > 0, "reward.timeout", self.timeout, "must be positive")

    @property
    def all_weights(self) -> tuple[float, ...]:
        """`weights`, or what stands for them."""
        if self.weights is not None:
            return self.weights
        return (1.0, 0.2) if self.functions == ("exact_answer", "format") else (1.0,) * len(self.functions)


@dataclasses.dataclass(frozen=True)
class R1ZeroConfig:
    """R1-Zero: pretrain a base model on a corpus of mostly hasty solutions, then reinforce correct answers alone."""

    preset: str = "nano"
    """The model's shape and the settings that go with it."""
    run_dir: Path = Path("runs/r1_zero")
    """Everything the run writes lands here."""
    seed: int = 0
    steps: int = 60
    """Steps of reinforcement learning."""
    resume: bool = True
    """Go on where an earlier run in run_dir stopped."""
    max_prompt_length: int = 32
    save_every: int = 10
    """Steps between checkpoints in RL (five times as many in pretraining, whose steps are shorter)."""
    keep_checkpoints: int = 2
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    base: BaseConfig = dataclasses.field(default_factory=BaseConfig)
    grpo: GRPOConfig = _GRPO
    optimizer: OptimizerConfig = _RL_OPTIMIZER
    reward: RewardConfig = dataclasses.field(default_factory=RewardConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)

    def __post_init__(self):
        c = check_field
        c(self.seed >= 0, "seed", self.seed, "must not be negative")
        for name in ("steps", "max_prompt_length", "save_every", "keep_checkpoints"):
            c(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        longest = self.max_prompt_length + self.grpo.max_completion_length
        limit = self.model.max_position_embeddings
        c(
            longest <= limit,
            "max_prompt_length + grpo.max_completion_length",
            longest,
            f"must not exceed the model's max_position_embeddings={limit}",
        )

    @property
    def model(self) -> ModelConfig:
        return model_preset(self.preset)

    def check_same_run(self, earlier: dict[str, Any]) -> None:
        """Raises `ConfigError` naming the first setting in which a resumed run differs from what began there."""
        # What may change: where it lies and how far it goes, and nothing that it has already computed.
        check_unchanged(self, earlier, ("run_dir", "resume", "steps", "keep_checkpoints", "save_every"))
        scheduled = self.optimizer.lr_scheduler_type != "constant"
        if scheduled and self.steps != earlier["steps"]:
            raise ConfigError(
                f"steps={self.steps}: the run in {self.run_dir} began with steps={earlier['steps']}, which its "
                f"{self.optimizer.lr_scheduler_type} schedule depends on; use that value, or another --run-dir"
            )

    def as_json(self) -> dict[str, Any]:
        """Everything that decides the run's numbers, as plain JSON."""
        values = dataclasses.asdict(self) | {"run_dir": str(self.run_dir), "model": dataclasses.asdict(self.model)}
        values["reward"]["weights"] = self.reward.all_weights
        return json.loads(json.dumps(values))


PRESETS: dict[str, R1ZeroConfig] = {
    "nano": R1ZeroConfig(),
    "mini": R1ZeroConfig(preset="mini", run_dir=Path("runs/r1_zero_mini")),
}


def parse_r1_zero(args: Sequence[str] | None = None, prog: str = "r1jax r1-zero") -> R1ZeroConfig:
    """The configuration that a command line asks for: the preset's values, with what is given on top.

    Raises:
      ConfigError: an unknown preset, or a value that cannot work.
    """
    import tyro

    args = list(sys.argv[1:] if args is None else args)
    default = PRESETS[preset_of(args, PRESETS)]
    return tyro.cli(R1ZeroConfig, default=default, args=args, prog=prog, registry=command_line_rules())


def preset_of(args: Sequence[str], presets: Collection[str]) -> str:
    """The preset that a command line names; nano unless it does. Raises `ConfigError` for an unknown one."""
    import argparse

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="nano")
    name = first.parse_known_args(args)[0].preset
    if name not in presets:
        raise ConfigError(f"preset={name!r}: must be one of {', '.join(presets)}")
    return name


def command_line_rules() -> Any:
    """How tyro reads and spells the settings that are mappings of mappings or of tuples."""
    import tyro

    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_parameters_rule)
    registry.primitive_rule(_domains_rule)
    return registry


def _parameters_rule(field: Any) -> Any:
    """How the command line spells `RewardConfig.parameters`: FUNCTION.PARAMETER=VALUE, with values in JSON."""
    from tyro.constructors import PrimitiveConstructorSpec

    if field.type != dict[str, dict[str, Any]]:
        return None

    def parse(arguments: list[str]) -> dict[str, dict[str, Any]]:
        parameters: dict[str, dict[str, Any]] = {}
        for argument in arguments:
            name, equals, value = argument.partition("=")
            function, dot, parameter = name.rpartition(".")
            if not (equals and dot and function and parameter):
                raise ConfigError(f"reward.parameters={argument!r}: write FUNCTION.PARAMETER=VALUE")
            with contextlib.suppress(ValueError):  # what is no JSON is text as it stands
                value = json.loads(value)
            parameters.setdefault(function, {})[parameter] = value
        return parameters

    def spell(parameters: dict[str, dict[str, Any]]) -> list[str]:
        return [f"{f}.{name}={json.dumps(value)}" for f, values in parameters.items() for name, value in values.items()]

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="FUNCTION.PARAMETER=VALUE",
        instance_from_str=parse,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=spell,
    )


def _domains_rule(field: Any) -> Any:
    """How the command line spells `RewardConfig.domains`: FUNCTION=DOMAIN,DOMAIN."""
    from tyro.constructors import PrimitiveConstructorSpec

    if field.type != dict[str, tuple[str, ...]]:
        return None

    def parse(arguments: list[str]) -> dict[str, tuple[str, ...]]:
        domains: dict[str, tuple[str, ...]] = {}
        for argument in arguments:
            function, equals, names = argument.partition("=")
            if not (equals and function and all(names.split(","))):
                raise ConfigError(f"reward.domains={argument!r}: write FUNCTION=DOMAIN,DOMAIN")
            domains[function] = (*domains.get(function, ()), *names.split(","))
        return domains

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="FUNCTION=DOMAIN,DOMAIN",
        instance_from_str=parse,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda domains: [f"{function}={','.join(names)}" for function, names in domains.items()],
    )
