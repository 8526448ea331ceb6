"""A benchmark that a random model gets partly right, light enough for a worker process to import."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from r1jax.errors import DataError
from r1jax.evaluation.benchmarks.base import Benchmark, Problem, Protocol

PROTOCOL = Protocol(k=4, max_tokens=8)


def load(source, seed):
    path = Path(source)
    if not path.exists():
        raise DataError(f"source={source!r}: no such file")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [Problem(str(row["id"]), row["question"], {"answer": row["answer"], "seed": seed}) for row in rows]


def score(prompts, completions, answer, **columns):
    """Right where the text has as many characters as the answer says, modulo 3. "?" cannot be scored."""
    if "hang" in completions:
        time.sleep(60)
    if "die" in completions:
        os.kill(os.getpid(), signal.SIGKILL)
    return [
        None if gold == "?" else float(letters(text) == gold) for text, gold in zip(completions, answer, strict=True)
    ]


def letters(text):
    return str(len(text) % 3) if text else None


def stuck(text):
    if text == "stuck":
        time.sleep(60)
    return letters(text)


def bare(prompts, completions, answer):
    return [float(letters(text) == gold) for text, gold in zip(completions, answer, strict=True)]


def no_scores(prompts, completions, **columns):
    raise TypeError("no scores")


def imported_jax(prompts, completions, **columns):
    return ["jax" in sys.modules] * len(completions)


def same(first, second):
    return int(first) % 2 == int(second) % 2


def by_answer(problems, completions, scores):
    assert [len(row) for row in completions] == [len(row) for row in scores]
    rates = {p.columns["answer"]: sum(filter(None, row)) / len(row) for p, row in zip(problems, scores, strict=True)}
    return {"answer": rates, "note": "the last of each"}


def export(problems, completions, model):
    return [{"id": p.id, "model": model, "output": texts[0]} for p, texts in zip(problems, completions, strict=True)]


TINY = Benchmark(
    name="tiny", title="Tiny", source="nowhere.jsonl", load=load, score=score, protocol=PROTOCOL,
    answer=letters, equivalent=same, summarise=by_answer,
)  # fmt: skip
ESSAYS = Benchmark(
    name="essays", title="Essays", source="nowhere.jsonl", load=load, score=None, protocol=Protocol(k=1, max_tokens=4),
    export=export,
)  # fmt: skip
