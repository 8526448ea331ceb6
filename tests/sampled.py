"""What the tests of collected data share: samplers that draw nothing, and rules for workers."""

from __future__ import annotations

import hashlib
import os
import re
import time

from r1jax.sampling.completions import TextCompletion


class Stop(BaseException):
    """A kill, as far as it can be had within a process."""


class FakeSample:
    """Gives `write(prompt, number)` for each completion, a prompt at a time, longest first as no caller should mind.

    `calls` are the prompts drawn so far; with `stop`, the call for that many prompts is a kill.
    """

    def __init__(self, write, stop: int | None = None):
        self.write, self.stop, self.calls = write, stop, []

    def __call__(self, prompts, n, done=frozenset()):
        for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
            if i in done:
                continue
            if len(self.calls) == self.stop:
                raise Stop
            self.calls.append(prompts[i])
            texts = [self.write(prompts[i], number) for number in range(n)]
            yield i, [TextCompletion(text, "length" if text.endswith("...") else "stop", len(text)) for text in texts]


def noise(*values) -> int:
    return int.from_bytes(hashlib.sha256(repr(values).encode()).digest()[:4], "little")


def boxed(prompts, completions, answer, **columns):
    """1 for a box with the answer; None where nobody could know; "hang" and "die" in a completion do so."""
    scores = []
    for completion, gold in zip(completions, answer, strict=True):
        if "hang" in completion:
            time.sleep(60)
        if "die" in completion:
            os._exit(1)
        found = re.findall(r"\\boxed\{(\w*)\}", completion)
        scores.append(None if gold == "?" else float(found[-1:] == [gold]))
    return scores


def half(prompts, completions, **columns):
    return [0.5] * len(completions)


def starts_well(prompts, completions, starts, **columns):
    """A rule of another kind of problem, which needs another column."""
    summaries = [completion.rpartition("</think>")[2] for completion in completions]
    return [float(text.startswith(start)) for text, start in zip(summaries, starts, strict=True)]
