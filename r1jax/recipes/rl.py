"""Reinforcement learning of any model on one's own prompts, with rule rewards and reward models."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal

from r1jax.configs.training import GRPOConfig, MeshConfig, OptimizerConfig
from r1jax.errors import ConfigError, DataError, check_field
from r1jax.recipes.config import EvalConfig, RewardConfig
from r1jax.recipes.run_folder import alone, check_same_data, check_unchanged, open_run

Template = Literal["chat", "r1_zero", "none"]


@dataclasses.dataclass(frozen=True)
class RLConfig:
    """GRPO from a checkpoint, on prompts from a data set.

    Defaults are R1's where the paper gives one (arXiv 2501.12948, section 2.1 and supplement B.4).
    """

    checkpoint: Path
    """A published checkpoint, a converted one, or the folder of a run."""
    data: str
    """A file or folder, "tfds:NAME" or "hf:OWNER/NAME". Rows have a "question", "messages" or a "prompt" (text, or
    messages); reward functions get their other fields by name."""
    split: str | None = None
    eval_data: str | None = None
    """Rows of the same form to evaluate on: right (pass@1, cons@k) is what scores 1 by the first reward function that
    is for a row's domain, layouts (format, think_format) and reward models left out."""
    general_data: str | None = None
    """Further prompts, which join in at step `general_from`."""
    general_from: int = 0
    general_prompts: int = 0
    """How many of grpo.num_prompts are then theirs."""
    template: Template = "chat"
    """What makes a prompt of a question: the model's chat template, the paper's for R1-Zero, or nothing."""
    think: bool = False
    """Chat prompts end with an opened <think>."""
    run_dir: Path = Path("runs/rl")
    """Everything the run writes lands here; the model itself in its folder "model"."""
    seed: int = 0
    steps: int = 100
    max_prompt_length: int = 512
    skip_malformed: bool = False
    """Leave rows out that are malformed, or too long, and count them, instead of stopping at the first."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations and products; parameters are float32."""
    remat: bool = False
    """Recompute each layer in the backward pass: less memory, more time."""
    resume: bool = True
    """Go on where an earlier run in run_dir stopped."""
    save_every: int = 20
    keep_checkpoints: int = 2
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    grpo: GRPOConfig = dataclasses.field(default_factory=lambda: GRPOConfig(max_completion_length=1024))
    optimizer: OptimizerConfig = dataclasses.field(default_factory=lambda: OptimizerConfig(weight_decay=0.0))
    reward: RewardConfig = dataclasses.field(
        default_factory=lambda: RewardConfig(functions=("math_accuracy", "think_format"))
    )
    reward_models: dict[str, Path] = dataclasses.field(default_factory=dict)
    """Reward models by the names that reward.functions calls them by: folders of `r1jax reward-model`. They count with
    the sigmoid of their score, and with 0 where a completion has nothing to judge."""
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)

    def __post_init__(self):
        c = check_field
        c(self.seed >= 0, "seed", self.seed, "must not be negative")
        for name in ("steps", "max_prompt_length", "save_every", "keep_checkpoints"):
            c(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        c(self.general_from >= 0, "general_from", self.general_from, "must not be negative")
        most = self.grpo.num_prompts - 1
        mixed = self.general_data is not None
        c(
            1 <= self.general_prompts <= most if mixed else self.general_prompts == 0,
            "general_prompts",
            self.general_prompts,
            f"must lie in 1..{most} (grpo.num_prompts - 1) with general_data, and be 0 without",
        )
        for name in self.reward_models:
            c(
                name in self.reward.functions,
                "reward_models",
                name,
                "is not among reward.functions; add it, or leave it",
            )

    def as_json(self) -> dict[str, Any]:
        """Everything that decides the run's numbers, as plain JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str)) | {"kind": "rl"}

    def check_same_run(self, earlier: dict[str, Any]) -> None:
        """Raises `ConfigError` naming the first setting in which a resumed run differs from what began there."""
        if earlier.get("kind") != "rl":
            raise ConfigError(f"run_dir={str(self.run_dir)!r}: holds a run of another kind; choose another --run-dir")
        check_unchanged(self, earlier, ("run_dir", "resume", "save_every", "keep_checkpoints"))


def run(config: RLConfig) -> Path:
    """Reinforcement learning, or what is left of it; returns the folder of the model.

    Raises:
      R1JaxError: in one sentence, whatever a person can mend. What was saved before stays valid.
    """
    from flax import nnx
    from rich.console import Console

    from r1jax import sharding
    from r1jax.checkpoints.model import DESCRIPTION, describe
    from r1jax.checkpoints.run import RunCheckpoints
    from r1jax.data.hf_tokenizer import load_tokenizer
    from r1jax.data.iterators import MixedPrompts, PromptBatches
    from r1jax.data.tokenizer import check_fits
    from r1jax.evaluation.report import write_report
    from r1jax.recipes.reinforcement import check_rl_layout, held_out_batches, reinforce, reward_functions
    from r1jax.recipes.weights import begin, keep_model
    from r1jax.runtime import compile_cache
    from r1jax.training.loop import Runtime
    from r1jax.training.metrics import MetricsLog
    from r1jax.training.programs import Programs
    from r1jax.training.state import model_graph

    console = Console()
    mesh = sharding.make_mesh(vars(config.mesh))
    check_rl_layout(config, mesh)
    functions = reward_functions(config.reward, dict.fromkeys(config.reward_models))
    judge = None if config.eval_data is None else scorer(config.reward, config.reward_models)
    _, shape, assets = describe(config.checkpoint)
    longest, positions = config.max_prompt_length + config.grpo.max_completion_length, shape.max_position_embeddings
    check_field(
        longest <= positions,
        "max_prompt_length + grpo.max_completion_length",
        longest,
        f"must not exceed the model's max_position_embeddings={positions}",
    )
    tokenizer = load_tokenizer(assets)
    check_fits(tokenizer, shape.vocab_size, assets)
    render = _renderer(config, assets)
    sources = {"data": config.data, "general_data": config.general_data, "eval_data": config.eval_data}
    problems, cards = {}, {}
    for name, source in sources.items():
        if source is not None:
            split = config.split if name == "data" else None
            problems[name], cards[name] = _problems(config, source, split, tokenizer, render)
    _check_domains(config, problems)
    _check_columns(config, functions, problems)
    local = _reward_models(config, mesh)

    run_dir = open_run(config)  # from here on something is written
    with alone(run_dir):
        check_same_data(run_dir / "data.json", cards)
        for card in cards.values():
            if card["malformed"]:
                told = (
                    f"{card['source']}: {card['malformed']} of {card['rows']} rows are malformed or too long, left out"
                )
                console.print(told, highlight=False, soft_wrap=True)
        if (run_dir / "model" / DESCRIPTION).exists():
            console.print("this run is complete: its model is there", highlight=False)
            return run_dir / "model"
        compile_cache(run_dir / "compile_cache")
        checkpoints = RunCheckpoints(run_dir / "checkpoints" / "rl", config.keep_checkpoints)
        done = checkpoints.latest_step()
        if done is not None:
            console.print(f"resuming after step {done}", highlight=False)
        shape = shape.replace(dtype=config.dtype, param_dtype="float32", remat=config.remat)
        with MetricsLog(run_dir, {} if done is None else {"rl": done}) as log:
            programs = Programs(run_dir, console)
            runtime = Runtime(mesh, shape, model_graph(shape), tokenizer, programs, log, console, config.seed)

            def stream(name: str) -> Callable[[int], PromptBatches]:
                length, seed = config.max_prompt_length, config.seed
                return lambda count: PromptBatches(problems[name], tokenizer, count, length, seed, render)

            count, general = config.grpo.num_prompts, config.general_prompts
            prompts = stream("data")(count)
            if general:
                prompts = MixedPrompts(stream("data"), stream("general_data"), count, general, config.general_from)
            held_out = problems.get("eval_data", [])
            state = reinforce(
                config,
                runtime,
                checkpoints,
                done,
                begin(config.checkpoint, runtime) if done is None else None,
                prompts,
                held_out_batches(held_out, config.eval.problems, tokenizer, config.max_prompt_length, render),
                judge,
                local,
            )
        keep_model(run_dir / "model", nnx.merge(runtime.graph, state.params, state.buffers), shape, assets)
        console.print(f"model: {run_dir / 'model'}", soft_wrap=True, highlight=False)
        console.print(f"report: {write_report(run_dir)}", soft_wrap=True, highlight=False)
    return run_dir / "model"


def scorer(config: RewardConfig, models: Collection[str] = ()) -> Any:
    """How evaluation judges: a row by the first reward function that is for its domain, and by the layout's if one is.

    `models` are names of reward models: they do not judge, nor do layouts. Raises `ConfigError` where nothing is left.
    """
    from r1jax.evaluation.evaluate import Scorer
    from r1jax.evaluation.grading import Judge
    from r1jax.rewards import get_reward

    formats = [name for name in config.functions if name in ("format", "think_format")]
    judging = [name for name in config.functions if name not in (*formats, *models)]
    check_field(
        bool(judging),
        "reward.functions",
        config.functions,
        "none of them says what is right, as eval_data needs; add one (with weight 0 it is only watched)",
    )
    judge = Judge.of_reward(judging[0])
    by_domain: dict[str, Any] = {}
    for name in judging:
        for domain in config.domains.get(name, ()):
            by_domain.setdefault(domain, name)

    def correct(prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        names = [by_domain.get(domain, judging[0]) for domain in columns.get("domain") or [None] * len(prompts)]
        scores: list[float | None] = [None] * len(prompts)
        for name in dict.fromkeys(names):
            rows = [i for i, chosen in enumerate(names) if chosen == name]
            given = {column: [values[i] for i in rows] for column, values in columns.items()}
            found = get_reward(name)([prompts[i] for i in rows], [completions[i] for i in rows], **given)
            for i, score in zip(rows, found, strict=True):
                scores[i] = score
        return scores

    well_formed = get_reward(formats[0]) if formats else None
    return Scorer(correct, judge.answer or (lambda completion: None), well_formed)


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, dict) else None


def _renderer(config: RLConfig, assets: Path) -> Callable[[dict[str, Any]], str]:
    """The prompt of a row."""
    from r1jax.data.chat import ChatTemplate
    from r1jax.data.templates import render_r1_zero

    if config.template == "none":
        return lambda row: row["question"]
    if config.template == "r1_zero":
        return lambda row: render_r1_zero(row["question"])
    template = ChatTemplate.from_folder(assets)

    def render(row: dict[str, Any]) -> str:
        messages = row.get("messages") or [{"role": "user", "content": row["question"]}]
        return template.render(messages, think=config.think)

    return render


def _problems(
    config: RLConfig, source: str, split: str | None, tokenizer: Any, render: Callable[[dict[str, Any]], str]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of a data set, each with its "question", and its card."""
    from r1jax.data.sources import iterate_all_rows, parse_rows
    from r1jax.data.tokenizer import from_bos

    def parse(row: Any) -> dict[str, Any]:
        row = dict(row)
        messages = row.pop("messages", None)
        if isinstance(row.get("prompt"), list):  # TRL's conversational prompts
            messages = row.pop("prompt")
        if isinstance(row.get("question"), str):
            pass
        elif isinstance(messages, list):
            if config.template != "chat":
                raise DataError(f'it has messages, which template={config.template!r} cannot render: give a "question"')
            while messages and _role(messages[-1]) == "assistant":  # what is to be sampled
                messages = messages[:-1]
            if not messages or not isinstance(messages[-1].get("content"), str):
                raise DataError(f"its messages are {str(messages)[:60]}: give roles and contents, a user's last")
            row |= {"messages": messages, "question": messages[-1]["content"]}
        elif isinstance(row.get("prompt"), str):
            row["question"] = row.pop("prompt")
        else:
            has = ", ".join(f"{name}={str(value)[:20]!r}" for name, value in row.items()) or "none"
            raise DataError(f'its fields are {has}: give a "question" or a "prompt" (text), or "messages"')
        row.pop("prompt", None)  # the names under which reward functions get what was sampled
        row.pop("completions", None)
        length = len(from_bos(tokenizer.encode(render(row)), tokenizer))
        if length > config.max_prompt_length:
            raise DataError(f"its prompt has {length} tokens: raise max_prompt_length={config.max_prompt_length}")
        return row

    counts = dict.fromkeys(("rows", "malformed"), 0)
    rows = list(parse_rows(iterate_all_rows(source, split), parse, source, counts, config.skip_malformed))
    if not rows:
        raise DataError(f"{source}: none of its {counts['rows']} rows can be asked; give other data")
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()
    fields = dict.fromkeys(field for row in rows for field in row)
    rows = [{field: row.get(field) for field in fields} for row in rows]  # reward functions get every column each time
    return rows, {"source": source, "split": split, **counts, "prompts": len(rows), "sha256": digest}


def _check_domains(config: RLConfig, problems: dict[str, Sequence[dict[str, Any]]]) -> None:
    for name, rows in problems.items():
        if config.reward.domains and any(row.get("domain") is None for row in rows):
            raise DataError(f'{name}: reward.domains={config.reward.domains} needs a field "domain" in every row')


def _check_columns(config: RLConfig, functions: dict[str, Any], problems: dict[str, Sequence[dict[str, Any]]]) -> None:
    """Raises `DataError` where a reward function needs a field that no row has."""
    from r1jax.rewards.parameters import needed_columns

    fields = {field for name in ("data", "general_data") if name in problems for field in problems[name][0]}
    for name, function in functions.items():
        lacking = sorted(needed_columns(function) - fields) if function is not None else ()
        if lacking:
            raise DataError(
                f"data={config.data!r}: no row has a field {lacking[0]!r}, which reward function {name!r} "
                "needs; add it, or take another function"
            )


def _reward_models(config: RLConfig, mesh: Any) -> dict[str, Any]:
    if not config.reward_models:
        return {}
    from r1jax.rewards.registry import REWARDS
    from r1jax.rewards.reward_model import RewardModelReward

    for name in config.reward_models:
        check_field(
            name not in REWARDS, "reward_models", name, "a reward function of r1jax is called so; use another name"
        )
    return {
        name: RewardModelReward(path, mesh=mesh, probability=True, empty=0.0, name=name)
        for name, path in config.reward_models.items()
    }
