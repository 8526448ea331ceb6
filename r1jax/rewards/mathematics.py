"""The accuracy reward for mathematics: the final answer, compared with the gold one by meaning."""

import re
from functools import lru_cache

from r1jax.rewards.answers import extract_answers, gold_answer
from r1jax.rewards.equivalence import compare
from r1jax.rewards.latex import clean, squash

_PROMPT_WORDS = 2  # from which a prompt that comes back is an echo
_COPIED_WORDS = 5  # from which a completion that stands in the prompt is a copy
_PROMPT_READ = 4000  # characters of a prompt in which an answer is looked for, its last ones
_TO_BE_DONE = re.compile(r"(?<=.)[-+*^]|\\(?:sqrt|cdot|times|div|binom)(?![A-Za-z])")


def math_accuracy(
    prompts: list[str], completions: list[str], answer: list[str | int | float], **columns
) -> list[float | None]:
    r"""1.0 where the completion's final answer means what `answer` does, else 0.0; None where `answer` does not parse.

    The final answer is what `\boxed{}` or `<answer>` holds, or a bare text says (`r1jax.rewards.answers`). Several that
    differ are right if each is, or if they are together what `answer` lists. What only repeats the prompt is no answer,
    nor is a term of the prompt that was to be worked out: the root of 50 where `answer` is 5 times that of 2. Where the
    prompt has opened `<think>`, thinking that does not end has no answer.
    Answers are compared as `r1jax.rewards.equivalence` says, with at most two seconds for one that needs algebra.
    """
    golds, texts, rows = [], [], []
    for prompt, completion, gold in zip(prompts, completions, answer, strict=True):
        opened = "<think>" if prompt.rstrip().endswith("<think>") else ""
        candidates: list[str | None] = [*extract_answers(opened + _without_echo(prompt, completion))]
        candidates = [None if _is_copied(text, prompt, gold) else text for text in candidates]
        if len(candidates) > 1:
            candidates.append(None if None in candidates else " and ".join(candidates))
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
    own = completion.split()
    if len(own) < len(words):
        return "" if len(own) >= _COPIED_WORDS and " ".join(own) in " ".join(words) else completion
    if " ".join(words) not in " ".join(own):
        return completion
    return re.sub(r"\s+".join(map(re.escape, words)), " ", completion)


def _is_copied(answer: str, prompt: str, gold: object) -> bool:
    """Whether an answer is a term of the prompt that leaves something to be worked out, and not the gold one's text."""
    if len(answer) > _PROMPT_READ:
        return False
    text = squash(clean(answer))
    if not _TO_BE_DONE.search(text) or text == squash(clean(gold_answer(gold)[:_PROMPT_READ])):
        return False
    return text in _terms(prompt[-_PROMPT_READ:])


@lru_cache(maxsize=1024)
def _terms(prompt: str) -> str:
    return squash(clean(prompt))
