"""Settings of the whole R1 recipe: one group for each stage, and the presets."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from r1jax.configs.training import GRPOConfig, MeshConfig, OptimizerConfig, SamplingConfig, SupervisedLossConfig
from r1jax.data.world.corpus import WorldConfig
from r1jax.errors import check_field
from r1jax.recipes.config import EvalConfig, PretrainConfig, RewardConfig, command_line_rules, preset_of
from r1jax.recipes.curation import Curation
from r1jax.recipes.rejection import RejectionConfig
from r1jax.recipes.reward_model import RewardModelConfig
from r1jax.recipes.rl import RLConfig
from r1jax.recipes.sft import SFTConfig

# Paths are those of other stages' outputs, within the recipe's folder.
_TRAIN, _TEST = "world/problems_train.jsonl", "world/problems_test.jsonl"
_RULES = {"math_accuracy": ("math",), "code_accuracy": ("code",)}
_READABLE = Curation(min_language_share=1.0, per_prompt=2)
_LONG = dataclasses.replace(_READABLE, choose="spread")  # of a prompt's responses the shortest and the longest
_SAMPLING = SamplingConfig(temperature=0.6, top_p=0.95, num_generations=16, max_completion_length=40)  # the paper's


@dataclasses.dataclass(frozen=True)
class WorldStage:
    """The problems and requests that there are: the miniature's world, or data sets in a folder."""

    data: Path | None = None
    """A folder with data sets in the place of the miniature's: see `r1jax.recipes.r1.scenarios.Given`. The settings
    below, but for the next two, are the miniature's."""
    rules: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=lambda: dict(_RULES))
    """By reward function, the domains of the given problems in which it says what is correct."""
    chat_template: Path | None = None
    """What models have from the cold start on; unless given, DeepSeek-R1's layout."""
    seed: int = 0
    """Of problems, requests and the tokenizer: the recipe's seed does not change what models are measured by."""
    vocab_size: int = 384
    train_problems: int = 20_000
    test_problems: int = 256
    train_requests: int = 800
    """Of each kind, as are ..."""
    test_requests: int = 40
    """... these, or all that there are."""
    train_preferences: int = 3_000
    """Pairs of responses, and as many responses with a safety label."""
    test_preferences: int = 300
    corpus: WorldConfig = dataclasses.field(default_factory=WorldConfig)


@dataclasses.dataclass(frozen=True)
class BaseStage(PretrainConfig):
    """A base model: a released one, or pretraining on the miniature's documents, with multi-token prediction and
    balanced experts where it has them."""

    checkpoint: Path | None = None
    """A released base model, in whose place nothing is pretrained: the settings below, but for dtype, are then idle."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of a released model's parameters."""

    steps: int = 1200
    rows: int = 48
    length: int = 128
    preset: str = "nano"
    """The model's shape."""
    save_every: int = 200
    corpus: WorldConfig = dataclasses.field(default_factory=WorldConfig)


@dataclasses.dataclass(frozen=True)
class ColdStartStage:
    """Long chains of thought, collected in the paper's four ways."""

    problems: int = 800
    """That each way is tried on."""
    n: int = 4
    """Responses to each."""
    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int = 40
    shots: int = 1
    batch_size: int = 64
    workers: int = 1
    """Processes that judge by rule."""
    curation: Curation = _LONG
    edits: Path | None = None
    """A person's edits of the candidates (jsonl): see `r1jax.recipes.cold_start.merge_edits`."""


@dataclasses.dataclass(frozen=True)
class RejectionStage(RejectionConfig):
    """Many responses of the reasoning model, of which the correct and readable ones are kept."""

    n: int = 4
    curation: Curation = _READABLE
    problems: int = 6_000
    judge: Path | None = None
    """A model that is asked whether a response agrees with the reference answer, where no rule can tell."""
    temperature: float = 1.0
    max_tokens: int = 40
    batch_size: int = 64


@dataclasses.dataclass(frozen=True)
class ResultsStage:
    """The evaluation of every model."""

    workers: int = 1
    """Processes that judge by rule."""
    sampling: SamplingConfig = _SAMPLING
    batch_size: int = 64


def _rl(name: str, policy: str, steps: int, reward: RewardConfig, temperature: float = 1.0, **options) -> RLConfig:
    grpo = GRPOConfig(
        num_prompts=16,
        num_generations=16,
        max_completion_length=40,
        temperature=temperature,
        epsilon=options.pop("epsilon", 0.2),
        epsilon_high=options.pop("epsilon_high", 0.28),
        ref_model_sync_steps=50,
        num_microbatches=4,
    )
    return RLConfig(
        checkpoint=Path(policy),
        data=_TRAIN,
        eval_data=_TEST,
        run_dir=Path(name),
        steps=steps,
        max_prompt_length=32,
        grpo=grpo,
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=3, weight_decay=0.0),
        reward=reward,
        eval=EvalConfig(every=20, problems=128, k=4),
        **options,
    )


def _sft(name: str, policy: str, data: str, epochs: int, learning_rate: float = 2e-3) -> SFTConfig:
    optimizer = OptimizerConfig(
        learning_rate=learning_rate, warmup_steps=5, lr_scheduler_type="cosine", min_lr_ratio=0.1, weight_decay=0.0
    )
    return SFTConfig(
        checkpoint=Path(policy),
        data=data,
        run_dir=Path(name),
        epochs=epochs,
        rows=32,
        length=128,
        chat_template=Path("world/r1_chat_template.jinja"),
        optimizer=optimizer,
        loss=SupervisedLossConfig(bias_update_rate=0.0),
    )


def _reward_model(name: str, **options) -> RewardModelConfig:
    return RewardModelConfig(
        checkpoint=Path("dev3/model"),
        run_dir=Path(name),
        rows=64,
        length=80,
        optimizer=OptimizerConfig(learning_rate=5e-4, warmup_steps=3, weight_decay=0.0),
        **options,
    )


_ZERO_REWARD = RewardConfig(
    # The language is only watched: R1-Zero is paid for answers and tags alone.
    functions=("world_accuracy", "format", "language_consistency"), weights=(1.0, 0.2, 0.0),
)  # fmt: skip
_ZERO_LANGUAGE_REWARD = dataclasses.replace(_ZERO_REWARD, weights=(1.0, 0.2, 1.0))  # added directly, as the paper does
_REASONING_REWARD = RewardConfig(
    functions=("world_accuracy", "think_format", "language_consistency"), weights=(1.0, 0.2, 1.0),
)  # fmt: skip
_ALL_SCENARIOS_REWARD = RewardConfig(
    # The requests' rule is only watched, beside the preferences that could be hacked.
    functions=(
        "world_accuracy", "think_format", "language_consistency", "helpfulness", "harmlessness", "request_accuracy",
        "refusal_accuracy",
    ),
    weights=(1.0, 0.2, 1.0, 1.0, 1.0, 0.0, 0.0),
    domains={
        "world_accuracy": ("reasoning",),
        "helpfulness": ("general",),
        "harmlessness": ("safety",),
        "request_accuracy": ("general",),
        "refusal_accuracy": ("safety",),
    },
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class R1Config:
    """The whole recipe of DeepSeek-R1 (arXiv 2501.12948), stage by stage; each group of settings is a stage's."""

    world: WorldStage
    base: BaseStage
    zero: RLConfig
    zero_language: RLConfig
    cold_start: ColdStartStage
    dev1: SFTConfig
    dev2: RLConfig
    rejection: RejectionStage
    dev3: SFTConfig
    helpfulness: RewardModelConfig
    harmlessness: RewardModelConfig
    r1: RLConfig
    student_base: BaseStage
    student_distilled: SFTConfig
    student_rl: RLConfig
    results: ResultsStage
    preset: str = "nano"
    run_dir: Path = Path("runs/r1")
    """Every stage has its folder here; results.json and report.html say how it ended."""
    seed: int = 0
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self):
        check_field(self.seed >= 0, "seed", self.seed, "must not be negative")
        for stage in dataclasses.fields(self):
            settings = getattr(self, stage.name)
            if stage.name != "world" and dataclasses.is_dataclass(settings):
                for name, usual in (("seed", 0), ("mesh", MeshConfig())):
                    given = getattr(settings, name, usual)
                    check_field(given == usual, f"{stage.name}.{name}", given, f"all stages have the recipe's --{name}")
        if self.world.data is not None:
            for name in ("base", "student_base"):
                given = getattr(self, name).checkpoint
                check_field(given is not None, f"{name}.checkpoint", given, "world.data needs a released base model")
            self._check_rules()

    def _check_rules(self) -> None:
        """Raises `ConfigError` where a stage of RL pays nothing for being correct in a domain."""
        for function, domains in self.world.rules.items():
            for name in ("zero", "zero_language", "dev2", "r1", "student_rl"):
                reward = getattr(self, name).reward
                paid = reward.domains.get(function, ()) if function in reward.functions else ()
                lacking = sorted(set(domains) - set(paid))
                check_field(
                    not lacking,
                    f"{name}.reward.domains",
                    reward.domains,
                    f"world.rules has {function} for {', '.join(lacking)}: name it in {name}.reward.functions and here",
                )


def _released_rl(name: str, policy: str, steps: int, reward: RewardConfig, **options) -> RLConfig:
    """R1's own numbers (arXiv 2501.12948, section 2.1 and supplement B.4): 8,192 outputs in 16 minibatches a step."""
    grpo = GRPOConfig(
        num_prompts=512,
        num_generations=16,
        num_minibatches=16,
        num_microbatches=options.pop("num_microbatches", 1),
        max_completion_length=32_768,
        temperature=options.pop("temperature", 1.0),
        ref_model_sync_steps=25,  # of 16 optimizer steps each: the paper's 400
    )
    return RLConfig(
        checkpoint=Path(policy),
        data=_TRAIN,
        eval_data=_TEST,
        run_dir=Path(name),
        steps=steps,
        max_prompt_length=4096,
        dtype="bfloat16",
        remat=True,
        grpo=grpo,
        optimizer=OptimizerConfig(learning_rate=3e-6, weight_decay=0.0),
        reward=reward,
        eval=EvalConfig(every=25, problems=512, k=4),
        **options,
    )


def _released_sft(name: str, policy: str, data: str, epochs: int, learning_rate: float, rows: int) -> SFTConfig:
    return SFTConfig(
        checkpoint=Path(policy),
        data=data,
        run_dir=Path(name),
        epochs=epochs,
        rows=rows,
        length=32_768,
        dtype="bfloat16",
        remat=True,
        chat_template=Path("world/r1_chat_template.jinja"),
        optimizer=OptimizerConfig(
            learning_rate=learning_rate, lr_scheduler_type="cosine", min_lr_ratio=0.1, weight_decay=0.0
        ),
    )


def _rule_reward(layout: str, language: float, **more) -> RewardConfig:
    """Accuracy by each domain's rule, the layout, the language; `more` are reward models by name, with their domain."""
    models = {name: (domain,) for name, domain in more.items()}
    return RewardConfig(
        functions=("math_accuracy", "code_accuracy", layout, "language_consistency", *models),
        weights=(1.0, 1.0, 1.0, language, *(1.0 for _ in models)),
        domains={"math_accuracy": ("math",), "code_accuracy": ("code",), **models},
        workers=16,
    )


def _released(student: str, learning_rate: float) -> R1Config:
    """The paper's settings, for a released base model, a released student, and data sets of one's own."""
    zero_reward = _rule_reward("format", 0.0)
    readable, scale = Curation(), dict(max_tokens=32_768, batch_size=256, workers=16)
    return R1Config(
        preset="deepseek-v3-671b",
        run_dir=Path("runs/r1_671b"),
        world=WorldStage(data=Path("data")),
        base=BaseStage(preset="deepseek-v3-671b", checkpoint=Path("DeepSeek-V3-Base"), dtype="bfloat16"),
        zero=_released_rl("zero", "base/model", 650, zero_reward, template="r1_zero"),
        zero_language=_released_rl("zero_language", "base/model", 650, _rule_reward("format", 1.0), template="r1_zero"),
        cold_start=ColdStartStage(problems=5_000, shots=2, curation=readable, **scale),
        dev1=_released_sft("dev1", "base/model", "cold_start/cold_start.jsonl", 2, 5e-5, 128),
        dev2=_released_rl("dev2", "dev1/model", 650, _rule_reward("think_format", 1.0)),
        rejection=RejectionStage(problems=100_000, n=16, curation=readable, **scale),
        dev3=_released_sft("dev3", "base/model", "rejection/sft.jsonl", 2, 5e-5, 128),
        helpfulness=_released_reward_model("helpfulness", "pairs", summary_only=True),
        harmlessness=_released_reward_model("harmlessness", "safety", kind="pointwise"),
        r1=_released_rl(
            "r1",
            "dev3/model",
            106,
            _rule_reward("think_format", 1.0, helpfulness="general", harmlessness="safety"),
            temperature=0.7,
            general_data="world/requests_train.jsonl",
            general_from=81,  # the paper's last 400 of 1,700 steps, 16 to a rollout
            general_prompts=256,
            reward_models={"helpfulness": Path("helpfulness/model"), "harmlessness": Path("harmlessness/model")},
        ),
        student_base=BaseStage(preset=student, checkpoint=Path(student), dtype="bfloat16"),
        student_distilled=_released_sft(
            "student_distilled", "student_base/model", "rejection/sft.jsonl", 2, learning_rate, 64
        ),
        student_rl=_released_rl(
            "student_rl", "student_base/model", 650, _rule_reward("format", 0.0), template="r1_zero"
        ),
        results=ResultsStage(sampling=dataclasses.replace(_SAMPLING, max_completion_length=32_768), batch_size=64),
    )


def _released_reward_model(name: str, data: str, **options) -> RewardModelConfig:
    return RewardModelConfig(
        checkpoint=Path("dev3/model"),
        run_dir=Path(name),
        data=f"world/{data}_train.jsonl",
        eval_data=f"world/{data}_test.jsonl",
        dtype="bfloat16",
        remat=True,
        **options,
    )


PRESETS: dict[str, R1Config] = {
    "nano": R1Config(
        world=WorldStage(),
        base=BaseStage(),
        zero=_rl("zero", "base/model", 120, _ZERO_REWARD, template="r1_zero"),
        zero_language=_rl("zero_language", "base/model", 120, _ZERO_LANGUAGE_REWARD, template="r1_zero"),
        cold_start=ColdStartStage(),
        dev1=_sft("dev1", "base/model", "cold_start/cold_start.jsonl", epochs=4),
        dev2=_rl("dev2", "dev1/model", 60, _REASONING_REWARD, epsilon=10.0, epsilon_high=None),
        rejection=RejectionStage(),
        dev3=_sft("dev3", "base/model", "rejection/sft.jsonl", epochs=2),
        helpfulness=_reward_model(
            "helpfulness", data="world/pairs_train.jsonl", eval_data="world/pairs_test.jsonl", summary_only=True
        ),
        harmlessness=_reward_model(
            "harmlessness", data="world/safety_train.jsonl", eval_data="world/safety_test.jsonl", kind="pointwise"
        ),
        r1=_rl(
            "r1",
            "dev3/model",
            60,
            _ALL_SCENARIOS_REWARD,
            temperature=0.7,
            epsilon=10.0,
            epsilon_high=None,
            general_data="world/requests_train.jsonl",
            general_from=35,
            general_prompts=8,
            reward_models={"helpfulness": Path("helpfulness/model"), "harmlessness": Path("harmlessness/model")},
        ),
        student_base=BaseStage(preset="nano-qwen2"),
        student_distilled=_sft("student_distilled", "student_base/model", "rejection/sft.jsonl", epochs=2),
        # As much arithmetic as distillation takes, its own and the drawing of its examples: see TFLOP in the results.
        student_rl=_rl("student_rl", "student_base/model", 48, _ZERO_REWARD, template="r1_zero"),
        results=ResultsStage(),
    ),
    "deepseek-v3-671b": _released("qwen2.5-32b", learning_rate=6e-5),
}


def parse_r1(
    args: Sequence[str] | None = None, prog: str = "r1jax recipe r1"
) -> tuple[R1Config, str | None, str | None]:
    """(configuration, --only, --from) of a command line: the preset's values, with what is given on top.

    Raises:
      ConfigError: an unknown preset, or a value that cannot work.
    """
    args = list(sys.argv[1:] if args is None else args)
    default = PRESETS[preset_of(args, PRESETS)]

    def options(
        config: Annotated[R1Config, tyro.conf.arg(name="")] = default,
        only: str | None = None,
        start: Annotated[str | None, tyro.conf.arg(name="from")] = None,
    ) -> tuple[R1Config, str | None, str | None]:
        """Runs the R1 recipe: what is there and unchanged is not run again, what was killed goes on.

        The stages are world, base, zero, zero_language, candidates, cold_start, dev1, dev2, rejection, dev3,
        helpfulness, harmlessness, r1, student_base, student_distilled, student_rl, results. Each has a group of options
        of its name; where its data and models are (checkpoint, data, run_dir, chat_template) is set already.

        Args:
            only: run this stage alone, again if it is complete.
            start: run this stage again, and whatever that changes.
        """
        return config, only, start

    return tyro.cli(options, args=args, prog=prog, registry=command_line_rules())
