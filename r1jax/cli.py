"""The `r1jax` command. Each subcommand imports what it needs when it runs, so that help and reports come at once."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import r1jax
from r1jax.errors import ConfigError, exit_on_error
from r1jax.runtime import use_huge_pages


def r1_zero(args: Sequence[str]) -> None:
    """Pretrain a base model, then reinforcement learning from rule rewards alone (R1-Zero)."""
    from r1jax.recipes.config import parse_r1_zero

    config = parse_r1_zero(args)

    from r1jax.recipes import r1_zero as recipe

    recipe.run(config)


def sft(args: Sequence[str]) -> None:
    """Fine-tune a model on conversations, or on prompts and completions."""
    import tyro

    from r1jax.recipes import sft as recipe

    recipe.run(tyro.cli(recipe.SFTConfig, prog="r1jax sft", args=args))


def reward_model(args: Sequence[str]) -> None:
    """Train a reward model from pairs of responses, or from responses with a label."""
    import tyro

    from r1jax.recipes import reward_model as recipe

    recipe.run(tyro.cli(recipe.RewardModelConfig, prog="r1jax reward-model", args=args))


def rl(args: Sequence[str]) -> None:
    """Reinforcement learning (GRPO) of a model on prompts of your own."""
    import tyro

    from r1jax.recipes import rl as recipe
    from r1jax.recipes.config import command_line_rules

    recipe.run(tyro.cli(recipe.RLConfig, prog="r1jax rl", args=args, registry=command_line_rules()))


def recipe(args: Sequence[str]) -> None:
    """Run a whole recipe, stage by stage: r1."""
    names = ("r1",)
    if list(args) in (["-h"], ["--help"]):
        print(f"usage: r1jax recipe {' | '.join(names)} [options]\n\nr1jax recipe r1 --help lists the options.")
        return
    if not args or args[0] not in names:
        given = f"no recipe {args[0]!r}" if args and not args[0].startswith("-") else "which recipe?"
        raise ConfigError(f"{given}: write r1jax recipe {' or '.join(names)}, with options after it")
    from r1jax.recipes.r1.config import parse_r1

    config, only, start = parse_r1(args[1:])

    from r1jax.recipes.r1 import chain

    chain.run(config, only, start)


def evaluate(args: Sequence[str]) -> None:
    """Evaluate a checkpoint on benchmarks: sampled, judged, measured and reported."""
    import tyro

    from r1jax.commands import eval as command

    command.evaluate(tyro.cli(command.EvalConfig, prog="r1jax eval", args=args))


def score(args: Sequence[str]) -> None:
    """Judge, measure and report completions that were made elsewhere."""
    import tyro

    from r1jax.commands import score as command

    command.score(tyro.cli(command.ScoreConfig, prog="r1jax score", args=args))


def report(args: Sequence[str]) -> None:
    """Write report.html into a folder: of a run, of a recipe, of an evaluation, or with several evaluations in it."""
    import tyro

    def options(run_dir: Path) -> Path:
        """Write report.html into a folder: of a run, of a recipe, of an evaluation, or with several evaluations in it.

        Args:
            run_dir: the folder; may also be given without the option's name.
        """
        return run_dir

    if args and not args[0].startswith("-"):
        args = ["--run-dir", *args]
    run_dir = tyro.cli(options, prog="r1jax report", args=args)

    from r1jax.evaluation.report import write_report

    print(write_report(run_dir))


def convert(args: Sequence[str]) -> None:
    """Write a published checkpoint as r1jax's own folder, or a run or such a folder as a published one."""
    import tyro

    from r1jax.commands import convert as command

    command.convert(tyro.cli(command.ConvertConfig, prog="r1jax convert", args=args))


def generate(args: Sequence[str]) -> None:
    """Draw completions of prompts from any checkpoint."""
    import tyro

    from r1jax.commands import generate as command

    command.generate(tyro.cli(command.GenerateConfig, prog="r1jax generate", args=args))


def chat(args: Sequence[str]) -> None:
    """Talk to a model in the terminal, its thinking dimmed."""
    import tyro

    from r1jax.commands import chat as command

    command.chat(tyro.cli(command.ChatConfig, prog="r1jax chat", args=args))


def decontaminate(args: Sequence[str]) -> None:
    """Leave out training rows that share ten words in sequence with a benchmark."""
    import tyro

    from r1jax.commands import decontaminate as command

    command.decontaminate(tyro.cli(command.DecontaminateConfig, prog="r1jax decontaminate", args=args))


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "r1-zero": r1_zero,
    "sft": sft,
    "rl": rl,
    "recipe": recipe,
    "reward-model": reward_model,
    "eval": evaluate,
    "score": score,
    "report": report,
    "convert": convert,
    "generate": generate,
    "chat": chat,
    "decontaminate": decontaminate,
}


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.__doc__}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: r1jax COMMAND [options]", "", *lines, "", "r1jax COMMAND --help lists a command's options."]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command. Exit status 0, or 2 after one sentence on stderr about what to change."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return
    if argv[0] == "--version":
        print(f"r1jax {r1jax.__version__}")
        return
    name, *args = argv
    if name not in COMMANDS:
        print(f"error: no command {name!r}\n\n{usage()}", file=sys.stderr)
        raise SystemExit(2)
    with exit_on_error():
        COMMANDS[name](args)


def start() -> None:
    """The process `r1jax`, and nothing else: it may start itself anew."""
    use_huge_pages()
    main()


if __name__ == "__main__":
    start()
