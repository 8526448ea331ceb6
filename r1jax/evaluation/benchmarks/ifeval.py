"""IFEval: prompts whose instructions a program can verify (arXiv 2311.07911)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from r1jax.evaluation.benchmarks.base import Benchmark, Problem, Protocol
from r1jax.evaluation.benchmarks.ifeval_instructions import INSTRUCTIONS
from r1jax.evaluation.benchmarks.rows import Row, final_response, read_problems


def followed(
    response: str, instruction_id_list: Sequence[str], kwargs: Sequence[Mapping[str, Any]], loose: bool = False
) -> list[bool]:
    """Whether a response follows each of its prompt's instructions, by the paper's strict or loose criterion.

    Loose: it may do so once markdown's asterisks, its first line, its last line, or several of these are gone
    (equation 2), so that "Sure, here it is:" costs nothing. An empty response follows nothing.
    """
    responses = [response]
    if loose:
        lines = response.split("\n")
        for part in (lines[1:], lines[:-1], lines[1:-1]):
            responses.append("\n".join(part).strip())
        responses += [variant.replace("*", "") for variant in responses]
    responses = [variant for variant in responses if variant.strip()]
    return [
        any(bool(INSTRUCTIONS[name](variant, **arguments)) for variant in responses)
        for name, arguments in zip(instruction_id_list, kwargs, strict=True)
    ]


def prompt_strict(
    prompts: list[str],
    completions: list[str],
    instruction_id_list: list[Sequence[str]],
    kwargs: list[Sequence[Mapping[str, Any]]],
    **columns,
) -> list[float | None]:
    """Prompt-level strict accuracy, which the paper of R1 reports: 1.0 where every instruction is followed, else 0.0.

    Only the response after the thinking is held to them.
    """
    return [
        float(all(followed(final_response(completion), names, arguments)))
        for completion, names, arguments in zip(completions, instruction_id_list, kwargs, strict=True)
    ]


def load(source: str, seed: int) -> list[Problem]:
    """IFEval's prompts. Columns: `instruction_id_list`, and `kwargs` with the arguments of each.

    Raises `DataError` for an instruction that is not one of the 25, and for arguments that it does not take.
    """
    del seed

    def build(row: Row) -> Problem:
        names, given = list(row.get("instruction_id_list")), row.get("kwargs")
        if len(names) != len(given):
            raise row.wrong(f"{len(given)} kwargs for {len(names)} instructions", "give one for each")
        # The hub's copies fill the arguments that an instruction does not have with null.
        arguments = [{key: value for key, value in kw.items() if value is not None} for kw in given]
        for name, kw in zip(names, arguments, strict=True):
            if name not in INSTRUCTIONS:
                raise row.wrong(f"instruction id {name!r}", f"use one of {', '.join(INSTRUCTIONS)}")
            try:
                inspect.signature(INSTRUCTIONS[name]).bind("", **kw)
                INSTRUCTIONS[name]("A response.", **kw)
            except (TypeError, ValueError) as error:
                raise row.wrong(f"{name} with {kw}", str(error)) from None
        return Problem(
            id=f"ifeval/{row.get('key')}",
            prompt=row.text("prompt"),
            columns={"instruction_id_list": names, "kwargs": arguments},
        )

    return read_problems(source, build)


def _summarise(
    problems: Sequence[Problem], completions: Sequence[Sequence[str]], scores: Sequence[Sequence[float | None]]
) -> dict[str, float]:
    """The paper's four accuracies: by prompt and by instruction, strict and loose; means over samples."""
    metrics = {}
    for loose in (False, True):
        verdicts = [
            followed(final_response(text), problem.columns["instruction_id_list"], problem.columns["kwargs"], loose)
            for problem, texts in zip(problems, completions, strict=True)
            for text in texts
        ]
        name = "loose" if loose else "strict"
        metrics[f"prompt_{name}"] = float(np.mean([all(verdict) for verdict in verdicts]))
        metrics[f"instruction_{name}"] = float(np.mean([one for verdict in verdicts for one in verdict]))
    return metrics


IFEVAL = Benchmark(
    name="ifeval",
    title="IFEval",
    source="hf:google/IFEval",
    load=load,
    score=prompt_strict,
    protocol=Protocol(k=4),
    summarise=_summarise,
)
