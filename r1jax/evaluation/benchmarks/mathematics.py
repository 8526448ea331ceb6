"""Mathematics: AIME 2024, MATH-500, AMC 2023, GSM8K, and MGSM's languages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from r1jax.evaluation.benchmarks.base import Benchmark, Problem, Protocol
from r1jax.evaluation.benchmarks.rows import Row, accuracy_by, read_problems
from r1jax.evaluation.metrics import by_meaning
from r1jax.rewards.answers import extract_answer
from r1jax.rewards.mathematics import math_accuracy

# Verbatim from DeepSeek-R1's README, which asks for it in the user's message, without a system prompt.
BOXED = r"Please reason step by step, and put your final answer within \boxed{}."

# The same request in MGSM's languages (the English problems are asked in English too): a French problem with English
# instructions would measure which of the two a model follows.
BOXED_IN = {
    "bn": r"অনুগ্রহ করে ধাপে ধাপে যুক্তি দিন এবং আপনার চূড়ান্ত উত্তর \boxed{}-এর মধ্যে লিখুন।",
    "de": r"Bitte denke Schritt für Schritt und gib deine endgültige Antwort in \boxed{} an.",
    "en": BOXED,
    "es": r"Por favor, razona paso a paso y pon tu respuesta final dentro de \boxed{}.",
    "fr": r"Veuillez raisonner étape par étape et mettre votre réponse finale dans \boxed{}.",
    "ja": r"段階的に推論し、最終的な答えを \boxed{} の中に書いてください。",
    "ru": r"Пожалуйста, рассуждай шаг за шагом и запиши окончательный ответ в \boxed{}.",
    "sw": r"Tafadhali fikiri hatua kwa hatua, na uweke jibu lako la mwisho ndani ya \boxed{}.",
    "te": r"దయచేసి దశలవారీగా ఆలోచించి, మీ తుది సమాధానాన్ని \boxed{} లో ఉంచండి.",
    "th": r"โปรดให้เหตุผลทีละขั้นตอน และใส่คำตอบสุดท้ายไว้ใน \boxed{}",
    "zh": r"请通过逐步推理来解答问题，并把最终答案放置于\boxed{}中。",
}


def load(
    source: str,
    seed: int,
    *,
    name: str,
    gold: Callable[[Row], str],
    split: str = "test",
    columns: Sequence[str] | None = None,
    request: str = BOXED,
    kept: Sequence[str] = (),
) -> list[Problem]:
    """Problems whose prompt is the question and then `request`; columns are the answer and the fields `kept`.

    `split` and `columns` as in `r1jax.data.sources.read_rows`. Nothing here is left to the seed.
    """
    del seed

    def build(row: Row) -> Problem:
        question = row.text("problem", "question")
        identity = row.find("unique_id", "id", "url")
        return Problem(
            id=f"{name}/{row.number if identity is None else identity}",
            prompt=f"{question}\n{request}",
            columns={"answer": gold(row), **{field: row.get(field) for field in kept}},
        )

    return read_problems(source, build, split, columns)


def _as_published(row: Row) -> str:
    return row.text("answer")


def _integer(row: Row) -> str:
    """AIME's "025" and AMC's 27.0 as "25" and "27": leading zeros and decimals are how the files are written."""
    answer = row.get("answer")
    try:
        if float(answer) == int(float(answer)):
            return str(int(float(answer)))
    except (TypeError, ValueError, OverflowError):
        pass
    raise row.wrong(f"answer={answer!r}", "give an integer")


def _gsm8k(row: Row) -> str:
    """What follows the last "####" of GSM8K's worked solution."""
    solution, found, answer = row.text("answer").rpartition("####")
    if not found:
        raise row.wrong(f"answer={solution or answer!r:.60}", "give the solution with its '#### answer' line")
    return answer.strip().replace(",", "")


def _mgsm(row: Row) -> str:
    return str(row.get("answer_number", "answer")).strip().replace(",", "")


def _summarise_math500(problems, completions, scores) -> dict[str, float]:
    return accuracy_by(problems, scores, "level") | accuracy_by(problems, scores, "subject")


def _benchmark(name: str, title: str, source: str, k: int, summarise=None, **loading) -> Benchmark:
    return Benchmark(
        name=name,
        title=title,
        source=source,
        load=partial(load, name=name, **loading),
        score=math_accuracy,
        protocol=Protocol(k=k),
        answer=extract_answer,
        equivalent=by_meaning,
        summarise=summarise,
    )


# k is the paper's for AIME and MATH-500 (D.1: "typically between 4 and 64, depending on the test set size"). AMC 2023
# has AIME's size; the sets that the paper does not report take the lower end.
MATHEMATICS = [
    _benchmark(
        "aime2024", "AIME 2024", "hf:HuggingFaceH4/aime_2024:train", 64, gold=_integer, split="train",
    ),
    _benchmark(
        "math500", "MATH-500", "hf:HuggingFaceH4/MATH-500:test", 16, _summarise_math500,
        gold=_as_published, kept=("level", "subject"),
    ),
    _benchmark("amc23", "AMC 2023", "hf:math-ai/amc23:test", 64, gold=_integer),
    _benchmark("gsm8k", "GSM8K", "hf:openai/gsm8k:main:test", 4, gold=_gsm8k),
    *(
        _benchmark(
            f"mgsm_{language}", f"MGSM ({language})", f"hf:juletxara/mgsm:{language}:test", 4,
            gold=_mgsm, split=language, columns=("question", "answer"), request=request,
        )
        for language, request in BOXED_IN.items()
    ),
]  # fmt: skip
