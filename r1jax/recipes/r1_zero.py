"""R1-Zero (arXiv 2501.12948, section 2): from a base model to reasoning by reinforcement learning alone."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
from rich.console import Console

from r1jax import sharding
from r1jax.checkpoints.run import RunCheckpoints
from r1jax.data.corpus import corpus_tokenizer, documents
from r1jax.data.iterators import PretrainBatches, PromptBatches, encode_prompts
from r1jax.data.problem_source import load_problems
from r1jax.data.templates import R1_ZERO_CHAT_TEMPLATE
from r1jax.errors import DataError
from r1jax.evaluation.evaluate import Scorer
from r1jax.evaluation.report import write_report
from r1jax.recipes.config import R1ZeroConfig
from r1jax.recipes.pretraining import pretrain
from r1jax.recipes.reinforcement import check_divides, check_rl_layout, held_out_batches, reinforce, reward_functions
from r1jax.recipes.run_folder import alone, open_run
from r1jax.rewards import exact_answer_reward, format_reward
from r1jax.rewards.arithmetic import answer_text
from r1jax.runtime import compile_cache
from r1jax.training.loop import Runtime
from r1jax.training.metrics import MetricsLog
from r1jax.training.programs import Programs
from r1jax.training.state import model_graph

SCORER = Scorer(exact_answer_reward, answer_text, format_reward)


def run(config: R1ZeroConfig) -> Path:
    """Runs R1-Zero, or what is left of it, and returns the path of its report.

    Raises:
      R1JaxError: in one sentence, whatever a person can mend. What was saved before stays valid.
    """
    console = Console()
    mesh = sharding.make_mesh(vars(config.mesh))
    check_layout(config, mesh)
    reward_functions(config.reward)  # a misspelt name must not wait for the base model to be trained
    fresh = not (config.run_dir / "config.json").exists()
    run_dir = open_run(config)
    with alone(run_dir):
        return _run(config, mesh, run_dir, console, fresh)


def _run(config: R1ZeroConfig, mesh: jax.sharding.Mesh, run_dir: Path, console: Console, fresh: bool) -> Path:
    compile_cache(run_dir / "compile_cache")
    base_checkpoints = RunCheckpoints(run_dir / "checkpoints" / "base", config.keep_checkpoints)
    rl_checkpoints = RunCheckpoints(run_dir / "checkpoints" / "rl", config.keep_checkpoints)
    base_step, rl_step = base_checkpoints.latest_step(), rl_checkpoints.latest_step()

    for name, step in (("reinforcement learning", rl_step), ("pretraining", base_step)):
        if step is not None:
            console.print(f"resuming {name} after step {step}", highlight=False)
            break
    tokenizer = corpus_tokenizer(config.base.corpus, run_dir / "world" / "tokenizer.model", config.model.vocab_size)
    train, test = (load_problems(run_dir / "world", split) for split in ("train", "test"))
    (run_dir / "world" / "chat_template.jinja").write_text(R1_ZERO_CHAT_TEMPLATE)  # goes along when it is exported
    try:
        for problems in (train, test):  # prompts that do not fit must not wait for the base model either
            first = [problems[i] for i in range(min(1000, len(problems)))]
            columns = encode_prompts(first, tokenizer, config.max_prompt_length).columns
            if config.reward.domains and "domain" not in columns:
                raise DataError(
                    f"reward.domains={config.reward.domains}: this run's problems have no domain; leave it out"
                )
    except DataError:
        if fresh:  # nothing has run: the folder is free for the settings that will
            (run_dir / "config.json").unlink()
        raise
    done = {"pretrain": base_step} if base_step is not None else {}
    done |= {"rl": rl_step} if rl_step is not None else {}
    with MetricsLog(run_dir, done) as log:
        runtime = Runtime(
            mesh,
            config.model,
            model_graph(config.model),
            tokenizer,
            Programs(run_dir, console),
            log,
            console,
            config.seed,
        )
        policy = None  # an RL checkpoint holds all that is needed
        if rl_step is None:
            base, corpus = config.base, functools.partial(documents, config.base.corpus, config.seed)
            batches = PretrainBatches(corpus, tokenizer, base.rows, base.length)
            policy = pretrain(base, runtime, base_checkpoints, base_step, batches, 5 * config.save_every, config.preset)
        prompts = PromptBatches(train, tokenizer, config.grpo.num_prompts, config.max_prompt_length, config.seed)
        held_out = held_out_batches(test, config.eval.problems, tokenizer, config.max_prompt_length)
        reinforce(config, runtime, rl_checkpoints, rl_step, policy, prompts, held_out, SCORER)
    report = write_report(run_dir)
    console.print(f"report: {report}", soft_wrap=True, highlight=False)
    return report


def check_layout(config: R1ZeroConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises `ConfigError` where batches do not divide over the mesh, before anything is computed."""
    check_rl_layout(config, mesh)
    check_divides("base.rows", config.base.rows, mesh, "batch")
