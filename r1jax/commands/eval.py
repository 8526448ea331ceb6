"""`r1jax eval`: a checkpoint on benchmarks, by their protocols: sampled, judged, measured and reported."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from r1jax.commands.results import (
    SETTINGS,
    check_folder,
    check_free,
    claim_folder,
    draw,
    read_rows,
)
from r1jax.commands.score import find_benchmark, judge_into, print_results, samples_of
from r1jax.configs.training import MeshConfig, SamplingConfig
from r1jax.errors import ConfigError, DataError, check_field
from r1jax.files import PartialRows, file_hash, write_json

if TYPE_CHECKING:
    import jax

    from r1jax.configs.model import ModelConfig
    from r1jax.data.chat import ChatTemplate
    from r1jax.data.tokenizer import Tokenizer
    from r1jax.evaluation.benchmarks.base import Benchmark, Problem
    from r1jax.evaluation.scoring import Samples
    from r1jax.sampling.generator import Generator

COMPLETIONS, PREDICTIONS = "completions.jsonl", "predictions.json"


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluates a checkpoint on benchmarks. What is not given is as the benchmark's protocol has it."""

    checkpoint: Path
    """A published checkpoint, a converted one, or the folder of a run."""
    benchmark: tuple[str, ...]
    """One or more, by name."""
    out: Path
    """The folder for the results; several benchmarks get one in it each. Interrupted, the same command goes on."""
    source: tuple[str, ...] = ()
    """Where the problems are, one for each benchmark in their order, unless where the benchmarks say."""
    limit: int | None = None
    """Only the first problems."""
    k: int | None = None
    """Completions of each problem."""
    temperature: float | None = None
    """0 is greedy."""
    top_p: float | None = None
    max_tokens: int | None = None
    """Of a completion, the stop token included. The protocol's is lowered to what the model has positions for."""
    seed: int = 0
    """Of the samples, and of what a benchmark shuffles."""
    batch_size: int | None = None
    """Problems at a time; unless given, as many as make about 64 completions."""
    think: bool = False
    """Make chat prompts end with <think>, as DeepSeek asks for R1."""
    plain: bool = False
    """Give the problem's text alone, even where the checkpoint has a chat template."""
    workers: int = dataclasses.field(default_factory=lambda: os.cpu_count() or 1)
    """Processes that judge."""
    timeout: float = 60.0
    """Seconds after which the judging of a completion is given up: it counts as wrong, and is reported."""
    dtype: Literal["float32", "bfloat16"] | None = None
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self):
        n = len(self.benchmark)
        check_field(n >= 1 and len(set(self.benchmark)) == n, "benchmark", self.benchmark, "one or more, each once")
        check_field(len(self.source) in (0, n), "source", self.source, f"give one for each of {n} benchmarks")
        for name in ("limit", "k", "max_tokens", "batch_size"):
            value = getattr(self, name)
            check_field(value is None or value >= 1, name, value, "must be at least 1")
        check_field(self.seed >= 0, "seed", self.seed, "must not be negative")
        check_field(not (self.think and self.plain), "think", True, "goes with a chat template, not with --plain")
        check_field(self.workers >= 1, "workers", self.workers, "must be at least 1")
        check_field(self.timeout > 0, "timeout", self.timeout, "must be positive")
        given = {"temperature": self.temperature, "top_p": self.top_p}
        SamplingConfig(**{name: value for name, value in given.items() if value is not None})


@dataclasses.dataclass(frozen=True)
class Target:
    """A model before its weights are read."""

    shape: ModelConfig
    tokenizer: Tokenizer
    template: ChatTemplate | None
    mesh: jax.sharding.Mesh


@dataclasses.dataclass(frozen=True)
class Plan:
    """One benchmark for one model: what is asked, how, and where the answers go."""

    benchmark: Benchmark
    folder: Path
    problems: Sequence[Problem]
    prompts: Sequence[Sequence[int] | str]
    """Token ids of each problem's prompt, or why the model cannot be asked it."""
    sampling: SamplingConfig
    batch_size: int
    settings: Mapping[str, Any]

    @property
    def asked(self) -> list[Sequence[int]]:
        return [prompt for prompt in self.prompts if not isinstance(prompt, str)]


def evaluate(config: EvalConfig) -> None:
    """Runs the command. All that can be refused is refused before the weights are read."""
    from r1jax import sharding
    from r1jax.checkpoints.model import describe, fingerprint, open_model
    from r1jax.data.chat import ChatTemplate
    from r1jax.data.hf_tokenizer import load_tokenizer
    from r1jax.data.tokenizer import check_fits
    from r1jax.evaluation.report import write_report
    from r1jax.sampling.generator import Generator

    console = Console()
    benchmarks = [find_benchmark(name) for name in config.benchmark]
    folders = [config.out] if len(benchmarks) == 1 else [config.out / b.name for b in benchmarks]
    if len(benchmarks) > 1:
        evaluated = [path.parent.name for path in config.out.glob(f"*/{SETTINGS}")]
        check_free(config.out, ["report.html", "report.html.partial", *evaluated, *config.benchmark])
    mesh = sharding.make_mesh(dataclasses.asdict(config.mesh))
    _, shape, assets = describe(config.checkpoint)
    tokenizer = load_tokenizer(assets)
    check_fits(tokenizer, shape.vocab_size, assets)
    template = None if config.plain else ChatTemplate.find(assets)
    if config.think and template is None:
        raise ConfigError(f"think=True: {assets} has no chat template; leave --think out, or copy the template there")
    target, plans = Target(shape, tokenizer, template, mesh), []
    for number, (benchmark, folder) in enumerate(zip(benchmarks, folders, strict=True)):
        source = config.source[number] if config.source else benchmark.source
        plans.append(make_plan(config, target, benchmark, source, folder, console))
    for plan in plans:
        check_folder(plan.folder, plan.settings)

    model, shape, _ = open_model(config.checkpoint, config.dtype, mesh, show_progress=True)
    weights = {"weights": fingerprint(model)}
    for plan in plans:
        check_folder(plan.folder, plan.settings | weights)  # all, before the first has a folder
    for plan in plans:
        claim_folder(plan.folder, plan.settings | weights)
    first = plans[0]
    generator = Generator(
        model, shape, tokenizer, first.sampling, mesh=mesh, batch_size=first.batch_size, seed=config.seed
    )
    del model  # the generator has its own, laid out for sampling
    results = [_run(plan, plan.settings | weights, generator, config, console) for plan in plans]
    print_results(console, results)
    if len(plans) > 1:
        write_report(config.out)
    console.print(f"report: {config.out / 'report.html'}", soft_wrap=True, highlight=False)


def make_plan(
    config: EvalConfig, target: Target, benchmark: Benchmark, source: str, folder: Path, console: Console
) -> Plan:
    """Loads the problems and settles how they are asked.

    Where the protocol's length leaves the longest prompt no room among the model's positions, completions get the rest,
    but at least half of the positions: a problem that then does not fit is not asked, and counts as wrong.
    """
    from r1jax.sampling.generator import check_sampling
    from r1jax.sharding import Layout

    problems = benchmark.load(source, config.seed)[: config.limit]
    if not problems:
        raise DataError(f"benchmark {benchmark.name!r}: {source} has no problems; give another --source")
    prompts = [_encode(problem.prompt, target, config.think) for problem in problems]
    positions, protocol = target.shape.max_position_embeddings, benchmark.protocol
    longest = max((len(p) for p in prompts if not isinstance(p, str)), default=0)
    max_tokens = config.max_tokens or min(protocol.max_tokens, max(positions - longest, positions // 2))
    check_field(max_tokens < positions, "max_tokens", max_tokens, f"the model has {positions} positions; use fewer")

    def tell(sentence: str) -> None:
        console.print(f"{benchmark.name}: {sentence}", soft_wrap=True, markup=False, highlight=False)

    if config.max_tokens is None and max_tokens < protocol.max_tokens:
        tell(
            f"completions of up to {max_tokens:,} tokens rather than the protocol's {protocol.max_tokens:,}: the model "
            f"has {positions:,} positions, and the longest prompt takes {longest:,}"
        )
    room = positions - max_tokens
    prompts = [
        f"its prompt of {len(p)} tokens is longer than the {room} positions beside the completion's"
        if not isinstance(p, str) and len(p) > room else p
        for p in prompts
    ]  # fmt: skip
    unasked = [p for p in prompts if isinstance(p, str)]
    if unasked:
        tell(f"{len(unasked)} of {len(prompts)} problems cannot be asked and count as wrong (one: {unasked[0]})")
    sampling = SamplingConfig(
        temperature=protocol.temperature if config.temperature is None else config.temperature,
        top_p=protocol.top_p if config.top_p is None else config.top_p,
        num_generations=config.k or protocol.k,
        max_completion_length=max_tokens,
    )
    devices = Layout(target.mesh, "sample").size("prompt")
    whole = max(1, len(prompts) - len(unasked))
    wanted = config.batch_size or -(-max(1, 64 // sampling.num_generations) // devices) * devices
    batch_size = min(wanted, -(-whole // devices) * devices)
    check_sampling(target.shape, sampling, target.mesh, batch_size)
    settings = {
        "command": "eval",
        "benchmark": benchmark.name,
        "source": source,
        "problems": len(problems),
        "k": sampling.num_generations,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": max_tokens,
        "seed": config.seed,
        "batch_size": batch_size,
        "think": config.think,
        "chat_template": target.template is not None,
        "dtype": config.dtype,
        "mesh": dict(target.mesh.shape),
        "timeout": config.timeout,
        "prompts_sha256": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
    }
    return Plan(benchmark, folder, problems, prompts, sampling, batch_size, settings)


def _encode(text: str, target: Target, think: bool) -> list[int] | str:
    """Token ids of a prompt, or why there are none."""
    from r1jax.data.tokenizer import from_bos

    try:
        if target.template is not None:
            text = target.template.render([{"role": "user", "content": text}], think=think)
        return from_bos(target.tokenizer.encode(text), target.tokenizer) or "it has no tokens"
    except DataError as error:  # a character without a piece, a template that refuses
        return str(error)


def _run(
    plan: Plan, settings: Mapping[str, Any], generator: Generator, config: EvalConfig, console: Console
) -> dict[str, Any]:
    """Samples and judges one benchmark, or what is left of it; returns its results."""
    from r1jax.evaluation.grading import Judge

    benchmark, path = plan.benchmark, plan.folder / COMPLETIONS
    if not path.exists():
        with PartialRows(path.with_name(f"{path.name}.partial"), settings) as rows:
            drawing = generator.with_sampling(plan.sampling, plan.batch_size)
            draw(drawing, plan.asked, rows, console, f"sampling {benchmark.name}")
            rows.finish(path, _completion_rows(plan, rows.done))
    samples = _samples(plan, path)
    if benchmark.export is not None:
        name = config.checkpoint.resolve().name
        completions = [list(s.completions) for s in samples]
        write_json(plan.folder / PREDICTIONS, benchmark.export(plan.problems, completions, name))
        console.print(f"for its own harness: {plan.folder / PREDICTIONS}", soft_wrap=True, highlight=False)
    return judge_into(
        plan.folder,
        samples,
        Judge.of_benchmark(benchmark),
        benchmark,
        {
            "name": benchmark.name,
            "title": benchmark.title,
            "settings": {"checkpoint": str(config.checkpoint)} | settings | {"sha256": file_hash(path)},
        },
        config,
        console,
    )


def _completion_rows(plan: Plan, drawn: Mapping[int, Mapping[str, Any]]) -> Any:
    """The lines of completions.jsonl, which `r1jax score` takes too."""
    number, k = 0, plan.sampling.num_generations
    for problem, prompt in zip(plan.problems, plan.prompts, strict=True):
        row = {**problem.columns, "id": problem.id, "problem": problem.prompt}
        if isinstance(prompt, str):
            empty = {"completions": [""] * k, "tokens": [None] * k, "finish_reasons": [None] * k}
            yield row | empty | {"unasked": prompt}
        else:
            yield row | dict(drawn[number])
            number += 1


def _samples(plan: Plan, path: Path) -> list[Samples]:
    samples = [samples_of(row, where) for where, row in read_rows(path, "--out")]
    if len(samples) != len(plan.problems):
        raise DataError(f"{path} has {len(samples)} problems instead of {len(plan.problems)}: use another --out")
    # A column may be called as a field of the file is; the problems have them all.
    return [dataclasses.replace(s, problem=p) for s, p in zip(samples, plan.problems, strict=True)]
