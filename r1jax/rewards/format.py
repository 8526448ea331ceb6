"""The format rewards: R1-Zero's think and answer tags, and R1's thinking before a summary."""

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def format_reward(prompts: list[str], completions: list[str], **columns) -> list[float]:
    """1.0 for a completion that is exactly `<think>...</think><answer>...</answer>`, else 0.0 (arXiv 2501.12948, 2.2).

    Each tag occurs once and in this order; neither block is blank; around and between the blocks there is at most
    white space. Two think blocks, a nested tag, or a word after the answer score 0.0: each is a way to be paid for the
    tags while ignoring what they are for.

    Where the prompt ends with `<think>`, the completion is what follows it, and must not open the block again.
    """
    return [float(_is_answered(_opened(*row))) for row in zip(prompts, completions, strict=True)]


def think_format_reward(prompts: list[str], completions: list[str], **columns) -> list[float]:
    """1.0 for a completion that is exactly `<think>...</think>` and a summary, else 0.0: R1's layout (2501.12948, 2.3).

    Neither the thinking nor the summary is blank; before the block there is at most white space; the summary is free
    text without think or answer tags.

    Where the prompt ends with `<think>`, as DeepSeek asks for R1's to do, the completion is what follows it, and must
    not open the block again.
    """
    return [float(_is_summarised(_opened(*row))) for row in zip(prompts, completions, strict=True)]


# Counting and partitioning read the text a fixed number of times; a regex with lazy groups can go quadratic on tens of
# thousands of tokens that open tags and never close them.


def _opened(prompt: str, completion: str) -> str:
    """The completion from the opening of its think block on, which may be the prompt's last word."""
    return f"<think>{completion}" if prompt.rstrip().endswith("<think>") else completion


def _is_answered(text: str) -> bool:
    parts = _split(text, _TAGS)
    if parts is None:
        return False
    before, think, between, answer, after = parts
    return _says_something(think) and _says_something(answer) and not (before or between or after)


def _is_summarised(text: str) -> bool:
    parts = _split(text, _TAGS[:2])
    if parts is None or any(tag in text for tag in _TAGS[2:]):
        return False
    before, think, summary = parts
    return _says_something(think) and _says_something(summary) and not before


def _says_something(part: str) -> bool:
    """Characters that nobody sees are no reasoning, and neither are dots."""
    return any(character.isalnum() for character in part)


def _split(text: str, tags: tuple[str, ...]) -> list[str] | None:
    """What lies around the tags, without white space at its ends; None unless each occurs once, in this order."""
    if any(text.count(tag) != 1 for tag in tags):
        return None
    parts = []
    for tag in tags:
        part, found, text = text.partition(tag)
        if not found:
            return None
        parts.append(part.strip())
    return [*parts, text.strip()]
