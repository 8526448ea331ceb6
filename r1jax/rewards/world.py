"""The accuracy reward of the world's problems and requests (`r1jax.data.world`): by rule, and by running programs."""

import functools
from collections.abc import Sequence

from r1jax.rewards.arithmetic import parse_integer
from r1jax.rewards.code import extract_program, grade_program

_BOXED = "\\boxed{"


def world_accuracy(
    prompts: list[str],
    completions: list[str],
    answer: list[str],
    tests: Sequence[Sequence[str]] | None = None,
    **columns,
) -> list[float | None]:
    """1.0 where a completion gives the right answer, else 0.0.

    The answer is what the last `<answer>` block holds, or else, after the thinking, what the last `\\boxed{}` holds or
    the whole of the summary. Where `tests` (assertions) are given it is a program that must pass them, in the sandbox;
    an integer is compared as a number, everything else as it stands. Blocks that disagree or are not closed are wrong.
    """
    cases = [()] * len(completions) if tests is None else tests
    return [_score(*row) for row in zip(completions, answer, (tuple(c or ()) for c in cases), strict=True)]


def world_answer(completion: str) -> str | None:
    """What a vote counts: the answer as `world_accuracy` reads it, integers without leading zeros; None: no answer."""
    answer = _given(completion)
    if answer is None:
        return None
    number = parse_integer(answer)
    return answer if number is None else str(number)


def _score(completion: str, gold: str, tests: tuple[str, ...]) -> float | None:
    if not tests:
        expected = parse_integer(gold)
        return float(world_answer(completion) == (gold if expected is None else str(expected)))
    if _given(completion) is None:
        return 0.0
    passed = _passes(extract_program(completion, calls=True)[0], tests)
    return None if passed is None else float(passed)


@functools.lru_cache(maxsize=1 << 16)
def _passes(program: str, tests: tuple[str, ...]) -> bool | None:
    """A group writes the same few programs many times."""
    return grade_program(program, list(tests)).passed


def _given(completion: str) -> str | None:
    if "<answer>" in completion:
        blocks = completion.split("<answer>")[1:]
        if any(block.count("</answer>") != 1 for block in blocks):
            return None
        answers = {block.partition("</answer>")[0].strip() for block in blocks}
        return answers.pop() or None if len(answers) == 1 else None
    _, closed, summary = completion.rpartition("</think>")
    if not closed:
        return None
    _, boxed, rest = summary.rpartition(_BOXED)
    answer = rest.partition("}")[0] if boxed and "}" in rest else summary
    return answer.strip() or None


def refusal_accuracy(prompts: list[str], completions: list[str], answer: list[str], **columns) -> list[float | None]:
    """`request_accuracy` by a name of its own, for requests that ask for harm."""
    return world_accuracy(prompts, completions, answer)


def request_accuracy(prompts: list[str], completions: list[str], answer: list[str], **columns) -> list[float | None]:
    """`world_accuracy` by another name, for requests that need no reasoning: to watch beside a preference reward."""
    return world_accuracy(prompts, completions, answer)
