"""Multiple choice: GPQA Diamond and MMLU, with simple-evals' prompt and the letter found where an answer is stated."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from r1jax.evaluation.benchmarks.base import Benchmark, Problem, Protocol
from r1jax.evaluation.benchmarks.rows import Row, accuracy_by, final_response, read_problems

LETTERS = "ABCD"

# Verbatim from OpenAI's simple-evals, whose prompts the paper uses for both (D.1).
PROMPT = (
    "Answer the following multiple choice question. The last line of your response should be of the following format: "
    "'Answer: $LETTER' (without quotes) where LETTER is one of ABCD. Think step by step before answering.\n\n"
    "{question}\n\nA) {options[0]}\nB) {options[1]}\nC) {options[2]}\nD) {options[3]}"
)

# Hendrycks et al., "Measuring Massive Multitask Language Understanding", arXiv 2009.03300, table 2.
MMLU_CATEGORIES = {
    "stem": (
        "abstract_algebra astronomy college_biology college_chemistry college_computer_science college_mathematics "
        "college_physics computer_security conceptual_physics electrical_engineering elementary_mathematics "
        "high_school_biology high_school_chemistry high_school_computer_science high_school_mathematics "
        "high_school_physics high_school_statistics machine_learning"
    ).split(),
    "humanities": (
        "formal_logic high_school_european_history high_school_us_history high_school_world_history international_law "
        "jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory professional_law "
        "world_religions"
    ).split(),
    "social_sciences": (
        "econometrics high_school_geography high_school_government_and_politics high_school_macroeconomics "
        "high_school_microeconomics high_school_psychology human_sexuality professional_psychology public_relations "
        "security_studies sociology us_foreign_policy"
    ).split(),
    "other": (
        "anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging management marketing "
        "medical_genetics miscellaneous nutrition professional_accounting professional_medicine virology"
    ).split(),
}
_CATEGORY = {subject: category for category, subjects in MMLU_CATEGORIES.items() for subject in subjects}

# "Answer: B", "the answer is (B)", "\boxed{B}", once markdown and TeX around the letter are gone.
_STATEMENT = re.compile(r"\banswer[ \t]*(?:\bis\b[ \t]*[:：]?|[:：])\s*|\\boxed[ \t]*(?={)", re.I)
_DECORATION = re.compile(r"\\(?:text|textbf|mathbf|mathrm|textrm)\b|[*_$`]|\\[()\[\]]")
_LETTER = re.compile(r"[({\[ \t]*([A-J]\b|[a-j](?=[)}\].]*\s*(?:\n|$)))(?!['’])")
# What may follow a letter is the end of a line, a mark, or a reason. "A large one" is an option's text, not letter A.
_AFTER = re.compile(r"[ \t]*(?:$|[\n).,:;}\]|—–-]|because\b|since\b|as\b|is\b|\()", re.I)
_SECOND = re.compile(
    r"[)}\].]*[ \t]*(?:[,/&|;]|\bor\b|\band\b)?[ \t]*(?:\bor\b|\band\b)?[ \t({\[]*([A-J])(?=$|[\s).,:;}\]/|&])"
)


def choice(completion: str) -> str | None:
    """The letter (A to J) that a completion answers with, None where there is none or more than one.

    Only the response after the thinking counts, and in it only a letter that is stated as the answer: after "Answer:"
    or "answer is", in `\\boxed{}`, or as all of the response. The last statement counts; where it names several
    letters ("A or B"), or its paragraph states different ones, nothing does.
    """
    text = _DECORATION.sub("", final_response(completion))
    if alone := re.fullmatch(r"[({\[\s]*([A-J])[)}\].\s]*", text):
        return alone[1]
    stated = [(match.start(), _letters(text, match.end())) for match in _STATEMENT.finditer(text)]
    stated = [(at, letters) for at, letters in stated if letters]
    if not stated:
        return None
    paragraph = text.rfind("\n\n", 0, stated[-1][0])
    letters = set().union(*(letters for at, letters in stated if at > paragraph))
    return letters.pop() if len(letters) == 1 else None


def _letters(text: str, at: int) -> set[str]:
    """The letters that a statement ending at `at` names: none where something else follows."""
    first = _LETTER.match(text, at)
    if not first:
        return set()
    letters, end = {first[1].upper()}, first.end()
    while second := _SECOND.match(text, end):
        letters.add(second[1])
        end = second.end()
    return letters if len(letters) > 1 or _AFTER.match(text, end) else set()


def choice_accuracy(prompts: list[str], completions: list[str], answer: list[str], **columns) -> list[float | None]:
    """1.0 where a completion answers with the letter `answer`, else 0.0; None where `answer` is no letter A to J."""
    return [
        float(choice(completion) == gold) if re.fullmatch("[A-J]", str(gold)) else None
        for completion, gold in zip(completions, answer, strict=True)
    ]


def load_gpqa(source: str, seed: int) -> list[Problem]:
    """GPQA's problems (arXiv 2311.12022), each with its options in an order of its own.

    The order of a problem's options depends on the seed and its question alone, so that neither the choice of problems
    nor their order changes it. Columns: `answer` (the letter), `options` in that order, and `domain`.
    """

    def build(row: Row) -> Problem:
        question, right = row.text("Question"), row.text("Correct Answer")
        options = [right, *(row.text(f"Incorrect Answer {n}") for n in (1, 2, 3))]
        order = _order(seed, question)
        options = [options[i] for i in order]
        return Problem(
            id=f"gpqa_diamond/{row.find('Record ID') or row.number}",
            prompt=PROMPT.format(question=question, options=options),
            columns={
                "answer": LETTERS[order.index(0)],
                "options": options,
                "domain": row.find("High-level domain") or "all",
            },
        )

    return read_problems(source, build)


def _order(seed: int, question: str) -> list[int]:
    """A permutation of the four options, the same on every machine and under every version of Python."""

    def draw(option: int) -> bytes:
        return hashlib.blake2b(f"{seed}\n{option}\n{question}".encode(), digest_size=16).digest()

    return sorted(range(len(LETTERS)), key=draw)


def load_mmlu(source: str, seed: int) -> list[Problem]:
    """MMLU's test problems: Hendrycks' csv files (a folder or a zip), simple-evals' csv, or the hub's rows.

    Columns: `answer` (the letter), `subject` and `category`. Nothing here is left to the seed.
    """
    del seed
    counts: dict[str, int] = {}

    def build(row: Row) -> Problem:
        file = row.find("_file") or ""
        subject = row.find("subject") or file.rsplit("/", 1)[-1].removesuffix(".csv").removesuffix("_test")
        if subject not in _CATEGORY:
            raise row.wrong(f"subject={subject!r}", "give one of MMLU's 57, in a column or as SUBJECT_test.csv")
        options = row.find("choices") or [row.get(letter) for letter in LETTERS]
        answer = row.get("answer")
        answer = LETTERS[answer] if isinstance(answer, int) and 0 <= answer < 4 else str(answer).strip()
        if answer not in LETTERS or len(answer) != 1 or len(options) != 4:
            raise row.wrong(f"answer={answer!r} of {len(options)} options", "give four options and a letter A to D")
        counts[subject] = counts.get(subject, 0) + 1
        return Problem(
            id=f"mmlu/{subject}/{counts[subject]}",
            prompt=PROMPT.format(question=row.text("question"), options=options),
            columns={"answer": answer, "subject": subject, "category": _CATEGORY[subject]},
        )

    return read_problems(source, build, columns=("question", *LETTERS, "answer"))


def _summarise_mmlu(
    problems: Sequence[Problem], completions: Sequence[Sequence[str]], scores: Sequence[Sequence[float | None]]
) -> dict[str, float]:
    """pass@1 by subject and by category, and the mean over subjects (the headline is the mean over problems)."""
    by_subject = accuracy_by(problems, scores, "subject")
    macro = {"macro/pass@1": float(np.mean(list(by_subject.values())))} if by_subject else {}
    return accuracy_by(problems, scores, "category") | macro | by_subject


def _summarise_gpqa(problems, completions, scores) -> dict[str, float]:
    return accuracy_by(problems, scores, "domain")


MULTIPLE_CHOICE = [
    Benchmark(
        name="gpqa_diamond",
        title="GPQA Diamond",
        source="hf:Idavidrein/gpqa:gpqa_diamond",
        load=load_gpqa,
        score=choice_accuracy,
        protocol=Protocol(k=64),
        answer=choice,
        summarise=_summarise_gpqa,
    ),
    Benchmark(
        name="mmlu",
        title="MMLU",
        source="hf:cais/mmlu:all:test",
        load=load_mmlu,
        score=choice_accuracy,
        protocol=Protocol(k=1),  # 14,042 problems; the paper gives no k for it
        answer=choice,
        summarise=_summarise_mmlu,
    ),
]
