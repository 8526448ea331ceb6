"""The accuracy reward for problems whose answer is an integer."""

import re

# int() also takes "1_000", other scripts' digits and strings of any length; an answer is a plain, short integer.
_INTEGER = re.compile(r"[+-]?[0-9]{1,32}")


def parse_integer(text: str) -> int | None:
    """The integer that `text` is: ASCII digits with an optional sign, at most 32 of them, blanks around. Else None.

    Leading zeros are allowed: 07 is 7.
    """
    text = text.strip()
    return int(text) if _INTEGER.fullmatch(text) else None


def exact_answer_reward(
    prompts: list[str], completions: list[str], answer: list[str | int], **columns
) -> list[float | None]:
    """1.0 where the completion's answer is the integer `answer`, else 0.0; None where `answer` itself is no integer.

    The answer is what the last `<answer>` block holds, and nothing but an integer: "13 or 14" is wrong. Blocks that
    disagree, and blocks that are not closed, are wrong too, so that no one can answer twice.
    """
    return [_score(completion, gold) for completion, gold in zip(completions, answer, strict=True)]


def _score(completion: str, gold: str | int) -> float | None:
    expected = parse_integer(str(gold))
    if expected is None:
        return None
    blocks = completion.split("<answer>")[1:]
    if not blocks or any(block.count("</answer>") != 1 for block in blocks):
        return 0.0
    answers = {parse_integer(block.partition("</answer>")[0]) for block in blocks}
    return float(answers == {expected})


def answer_text(completion: str) -> str | None:
    """The integer in a completion's last closed `<answer>` block, "07" as "7": what a vote counts."""
    _, found, last = completion.rpartition("<answer>")
    answer = parse_integer(last.partition("</answer>")[0]) if found and "</answer>" in last else None
    return None if answer is None else str(answer)
