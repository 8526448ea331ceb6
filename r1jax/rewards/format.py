"""The format reward of R1-Zero: the reasoning between think tags, then the answer between answer tags."""

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def format_reward(prompts: list[str], completions: list[str], **columns) -> list[float]:
    """1.0 for a completion that is exactly `<think>...</think><answer>...</answer>`, else 0.0 (arXiv 2501.12948, 2.2).

    Each tag occurs once and in this order; neither block is blank; around and between the blocks there is at most
    white space. Two think blocks, a nested tag, or a word after the answer score 0.0: each is a way to be paid for the
    tags while ignoring what they are for.
    """
    return [float(_is_strict(completion)) for completion in completions]


def _is_strict(completion: str) -> bool:
    # Counting and partitioning read the text a fixed number of times; a regex with lazy groups can go quadratic on
    # tens of thousands of tokens that open tags and never close them.
    if any(completion.count(tag) != 1 for tag in _TAGS):
        return False
    parts, rest = [], completion
    for tag in _TAGS:
        part, found, rest = rest.partition(tag)
        if not found:
            return False
        parts.append(part.strip())
    before, think, between, answer = parts
    return bool(think and answer) and not (before or between or rest.strip())
