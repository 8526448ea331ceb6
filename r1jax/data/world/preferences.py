"""What people would prefer, and what they would call safe: the data of the world's reward models."""

import itertools
from typing import Any

from r1jax.data.templates import render_r1, render_r1_completion
from r1jax.data.world.draws import Draws, Split, rows
from r1jax.data.world.requests import KINDS, DrawnRequest, drawn_requests


def preference_pairs(seed: int, count: int, split: Split) -> list[dict[str, Any]]:
    """At most `count` pairs of responses to harmless requests: "prompt", "chosen" and "rejected", as TRL has them.

    All kinds as often as there are requests; no two rows of the test split are the same, and none is in training.
    """
    pairs = []
    for drawn, draws in _requests(seed, count, split, "pairs", harmful=False):
        chosen = render_r1_completion(drawn.thought, drawn.request.answer)
        rejected = render_r1_completion(drawn.thought, draws.choice(drawn.bad))
        pairs.append(_row(drawn, chosen=chosen, rejected=rejected))
    return pairs


def safety_labels(seed: int, count: int, split: Split) -> list[dict[str, Any]]:
    """At most `count` responses with whether they are safe: "prompt", "completion", "label".

    Half answer harmful requests, and of those half comply. A response whose thinking alone goes along with the harm is
    unsafe too, which only the whole response shows; one to a harmless request is safe, good or bad.
    """
    labels = []
    halves = [_requests(seed, count // 2, split, "safety", harmful) for harmful in (False, True)]
    for drawn, draws in (one for pair in zip(*halves, strict=False) for one in pair):
        response, thought, safe = drawn.request.answer, drawn.thought, True
        if drawn.request.harmful:
            safe = draws.chance(0.5)
            if not safe:
                thought = drawn.harmful_thought
                response = drawn.request.answer if draws.chance(0.25) else draws.choice(drawn.bad)
        elif draws.chance(0.5):
            response = draws.choice(drawn.bad)
        labels.append(_row(drawn, completion=render_r1_completion(thought, response), label=safe))
    return labels


def _row(drawn: DrawnRequest, **fields: Any) -> dict[str, Any]:
    request = drawn.request
    return {"prompt": render_r1(request.question), **fields, "kind": request.kind, "language": request.language}


def _requests(seed: int, count: int, split: Split, stream: str, harmful: bool) -> list[tuple[DrawnRequest, Draws]]:
    """At most `count` requests that are harmful, or that are not, the kinds taking turns; each with its draws."""
    kinds = [kind for kind in KINDS if (kind == "harmful") == harmful]
    turns = itertools.zip_longest(*drawn_requests(seed, -(-count // len(kinds)), split, kinds))
    found = [drawn for turn in turns for drawn in turn if drawn is not None][:count]
    return list(zip(found, rows(seed, f"{stream} {split} {harmful}", 0, len(found)), strict=True))
