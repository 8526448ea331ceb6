"""Words of reflection in completions, as in the paper's analysis of R1-Zero's self-evolution."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

REFLECTION_WORDS = (
    "wait", "mistake", "however", "but", "retry", "error", "verify", "wrong", "evaluate", "check",
)  # fmt: skip
"""The list that three experts agreed on (arXiv 2501.12948, C.2; Nature's Extended Data Figure 1)."""


def reflection_counts(texts: Iterable[str], words: Sequence[str] = REFLECTION_WORDS) -> dict[str, int]:
    """How often each of `words` occurs in all texts together, in any case, as whole words: "waiting" is not "wait".

    A word may be a phrase ("let me check"). At one place the first of `words` that fits is counted.
    """
    pattern = re.compile(rf"\b(?:{'|'.join(re.escape(word.lower()) for word in words)})\b")
    found = Counter(word for text in texts for word in pattern.findall(text.lower()))
    return {word: found[word.lower()] for word in words}


def reflection_metrics(texts: Sequence[str]) -> dict[str, float]:
    """Occurrences per completion, "reflection/<word>" and "reflection/all"; what a training step logs."""
    counts = reflection_counts(texts)
    counts["all"] = sum(counts.values())
    return {f"reflection/{word}": count / len(texts) for word, count in counts.items()}
