"""Units and other words after a number."""

import re

from r1jax.rewards.expressions import Unreadable

_QUOTED_UNIT = re.compile(r'(.+?)\s*((?:"[^"]*"\s*)+)(?:\^\{?[23]\}?)?')
_RAW_UNIT = re.compile(
    r"(.*[0-9}%)])(\s*)([A-Za-z]+\.?(?:\s+[A-Za-z]+\.?){0,3}|[A-Za-z]+/[A-Za-z]+)(?:\s*\^\{?[23]\}?)?"
)

# Units that differ make answers differ: 5 cm is not 5 m. Other words after a number ("18 students") say nothing.
_UNITS = {
    alias: names.split("|")[0]
    for names in (
        "mm|millimeter|millimeters|millimetre|millimetres cm|cms|centimeter|centimeters|centimetre|centimetres "
        "m|meter|meters|metre|metres km|kms|kilometer|kilometers|kilometre|kilometres in|inch|inches ft|foot|feet "
        "yd|yard|yards mi|mile|miles mg|milligram|milligrams g|gram|grams kg|kgs|kilogram|kilograms "
        "lb|lbs|pound|pounds oz|ounce|ounces s|sec|secs|second|seconds min|mins|minute|minutes h|hr|hrs|hour|hours "
        "day|days week|weeks month|months year|years|yr|yrs dollar|dollars|usd cent|cents euro|euros "
        "degree|degrees|deg radian|radians|rad l|liter|liters|litre|litres ml|milliliter|milliliters "
        "mph|miles_per_hour km/h|kmh|kph|kilometers_per_hour m/s"
    ).split()
    for alias in names.replace("_", " ").split("|")
}
_NOT_UNITS = frozenset(  # words after a number that change what it says
    "or and not no none nor except unless if than to through until more less least most any all either neither maybe "
    "perhaps plus minus times hundred thousand million billion trillion dozen half over by mod modulo base about "
    "almost otherwise but is are isn was wrong false impossible unknown anything everything other others".split()
)
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
FUNCTION_NAMES = frozenset("sin cos tan cot sec csc log ln exp sqrt frac pi theta lim max min gcd lcm mod det".split())


def without_unit(text: str) -> tuple[str, str | None]:
    """(`text` before its unit, the unit's name): of text set as such, or of words that no formula holds."""
    quoted = _QUOTED_UNIT.fullmatch(text)
    if quoted:
        words = quoted[2].replace('"', " ").lower().replace(".", " ").split()
        body = quoted[1]
    else:
        raw = _RAW_UNIT.fullmatch(text)
        if raw is None:
            return text, None
        body, gap, written = raw[1], raw[2], raw[3].replace(".", " ").split()
        words = [word.lower() for word in written]
        letters = bool(gap) and not re.search("[A-Za-z]", body)  # 5 m is metres; 5m and x + 5 m are products
        shortest = 3 if gap else 4
        for word, as_written in zip(words, written, strict=True):
            known = word in _UNITS and (len(word) > 1 or letters)
            ordinary = as_written.islower() and len(word) >= shortest and word not in FUNCTION_NAMES
            if not (known or ordinary):
                return text, None
    while words and words[0] in _SCALES and not re.search(r"[A-Za-z]", body):
        body, words = rf"{body}\cdot 10^{_SCALES[words[0]]}", words[1:]
    if any(word in _NOT_UNITS for word in words):
        raise Unreadable
    named = [_UNITS[word] for word in words if word in _UNITS]
    return body, _UNITS.get(" ".join(words)) or (named[0] if len(named) == 1 and "per" not in words else None)
