r"""What an answer says: `read` takes it apart into numbers, words, lists, intervals, matrices and relations."""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from r1jax.rewards.expression_parser import parse_expression
from r1jax.rewards.expressions import Expression, TooLarge, Undefined, Unreadable
from r1jax.rewards.latex import scan, split
from r1jax.rewards.units import FUNCTION_NAMES, without_unit

_MAX_ITEMS = 64
_MAX_NESTING = 5
_SIGNIFICANT = 6  # digits that a rounded decimal must show to stand for an exact value

_SEMICOLON, _COMMA, _UNION = frozenset(";"), frozenset(","), frozenset({r"\cup"})
_RELATIONS = frozenset({"=", "<", ">", r"\le", r"\ge", r"\ne", r"\in", r"\approx", r"\equiv"})
_ASCENDING, _DESCENDING = {"<": False, r"\le": True}, {">": False, r"\ge": True}  # whether the end is included
_PAIRS = {"(": (")", "]"), "[": (")", "]"), r"\{": (r"\}",), "{": ("}",)}
_MATRIX = re.compile(r"\\begin\{([pbB]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", re.S)
_GROUPED = re.compile(r"([-+]?[0-9]{1,3}(?:,[0-9]{3})+)(?![0-9,])([^,]*)")
NUMERAL = re.compile(r"[-+]?([0-9]*)(?:\.([0-9]*))?")
# What an answer is called: x, x_1, f(x), (p, q), S_{ABC}:S, \Delta p.
_NAMED = r"\\(?!(?:pi|frac|sqrt|binom)(?![A-Za-z]))[A-Za-z]+(?![A-Za-z])"
NAME = re.compile(rf"\(?(?:[A-Za-z]|{_NAMED})(?:[A-Za-z_{{}}():,0-9' ]|{_NAMED})*")
_WORD = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]{2,}|'s)*")
_BETWEEN_WORDS = re.compile(r"[\s\",.&()]+")
_PRODUCT_OF_TWO = re.compile(r"(?!no|on|up)[a-z]{2}")  # ab is a times b
_TIME = re.compile(r'[0-9]{1,2}(?::00|(?::[0-9]{2}){1,2}\s*"?\s*[ap]\.?\s*m\.?\s*"?|(?::[0-9]{2}){2})', re.I)
_RATIO = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*:\s*([0-9]+(?:\.[0-9]+)?)")


@dataclass(frozen=True)
class Value:
    """A number or an expression, with what was written after it."""

    expression: Expression
    percent: bool = False
    unit: str | None = None
    decimals: int | None = None
    """Digits after the point, of a plain numeral that shows enough digits to be a rounding of something exact."""


@dataclass(frozen=True)
class Infinite:
    sign: int


@dataclass(frozen=True)
class Words:
    text: str


@dataclass(frozen=True)
class Group:
    r"""Several parts: "list", "set", "union", "ratio", "matrix RxC", or the brackets of a tuple or interval: "(]"."""

    kind: str
    items: tuple
    name: str | None = None
    """The variable of an interval that was written as an inequality."""


@dataclass(frozen=True)
class Relation:
    sides: tuple[str, ...]
    signs: tuple[str, ...]


@dataclass(frozen=True)
class Senseless:
    """Nothing that can be an answer: something divided by zero or, if `large`, with thousands of digits."""

    large: bool


Answer = Value | Infinite | Words | Group | Relation | Senseless


@lru_cache(maxsize=8192)
def read(text: str) -> Answer | None:
    """What a cleaned answer says; None where that is not plain."""
    try:
        return _read(text, 0)
    except (ValueError, Unreadable, RecursionError):
        return None
    except (Undefined, TooLarge) as error:
        return Senseless(large=isinstance(error, TooLarge))


def _read(text: str, nesting: int) -> Answer:
    text = text.strip().removesuffix(".").strip()
    if not text or nesting > _MAX_NESTING:
        raise Unreadable
    for separators in (_SEMICOLON, _COMMA):
        grouped = _GROUPED.fullmatch(text)
        if grouped is not None:
            text = grouped[1].replace(",", "") + grouped[2]
        parts, _ = split(text, separators)
        if len(parts) > 1:
            return Group("list", _items(parts, nesting))
    return _relation(text, nesting) or _single(text, nesting)


def _items(parts: list[str], nesting: int) -> tuple[Answer, ...]:
    if len(parts) > _MAX_ITEMS:
        raise Unreadable
    items: list[Answer] = []
    for part in parts:
        item = _read(part, nesting + 1)
        signs = isinstance(item, Group) and item.kind == "list" and "\\pm" in part
        items += item.items if signs else [item]
    return tuple(items)


def _relation(text: str, nesting: int) -> Answer | None:
    sides, signs = split(text, _RELATIONS)
    if not signs:
        return None
    if r"\approx" in signs:  # what follows is a rounding of what was before, unless that is only a name
        at = signs.index(r"\approx")
        if at or not NAME.fullmatch(sides[0]):
            return _read(text.split(r"\approx")[0], nesting + 1)
        sides, signs = sides[:2], ["="]
    if not all(re.search(r"[A-Za-z0-9]", side) for side in sides):
        raise Unreadable
    if signs == [r"\in"]:
        return _read(sides[1], nesting + 1) if NAME.fullmatch(sides[0]) else Relation(tuple(sides), tuple(signs))
    return _interval(sides, signs, nesting) or Relation(tuple(sides), tuple(signs))


def _interval(sides: list[str], signs: list[str], nesting: int) -> Group | None:
    """a <= x < b as [a, b), x < b as (-oo, b): of one letter between numbers."""
    if all(sign in _DESCENDING for sign in signs):
        flipped = {">": "<", r"\ge": r"\le"}
        sides, signs = sides[::-1], [flipped[sign] for sign in signs[::-1]]
    if not all(sign in _ASCENDING for sign in signs) or len(sides) > 3:
        return None
    read = [_single(side, nesting + 1) for side in sides]
    names = [_letter(side) for side in read]
    if sum(name is not None for name in names) != 1:
        return None
    at = next(i for i, name in enumerate(names) if name is not None)
    if len(sides) == 3 and at != 1:
        return None
    low = (read[at - 1], _ASCENDING[signs[at - 1]]) if at else (Infinite(-1), False)
    high = (read[at + 1], _ASCENDING[signs[at]]) if at + 1 < len(sides) else (Infinite(1), False)
    for end, _ in (low, high):
        if not isinstance(end, Infinite) and not (isinstance(end, Value) and not end.expression.symbols):
            return None
    return Group("[("[not low[1]] + "])"[not high[1]], (low[0], high[0]), names[at])


def _letter(answer: Answer) -> str | None:
    tree = answer.expression.tree if isinstance(answer, Value) else ("",)
    return tree[1] if tree[0] == "symbol" else None


def _single(text: str, nesting: int) -> Answer:
    """An answer without commas or relations outside its brackets."""
    parts, _ = split(text, _UNION)
    if len(parts) > 1:
        return Group("union", _items(parts, nesting))
    if text in (r"\infty", r"+\infty", r"-\infty", "infinity", "-infinity"):
        return Infinite(-1 if text[0] == "-" else 1)
    if r"\pm" in text or r"\mp" in text:
        if text.count(r"\pm") + text.count(r"\mp") > 1:
            raise Unreadable
        both = [text.replace(r"\pm", a).replace(r"\mp", b) for a, b in ("+-", "-+")]
        return Group("list", tuple(_single(each, nesting + 1) for each in both))
    ratio = _RATIO.fullmatch(text)
    if ratio and not _TIME.fullmatch(text):
        return Group("ratio", tuple(Fraction(number) for number in ratio.groups()))
    matrix = _MATRIX.fullmatch(text)
    if matrix:
        return _matrix(matrix[2], nesting)
    bracketed = _bracketed(text, nesting)
    return bracketed if bracketed is not None else _value_or_words(text)


def _matrix(body: str, nesting: int) -> Group:
    rows = [row.split("&") for row in re.split(r"\\\\(?:\[[^\]]*\])?", body) if row.strip()]
    if not rows or len({len(row) for row in rows}) != 1:
        raise Unreadable
    return Group(f"matrix {len(rows)}x{len(rows[0])}", _items([cell for row in rows for cell in row], nesting))


def _bracketed(text: str, nesting: int) -> Answer | None:
    """A tuple, interval or set, or what stands in brackets alone; None where the first bracket does not enclose all."""
    tokens = list(scan(text))
    opening, closing = tokens[0][1], tokens[-1][1]
    if closing not in _PAIRS.get(opening, ()) or any(depth == 0 for _, _, depth in tokens[1:-1]):
        return None
    inner = text[len(opening) : -len(closing)].strip()
    if opening == "{":
        return _read(inner, nesting + 1)
    parts, _ = split(inner, _COMMA)
    if opening == r"\{":
        return Group("set", _items(parts, nesting))
    if len(parts) == 1:
        return _read(inner, nesting + 1)
    if opening + closing not in ("()", "[]") and len(parts) != 2:
        raise Unreadable
    return Group(opening + closing, tuple(_read(part, nesting + 1) for part in parts))


def _value_or_words(text: str) -> Answer:
    if _TIME.fullmatch(text):
        return Words(re.sub(r'[\s".]', "", text).lower())
    words = _words(text)
    if words is not None:
        return words
    body, unit = without_unit(text)
    percent = body.endswith("%")
    body = body.removesuffix("%").rstrip()
    numeral = NUMERAL.fullmatch(body)
    decimals = None
    if numeral and numeral[2] and len((numeral[1] + numeral[2]).lstrip("0")) >= _SIGNIFICANT:
        decimals = len(numeral[2])
    expression = parse_expression(body)
    expression.value()  # what has no value is not an answer
    return Value(expression, percent, unit, decimals)


def _words(text: str) -> Words | None:
    """Text without numbers or mathematics. Case, quotes and punctuation say nothing."""
    words = [word for word in _BETWEEN_WORDS.split(text.lower()) if word]
    if _PRODUCT_OF_TWO.fullmatch(text) or not all(map(_WORD.fullmatch, words)):
        return None
    if any(word in FUNCTION_NAMES for word in words) or not any(len(word) > 1 for word in words):
        return None
    return Words(" ".join(words))
