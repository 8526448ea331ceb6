"""The accuracy reward for mathematics: the final answer, compared with the gold one by meaning."""

from r1jax.rewards.answers import extract_answers
from r1jax.rewards.equivalence import compare

_PROMPT_WORDS = 2  # from which a prompt that comes back is an echo
_COPIED_WORDS = 5  # from which a completion that stands in the prompt is a copy


def math_accuracy(
    prompts: list[str], completions: list[str], answer: list[str | int | float], **columns
) -> list[float | None]:
    r"""1.0 where the completion's final answer means what `answer` does, else 0.0; None where `answer` does not parse.

    The final answer is what `\boxed{}` or `<answer>` holds, or a bare text says (`r1jax.rewards.answers`). Several that
    differ are right if each is, or if they are together what `answer` lists. What only repeats the prompt is no answer.
    Answers are compared as `r1jax.rewards.equivalence` says, with at most two seconds for one that needs algebra.
    """
    golds, texts, rows = [], [], []
    for prompt, completion, gold in zip(prompts, completions, answer, strict=True):
        candidates: list[str | None] = [*extract_answers(_without_echo(prompt, completion))]
        if len(candidates) > 1:
            candidates.append(" and ".join(candidates))
        candidates = candidates or [None]
        rows.append(slice(len(texts), len(texts) + len(candidates)))
        golds += [gold] * len(candidates)
        texts += candidates
    verdicts = compare(golds, texts)
    return [_score(verdicts[row]) for row in rows]


def _score(verdicts: list[bool | None]) -> float | None:
    """Of a single answer; or of each of several, and then of all together."""
    if None in verdicts:
        return None
    *each, together = verdicts
    return float(together or (bool(each) and all(each)))


def _without_echo(prompt: str, completion: str) -> str:
    """`completion` without copies of the prompt, whose examples would otherwise count as its answers."""
    words = prompt.split()
    if len(words) < _PROMPT_WORDS:
        return completion
    echo, text = " ".join(words), " ".join(completion.split())
    if len(text) <= len(echo):
        return "" if text.count(" ") >= _COPIED_WORDS - 1 and text in echo else completion
    return text.replace(echo, " ") if echo in text else completion
