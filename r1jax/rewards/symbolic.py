"""Equality by computer algebra: what a worker process of `r1jax.rewards.equivalence` runs.

math-verify decides, with its own timeouts off: they are alarms of a main thread, and here the process is killed.
"""

import logging
from functools import lru_cache
from types import SimpleNamespace


@lru_cache(maxsize=1)
def _algebra() -> SimpleNamespace:
    """math-verify, imported where it is first used: it takes more than a second."""
    for name in ("math_verify", "latex2sympy2_extended"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    import math_verify
    import sympy
    from latex2sympy2_extended import NormalizationConfig

    # Units are off: among math-verify's are c, g, h, m, s and t, so that 2t would be 2.
    spelling = NormalizationConfig(basic_latex=True, malformed_operators=True, units=False, nits=False, boxed="none")
    return SimpleNamespace(
        parse=math_verify.parse,
        verify=math_verify.verify,
        kinds=(sympy.Basic, sympy.MatrixBase),
        imaginary=sympy.I,
        targets=[math_verify.LatexExtractionConfig(normalization_config=spelling)],
    )


def symbolic_equality(prompts: list[str], completions: list[str], answer: list[str]) -> list[float | None]:
    """1.0 where the completion, a bare answer, equals `answer`, the gold one; None where the gold one does not parse.

    The empty completion asks whether the gold answer parses: 0.0 if it does.
    """
    return [_equal(gold, text) for gold, text in zip(answer, completions, strict=True)]


def _equal(gold: str, text: str) -> float | None:
    parsed = _parse(gold)
    if not parsed:
        return None
    given = _parse(text) if text else []
    # The gold answer comes first: verify is not symmetric.
    return float(
        bool(given)
        and _algebra().verify(parsed, given, strict=True, allow_set_relation_comp=True, timeout_seconds=None)
    )


@lru_cache(maxsize=1024)
def _parse(text: str) -> list:
    """What the whole of `text` is as an expression. Of a text that fails to parse, math-verify would otherwise look for
    a number in it, or give the text itself: neither is an answer."""
    algebra = _algebra()
    found = algebra.parse(
        f"${text}$", extraction_config=algebra.targets, extraction_mode="first_match", parsing_timeout=None
    )
    return [_with_imaginary_unit(each) for each in found if isinstance(each, algebra.kinds)]


def _with_imaginary_unit(expression):
    """i is a letter to math-verify."""
    letters = [symbol for symbol in expression.free_symbols if symbol.name == "i"]
    return expression.xreplace({symbol: _algebra().imaginary for symbol in letters}) if letters else expression
