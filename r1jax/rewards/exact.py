"""Compares answers by what they say, exactly, without a computer algebra system."""

import re
from collections.abc import Iterable
from fractions import Fraction

from r1jax.rewards.expressions import TooLarge, Undefined, Unreadable
from r1jax.rewards.latex import squash
from r1jax.rewards.meaning import NAME, NUMERAL, Answer, Group, Relation, Senseless, Value, read

_FLOAT_DIGITS = 13  # decimals beyond which a double decides nothing
_DECIMAL_COMMA = re.compile(r"[-+]?(?:0,[0-9]+|[0-9]+,(?:[0-9]{1,2}|[0-9]{4,}))")
_CHOICE = re.compile(r"\(?([A-J])[).:]\s*(?=\S).*", re.S)
_LETTER = re.compile(r"\(?([A-J])[).]?")


def same(gold: str, answer: str) -> bool | None:
    """Whether two cleaned answers say the same; None where only algebra can tell, or `gold` is not plain."""
    if squash(gold) == squash(answer):
        return True
    if _DECIMAL_COMMA.fullmatch(gold) or _DECIMAL_COMMA.fullmatch(answer):
        points = gold.replace(",", "."), answer.replace(",", ".")
        if "." in gold + answer and "," in gold + answer and all(map(NUMERAL.fullmatch, points)):
            return Fraction(points[0]) == Fraction(points[1])
    if _letters(gold) and _letters(gold) == _letters(answer):
        return True
    choices = [
        _CHOICE.fullmatch(gold) or _LETTER.fullmatch(gold),
        _CHOICE.fullmatch(answer) or _LETTER.fullmatch(answer),
    ]
    if all(choices) and (_LETTER.fullmatch(gold) or _LETTER.fullmatch(answer)):
        return choices[0][1] == choices[1][1]
    a, b = read(gold), read(answer)
    return None if a is None or b is None else _same(a, b)


def _letters(text: str) -> str | None:
    """The letters of a text that is made of them: Even and "Even" are one word."""
    letters = re.sub(r'[\s".()]', "", text).lower()
    return letters if len(letters) > 1 and letters.isalpha() else None


def _same(gold: Answer, answer: Answer) -> bool | None:
    if isinstance(gold, Senseless) or isinstance(answer, Senseless):
        return False
    if isinstance(gold, Relation) or isinstance(answer, Relation):
        return _same_relation(gold, answer)
    if isinstance(gold, Group) or isinstance(answer, Group):
        return _same_group(gold, answer)
    if isinstance(gold, Value) and isinstance(answer, Value):
        return _same_value(gold, answer)
    return gold == answer


def _same_relation(gold: Answer, answer: Answer) -> bool | None:
    """x = 5 says 5, where the other is no relation; an equation that names nothing, as x + y = 5, says only itself."""
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        if gold.signs == answer.signs == ("=",) and squash(gold.sides[0]) == squash(answer.sides[0]):
            return _same_texts(gold.sides[1], answer.sides[1])
        return None
    if isinstance(answer, Relation):
        if set(answer.signs) != {"="}:
            return None if isinstance(gold, Group) else False
        value, subject = read(answer.sides[-1]), read(answer.sides[0])
        if isinstance(subject, Value) and subject.expression.symbols and not NAME.fullmatch(answer.sides[0]):
            if squash(answer.sides[-1]) == "0":  # x - 5 = 0 is an equation, and does not say 0
                return False
        return None if value is None else _same(gold, value)
    if set(gold.signs) != {"="}:
        return None if isinstance(answer, Group) else False
    if len(gold.sides) == 2 and not NAME.fullmatch(gold.sides[0]):
        return None if isinstance(answer, Group) else False
    value = read(gold.sides[-1])
    return None if value is None else _same(value, answer)


def _same_texts(gold: str, answer: str) -> bool | None:
    a, b = read(gold), read(answer)
    return None if a is None or b is None else _same(a, b)


def _same_group(gold: Answer, answer: Answer) -> bool | None:
    a, b = _several(gold), _several(answer)
    if a.kind == "ratio" or b.kind == "ratio":
        return _same_ratio(gold, answer)
    if a.name and b.name and a.name != b.name:
        return False
    if "union" in (a.kind, b.kind):
        return _same_union(a, b) if _intervals(a) and _intervals(b) else False
    loose = {"list", "set"}
    if a.kind in loose and b.kind in loose:
        return _matched(a.items, b.items)
    if a.kind == b.kind or {a.kind, b.kind} == {"list", "()"}:
        return len(a.items) == len(b.items) and _all(map(_same, a.items, b.items))
    if "matrix" in a.kind + b.kind:  # a column vector against a tuple
        return None if len(a.items) == len(b.items) else False
    return False


def _several(answer: Answer) -> Group:
    return answer if isinstance(answer, Group) else Group("list", (answer,))


def _same_ratio(gold: Answer, answer: Answer) -> bool | None:
    """1:2 is 2:4, and says 1/2."""
    parts = []
    for side in (gold, answer):
        if isinstance(side, Group) and side.kind == "ratio":
            parts.append(side.items)
        elif isinstance(side, Value) and not side.expression.symbols:
            value, _ = side.expression.value()
            if not isinstance(value, Fraction):
                return False
            parts.append((value, Fraction(1)))
        else:
            return False
    (a, b), (c, d) = parts
    return a * d == b * c


def _intervals(group: Group) -> bool:
    ends = ("()", "[]", "(]", "[)", "set")
    return group.kind in ends or all(isinstance(i, Group) and i.kind in ends for i in group.items)


def _same_union(a: Group, b: Group) -> bool | None:
    """Unions part by part; that none matches proves nothing, for unions can be cut otherwise."""
    parts = [group.items if group.kind in ("union", "list") else (group,) for group in (a, b)]
    return True if len(parts[0]) == len(parts[1]) and _matched(*parts) else None


def _matched(gold: tuple[Answer, ...], answer: tuple[Answer, ...]) -> bool | None:
    """Whether two collections hold the same things in any order, each as often."""
    if len(gold) != len(answer):
        return False
    left, unsure = list(answer), []
    for item in gold:
        verdicts = [_same(item, other) for other in left]
        if True in verdicts:
            del left[verdicts.index(True)]
        elif None in verdicts:
            unsure.append(item)
        else:
            return False
    return None if unsure else True


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    verdicts = list(verdicts)
    return False if False in verdicts else None if None in verdicts else True


def _same_value(gold: Value, answer: Value) -> bool | None:
    if gold.unit and answer.unit and gold.unit != answer.unit:
        return False
    if gold.expression == answer.expression and gold.percent == answer.percent:
        return True
    try:
        verdict = _close(gold, answer, Fraction(1))
        if gold.percent != answer.percent and verdict is not True:
            # 10% for 10 and for 0.1: a sign that the question made superfluous, or one that it did not
            other = _close(gold, answer, Fraction(1, 100) if gold.percent else Fraction(100))
            verdict = other if other is True or verdict is False else verdict
        return verdict
    except (TooLarge, Undefined, Unreadable):
        return None
    except OverflowError:  # something exact that no float holds, against something that is one
        return False


def _symbols(*values: Value) -> bool:
    return any(value.expression.symbols for value in values)


def _is_rounding(side: Value, numeral: Fraction, exact: Fraction) -> bool:
    """Whether a decimal, which shows enough digits, is `exact` rounded or cut off after them."""
    if side.decimals is None or numeral * exact < 0:
        return False
    places = (abs(numeral) - abs(exact)) * 10**side.decimals  # units of the last place
    return -1 < places <= Fraction(1, 2)


def _close(gold: Value, answer: Value, scale: Fraction) -> bool | None:
    x, _ = gold.expression.value()
    y, _ = answer.expression.value()
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x * scale == y or _is_rounding(gold, x * scale, y) or _is_rounding(answer, y, x * scale)
    for side, numeral, exact in ((gold, x, y), (answer, y, x)):
        if side.decimals is not None and side.decimals < _FLOAT_DIGITS and scale == 1 and not _symbols(gold, answer):
            exact = complex(exact)
            return abs(exact.imag) < 10.0**-_FLOAT_DIGITS and _is_rounding(side, numeral, Fraction(exact.real))
    for salt in (0, 1):
        (x, most), (y, other) = gold.expression.value(salt), answer.expression.value(salt)
        x, y = complex(x) * float(scale), complex(y)
        if abs(x - y) > 1e-9 * max(abs(x), abs(y)) + 1e-12 * max(most, other):
            return False
    return None
