"""Cold-start data: long chains of thought in a readable format, collected in four ways, for a person to look over.

arXiv 2501.12948, section 2.3 and supplement B.3: few-shot prompting with long examples; prompting for an answer with
reflection and verification; readable outputs of R1-Zero; post-processing into thinking and a summary. Each way gives
candidates, rows as `r1jax.recipes.collect.candidates` makes them; `cold_start_data` makes a data set of any of them.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from r1jax.data.cards import Card, write_data_set
from r1jax.data.sources import iterate_rows
from r1jax.data.templates import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    PROGRAM_SUMMARY,
    SUMMARIES,
    THINK_CLOSE,
    THINK_OPEN,
    fill,
    render_r1_completion,
    render_r1_zero,
)
from r1jax.errors import DataError, check_field
from r1jax.files import file_hash, write_rows
from r1jax.recipes.collect import (
    OURS,
    Row,
    Rules,
    Verify,
    as_example,
    candidate_id,
    candidates,
    counted,
    judge,
    languages_of,
    removed,
    sift,
)  # fmt: skip
from r1jax.recipes.curation import Curation
from r1jax.rewards.format import format_reward, think_format_reward
from r1jax.sampling.completions import Sample

Render = Callable[[Row], str]

FEW_SHOT_TEMPLATE = "Question: {question}\n\nResponse: {response}"
FEW_SHOT_HEAD = (
    "Each question is answered at length: the reasoning stands inside <think> and </think>, step by step and with "
    "every result checked, and a short summary with the final answer follows.\n\n"
)
FEW_SHOT_STOP = "\n\nQuestion:"
"""Where a base model that goes on with a question of its own is cut."""

REFLECTION_TEMPLATE = (
    "{question}\n\nGive a detailed answer. Think first, inside <think> and </think>: go step by step, look back at "
    "what you have done, and verify the result in another way before you rely on it. Then summarise the solution in a "
    "few sentences, with the final answer in \\boxed{}."
)
REWRITE_TEMPLATE = (
    "Below are a question and a response to it. Rewrite the response so that it reads well: in {language} only, in "
    "short paragraphs, without code in the reasoning. Keep every step that leads to the answer, the reflections "
    "included, and change no result. Put the reasoning inside <think> and </think>; after that, summarise the solution "
    "in a few sentences that state the final answer as the response does.\n\n"
    "Question: {question}\n\nResponse: {completion}"
)
LANGUAGE_NAMES = {"en": "English", "zh": "Chinese"}

PROGRAM_KINDS = ("program", "code")


# ------------------------------------------------------------------------------------------------------ the four ways


def few_shot(
    problems: Sequence[Row],
    examples: Sequence[Row],
    sample: Sample,
    n: int,
    folder: Path,
    *,
    shots: int = 2,
    render: Callable[[Row, Sequence[Row]], str] | None = None,
    stop: str | None = FEW_SHOT_STOP,
    settings: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """(a) Responses of a model that is shown long ones: `n` candidates for each problem, of way "few_shot".

    Args:
      examples: rows with "question" and "response" (thinking and summary), and where known "language". A problem is
        shown `shots` of them, the first in its language, never itself.
      render: (problem, its examples) -> prompt; unless given, `render_few_shot`.
      stop: a response ends before this text; None: nowhere.
      folder: keeps the completions as they come, in few_shot.drawn.jsonl.

    Raises `DataError` for a problem that has too few examples.
    """
    render = render or render_few_shot
    check_field(shots >= 1, "shots", shots, "must be at least 1")

    def prompt(problem: Row) -> str:
        language = problem.get("language")
        same = [e for e in examples if language is None or e.get("language") in (None, language)]
        shown = [e for e in same if e["question"] != problem["question"]][:shots]
        if len(shown) < shots:
            raise DataError(
                f"question {problem['question'][:60]!r}: of {len(examples)} examples {len(shown)} are for its language "
                f"{language!r}; give shots={shots} or more"
            )
        return render(problem, shown)

    rows = _drawn("few_shot", problems, prompt, sample, n, folder, settings, console)
    return [_cut(row, stop) for row in rows]


def reflection(
    problems: Sequence[Row],
    sample: Sample,
    n: int,
    folder: Path,
    *,
    render: Render | None = None,
    settings: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """(b) Responses of a model that is asked to reflect and to verify: candidates of way "reflection".

    `render` makes a problem's prompt; unless given, `REFLECTION_TEMPLATE`. `folder` as for `few_shot`.
    """
    render = render or (lambda problem: fill(REFLECTION_TEMPLATE, question=problem["question"]))
    return _drawn("reflection", problems, render, sample, n, folder, settings, console)


def zero_outputs(
    problems: Sequence[Row],
    sample: Sample,
    n: int,
    folder: Path,
    *,
    render: Render | None = None,
    summarise: Callable[[Row, str], str] | None = None,
    settings: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """(c) R1-Zero's outputs with a summary in the place of the bare answer: candidates of way "zero".

    R1 drew them at temperature 0.6, which is up to `sample`. `render` makes a problem's prompt; unless given, R1-Zero's
    template. `summarise` and what becomes of outputs in another format: `readable`. `folder` as for `few_shot`.
    """
    render = render or (lambda problem: render_r1_zero(problem["question"]))
    rows = _drawn("zero", problems, render, sample, n, folder, settings, console)
    return [row | {"completion": readable(row, summarise) or row["completion"]} for row in rows]


def refined(rows: Iterable[Row], refine: Callable[[Row], Row | None]) -> list[dict[str, Any]]:
    """(d) Candidates after post-processing, of way "refined": `refine` gives a row with another "completion", or None.

    Which rows are worth it is for the caller to say; they stay as they are. A row that gives None has no refined one.
    """
    found = []
    for row in rows:
        better = refine(row)
        if better is not None:
            identity = candidate_id("refined", row["id"], 0)
            found.append({**row, **better, "id": identity, "way": "refined", "finish_reason": None, "tokens": None})
    return found


def refined_by_model(
    rows: Sequence[Row],
    sample: Sample,
    folder: Path,
    *,
    render: Render | None = None,
    settings: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """(d) by a model: it rewrites each candidate, once; `render` makes the prompt, unless given `REWRITE_TEMPLATE`.

    `folder` keeps the completions as they come, in refined.drawn.jsonl.
    """
    path = folder / "refined.drawn.jsonl"
    return candidates(
        rows, render or render_rewrite, sample, 1, path, way="refined", settings=settings, console=console
    )


def render_few_shot(problem: Row, examples: Sequence[Row]) -> str:
    """`FEW_SHOT_HEAD`, the examples, and the question, whose response is to follow."""
    shown = [fill(FEW_SHOT_TEMPLATE, question=e["question"], response=e["response"]) for e in examples]
    asked = fill(FEW_SHOT_TEMPLATE, question=problem["question"], response="").rstrip()
    return FEW_SHOT_HEAD + "\n\n".join([*shown, asked])


def render_rewrite(row: Row) -> str:
    language = LANGUAGE_NAMES.get(row.get("language"), "the language of the question")
    return fill(REWRITE_TEMPLATE, language=language, question=row["question"], completion=row["completion"])


def readable(row: Row, summarise: Callable[[Row, str], str] | None = None) -> str | None:
    """R1-Zero's `<think>T</think><answer>A</answer>` as `<think>T</think>` and a summary that states A.

    `summarise` makes the summary of a row and A. Unless given, it is `SUMMARIES` by the row's language, and
    `PROGRAM_SUMMARY` for the kinds of `PROGRAM_KINDS`; an A that brings its own box or fence stands as it is. None for
    a completion in any other format.
    """
    completion = row["completion"]
    if format_reward([""], [completion])[0] < 1:
        return None
    thought, _, rest = completion.partition(THINK_CLOSE)
    answer = rest.partition(ANSWER_OPEN)[2].partition(ANSWER_CLOSE)[0].strip()
    thought = thought.partition(THINK_OPEN)[2]
    return render_r1_completion(thought, (summarise or _summary)(row, answer))


def _summary(row: Row, answer: str) -> str:
    if "\\boxed" in answer or "```" in answer:
        return answer
    if row.get("kind") in PROGRAM_KINDS:
        return fill(PROGRAM_SUMMARY, answer=answer)
    return fill(SUMMARIES.get(row.get("language"), SUMMARIES["en"]), answer=answer)


def _drawn(
    way: str,
    problems: Sequence[Row],
    render: Render,
    sample: Sample,
    n: int,
    folder: Path,
    settings: Mapping[str, Any] | None,
    console: Console | None,
) -> list[dict[str, Any]]:
    path = folder / f"{way}.drawn.jsonl"
    return candidates(problems, render, sample, n, path, way=way, settings=settings, console=console)


def _cut(row: dict[str, Any], stop: str | None) -> dict[str, Any]:
    text, found, _ = row["completion"].partition(stop) if stop else (row["completion"], "", "")
    return row | {"completion": text.strip(), "finish_reason": "stop" if found else row["finish_reason"]}


# ------------------------------------------------------------------------------------------------------- the data set


def cold_start_data(
    rows: Sequence[Row],
    rules: Rules,
    path: Path,
    curation: Curation | None = None,
    *,
    verify: Verify | None = None,
    edits: Path | None = None,
    sources: Mapping[str, str] | None = None,
    workers: int = 1,
    timeout: float = 20.0,
    console: Console | None = None,
) -> Card:
    """Makes the data set `path` (jsonl) of the correct and readable ones among candidates, and its card.

    A row is {"id", "messages": [user, assistant], "domain", "language", "kind", "source"}, where the source is
    "cold start, " and the way. Beside it, `NAME.candidates.jsonl` shows a person every candidate with "removed", the
    reason why it is not kept, or null; and `NAME.judged.jsonl` keeps verdicts as they come, so that nothing is judged
    twice. `edits` is what the person makes of them: `merge_edits`.

    Raises `DataError` where nothing is kept, for an edit that cannot be made, and what `judge` raises.
    """
    curation = curation or Curation()
    (repeated, times), *_ = Counter(row["id"] for row in rows).most_common(1) or [("", 0)]
    if times > 1:
        raise DataError(f"id={repeated!r}: {times} candidates have it; collect each way once, over all problems")
    check_format = curation.format == "think"
    if edits is not None:  # a mistake in them must not wait for the judging
        merge_edits(rows, [None] * len(rows), edits, check_format)
    judged, shown = (path.with_name(f"{path.stem}.{name}.jsonl") for name in ("judged", "candidates"))
    verdicts = judge(rows, rules, judged, verify=verify, workers=workers, timeout=timeout, console=console)
    reasons = sift(rows, verdicts, curation)
    write_rows(shown, ({**row, "removed": reason} for row, reason in zip(rows, reasons, strict=True)))
    counts, sources = counted(rows, reasons, by="way"), dict(sources or {})
    kept = [row for row, reason in zip(rows, reasons, strict=True) if reason is None]
    if edits is not None:
        kept, edited = merge_edits(rows, reasons, edits, check_format)
        counts, sources = counts | {"edits": edited}, sources | {edits.name: file_hash(edits)}
    return write_data_set(
        path,
        [as_example(row, f"cold start, {row['way']}") for row in kept],
        title="Cold-start examples",
        description=(
            f"Long chains of thought with a summary: the correct and readable ones of {len(rows):,} candidates"
            f"{', with the edits of a person' if edits else ''}."
        ),
        sources=sources,
        removed=removed(reasons),
        counts=counts,
        settings={"curation": dataclasses.asdict(curation)},
        languages=languages_of(kept),
    )


def merge_edits(
    rows: Sequence[Row], reasons: Sequence[str | None], path: Path, check_format: bool = True
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Candidates after a person's edits, in their order, and counts of the edits.

    A line of the jsonl file `path` is one of:
      {"id": ID, "edit": {FIELD: VALUE, ...}}: the candidate's fields are replaced; it is kept, also where a filter had
        removed it, and no filter sees it again.
      {"id": ID, "drop": true}: it is left out.
      {"new": {"question": ..., "completion": ..., ...}}: an example of the person's own, added at the end.

    Args:
      reasons: why each of `rows` is not kept; None: it is.
      check_format: edited and new completions must be thinking and summary, as `think_format_reward` wants them.

    Raises `DataError` naming the file and the line of an edit of another form, of an id that is no candidate's or that
    has two edits, of a field that the candidate has not, and of a completion in another format.
    """
    by_id = {row["id"]: dict(row) for row in rows}
    kept = {row["id"]: reason is None for row, reason in zip(rows, reasons, strict=True)}
    lines: dict[str, str] = {}
    new: list[dict[str, Any]] = []
    counts = dict.fromkeys(("edited", "brought back", "dropped", "new"), 0)
    for line in iterate_rows(path):
        form = set(line)
        if form == {"new"} and isinstance(line["new"], Mapping):
            new.append(_new_row(line["new"], len(new), line.where, check_format))
            continue
        if form != {"id", "edit"} and (form != {"id", "drop"} or line["drop"] is not True):
            raise DataError(
                f'{line.where}: its fields are {", ".join(line) or "none"}; give "id" with "edit" (an object) or with '
                '"drop": true, or "new" (an object)'
            )
        identity = line["id"]
        if identity not in by_id:
            raise DataError(f"{line.where}: id={identity!r} is no candidate's; take the ids from the candidates' file")
        if identity in lines:
            raise DataError(f"{line.where}: id={identity!r} was edited at {lines[identity]}; say it once")
        lines[identity] = line.where
        if "drop" in line:
            kept[identity] = False
            counts["dropped"] += 1
            continue
        by_id[identity] |= _checked(line["edit"], by_id[identity], line.where, check_format)
        counts["edited"] += 1
        counts["brought back"] += not kept[identity]
        kept[identity] = True
    counts["new"] = len(new)
    return [row for identity, row in by_id.items() if kept[identity]] + new, counts


_FIXED = tuple(name for name in OURS if name != "completion")


def _checked(edit: Any, row: Row, where: str, check_format: bool) -> Mapping[str, Any]:
    """An edit's fields, of which a row has all."""
    if not isinstance(edit, Mapping) or not edit:
        raise DataError(f"{where}: edit={edit!r}: give an object of fields with their new values")
    for name in edit:
        if name not in row or name in _FIXED:
            can = ", ".join(field for field in row if field not in _FIXED)
            raise DataError(f"{where}: field {name!r} cannot be edited; this candidate has {can}")
    _check_texts(edit, where, check_format)
    return edit


def _new_row(fields: Mapping[str, Any], number: int, where: str, check_format: bool) -> dict[str, Any]:
    missing = [name for name in ("question", "completion") if name not in fields]
    if missing:
        raise DataError(f"{where}: new has no {missing[0]!r}; give question and completion")
    _check_texts(fields, where, check_format)
    return {**fields, "id": candidate_id("person", fields["question"], number), "way": "person"}


def _check_texts(fields: Mapping[str, Any], where: str, check_format: bool) -> None:
    for name in ("question", "completion"):
        if name in fields and not (isinstance(fields[name], str) and fields[name].strip()):
            raise DataError(f"{where}: {name}={str(fields[name])[:40]!r}; give text")
    if check_format and "completion" in fields and think_format_reward([""], [fields["completion"]])[0] < 1:
        raise DataError(
            f"{where}: completion={fields['completion'][:40]!r} is not <think>thinking</think> and a summary; mend it"
        )
