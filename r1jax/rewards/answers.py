r"""The final answer in a completion: in `\boxed{}`, in `<answer>` tags, or stated in words.

Policy, against being paid for guessing several times. The final part of a completion is what follows `</think>`, and
in it what follows the first "Final Answer:" heading or `<answer>` tag. Everything boxed there, or everything in answer
tags, is the answer: two boxes are an answer of two parts, right if the gold one has these two, or if each alone is
right. So solutions that give two roots in two boxes, repeat a box, or box results on the way and then have a heading
are credited (reference solutions of MATH and models' solutions do all of these), and boxes that disagree are not.

Time is proportional to the text: what can go back over it sees only its last lines.
"""

import math
import re
from decimal import Decimal

from r1jax.rewards.latex import TEXT_GROUP, clean, squash

_LONGEST = 500_000  # characters of a final part that are read, its last ones
_TAIL = 2000  # characters at the end of a text without box or tags in which its answer is looked for
_UNBRACED = 200  # characters that \boxed without a brace may take, or that may stand between boxes of one gold answer
_WORDS = 3  # that are an answer; more are a sentence
_MOST = 64  # different answers, the last ones, that are looked at
_BARE = 300  # characters of a text that may be an answer and nothing else

_BRACES = re.compile(r"\\{1,2}(?P<box>boxed|fbox)(?![A-Za-z])[ \t\n]{0,8}(?P<open>\{)?|\\.|[{}]", re.S)
_UNBRACED_END = re.compile(r"\$|\\\)|\\\]|\n|[.,;](?:\s|$)")
_HEADING = re.compile(r"final answer\W{0,4}[:\n]", re.I)
_STATED = re.compile(
    r"(?<![A-Za-z])(?:answer|result|solution|choice|option)s?(?:\s+(?:to|for|of)\s[^.:\n]{0,60}?)?"
    r"\s*(?:(?<![A-Za-z])(?:is|are)(?![A-Za-z])|:|=)+[\s:]*",
    re.I,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|。|\n")
_DIGITS = r"(?:(?:[0-9]{1,3}(?:[, ][0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
_SIGN = r"(?:(?<![0-9A-Za-z_.)\]}])[-+])?"  # after a digit or a bracket it subtracts
_NUMBER = (
    rf"(?<![0-9A-Za-z_.{{|\\^]){_SIGN}[$€£]?{_DIGITS}(?:/[0-9]+|\s?(?:%|percent|pct)(?![A-Za-z]))?(?![0-9}}]|\.[0-9])"
)
_NEXT = rf"\s{{0,3}}(?:[,;?|、]\s{{0,3}})?(?:(?:or|and)\s{{1,3}})?{_NUMBER}"
_NUMBERS = re.compile(rf"{_NUMBER}(?:{_NEXT})*", re.I)
_ONE_NUMBER = re.compile(_NUMBER, re.I)
_BETWEEN = re.compile(r"[^A-Za-z]*(?:(?:and|or|quad|qquad|text|mbox|[A-Za-z](?:_\{?\w+\}?)?\s*=)[^A-Za-z]*)*")
_JOINED = re.compile(r"[\s.]*(?:,|;|(?:,\s*)?(?<![A-Za-z])(?:and|or)(?![A-Za-z]))\s*")
_FORMULA = re.compile(r"\\\((.*?)\\\)|\\\[(.*?)\\\]", re.S)
# Around the number that a sentence ends with: what makes it no answer, and what belongs to it.
_DENIED_BEFORE = re.compile(r"(?<![A-Za-z])(?:or|not|than|never)\W{0,3}$|[A-Za-z0-9_]\(['\"]?$")
_DENIED_AFTER = re.compile(r"\s?,?\s(?:or|and)(?![A-Za-z])|[A-Za-z]*[0-9_(]|['\"]\)")
_SCALE = re.compile(r"\s?(?:hundred|thousand|million|billion|trillion)(?![A-Za-z])")
_CHOICE = re.compile(r"\W{0,3}([A-J])(?:[).,:;*]|$)")  # D, because ...
_CURRENCY = re.compile(r"|[0-9.,]+\s*(?:and|or|,|;).{0,2}", re.S)  # between the dollar signs of "$5 and $7"
_DOLLARS = re.compile(r"(?<!\\)\$\$?")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{[A-Za-z*]*\}")
_PROSE = re.compile(  # ABCD is a quadrilateral
    r"(?<![A-Za-z\\])(?:(?!(?:sqrt|frac|infty|infinity)(?![A-Za-z]))(?=[A-Z]*[a-z])[A-Za-z]{4,}"
    r"|(?i:is|it|so|we|get|got|has|the|are|be|of|an|to|for|not|you|just|no)(?![A-Za-z]))|[^\W\d_A-Za-z]{2,}"
)
_BOLD = re.compile(  # of Markdown, not a power
    r"(?<![0-9A-Za-z)}*])\*\*(?! )([^*\n]{1,300}?)(?<! )\*\*(?![0-9A-Za-z({*])"
    r"|(?<![0-9A-Za-z_)}])__(?! )([^_\n]{1,300}?)(?<! )__(?![0-9A-Za-z_({])"
)
_NO_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s{0,8}(?:\{\s{0,8}\}|(\{.*))", re.S)


def extract_answer(text: str) -> str | None:
    r"""The final answer in `text`, None where there is none. Several different ones come as "a and b".

    The last `\boxed{}` (also `\fbox{}`, `\boxed 5`) or `<answer>`; else what "the answer is", a line "#### 42", the
    last formula or the last number says.
    """
    answers = extract_answers(text)
    return " and ".join(answers) if answers else None


def extract_answers(text: str) -> list[str]:
    """The different answers in the final part of `text`, in order: none, one, or several (see the module's policy)."""
    part = _final_part(text)
    if "<answer>" in part:
        found = _tagged(part)
    else:
        found = [content for content, _, _ in _boxes(part)] or [_stated(part)]
    written = list(dict.fromkeys(a for a in reversed(found) if a))[:_MOST]
    different = {squash(clean(a)) if len(a) <= _TAIL else a: a for a in written}
    return list(different.values())[::-1]


def gold_answer(gold: object) -> str:
    """A gold answer as a bare one: of a text, its last box and those joined to it; of 27.0, "27"; "" if there is none.

    Words alone are an answer up to three ("New York City"); more are a sentence.
    """
    if gold is None or (isinstance(gold, float) and not math.isfinite(gold)):
        return ""
    if isinstance(gold, float):
        gold = int(gold) if gold.is_integer() else format(Decimal(repr(gold)), "f")
    text = str(gold).strip()[-_LONGEST:]
    boxes = _boxes(text)
    if boxes:
        joined = [boxes.pop()]
        while boxes and _belongs(text[boxes[-1][2] : joined[0][1]]):
            joined.insert(0, boxes.pop())
        return " and ".join(content for content, _, _ in joined)
    if not re.search(r"[0-9\\$]", text):
        return text if len(text.split()) <= _WORDS else ""
    return _stated(text) or ""


def _belongs(gap: str) -> bool:
    return len(gap) <= _UNBRACED and _BETWEEN.fullmatch(gap) is not None


def _final_part(text: str) -> str:
    before, closed, after = text.rpartition("</think>")
    if closed and not after.strip():
        text = before.rpartition("<think>")[2]  # the thinking ended, and nothing came after it
    else:
        text = after.partition("<think>")[0]  # thinking that does not end has no answer
    text = text[-_LONGEST:]
    start = text.find("<answer>")
    if start >= 0:
        return text[start:]
    heading = _HEADING.search(text)
    if heading:
        rest = text[heading.end() :]
        stated = _stated(rest) or ""
        if _boxes(rest) or re.search(r"[0-9\\$]", stated) or 1 <= len(stated.split()) <= _WORDS:
            return rest
    return text


def _tagged(part: str) -> list[str | None]:
    """The answers in `<answer>` blocks and in boxes between them. The last block may end with the text."""
    found: list[str | None] = []
    for piece in part.split("<answer>")[1:]:
        inside, _, outside = piece.partition("</answer>")
        found += [content for content, _, _ in _boxes(inside)] or [_stated(inside)]
        found += [content for content, _, _ in _boxes(outside)]
    return found


def _boxes(text: str) -> list[tuple[str, int, int]]:
    r"""(content, start, end) of the outermost boxes that close and are not empty, in order."""
    found: list[tuple[str, int, int]] = []
    open_braces: list[tuple[int, int] | None] = []  # for a box's brace: where the command and its content start
    if "\\boxed" not in text and "\\fbox" not in text:
        return found
    for match in _BRACES.finditer(text):
        token, content = match.group(), None
        if match["open"]:
            open_braces.append((match.start(), match.end()))
        elif match["box"]:
            end = _UNBRACED_END.search(text, match.end(), match.end() + _UNBRACED)
            start, stop = match.start(), end.start() if end else min(len(text), match.end() + _UNBRACED)
            content = text[match.end() : stop]
        elif token == "{":
            open_braces.append(None)
        elif token == "}" and open_braces and (box := open_braces.pop()):
            start, stop = box[0], match.end()
            content = text[box[1] : match.start()]
        if content and content.strip():
            while found and found[-1][1] >= start:  # boxes in this box
                found.pop()
            found.append((content.strip(), start, stop))
    return found


def _stated(text: str) -> str | None:
    """The answer in a text without boxes, from its last 2000 characters."""
    text = _NO_BOX.sub("", text[-_TAIL:]).strip()  # a box that does not close has no content
    text = _BOLD.sub(lambda m: m[1] or m[2], text)
    _, marked, after = text.rpartition("####")
    if marked and after.strip():
        return after.strip().splitlines()[0]
    if not re.search(r"[^\W_]|[\\∞∅]", text):
        return None
    if _is_bare(text):
        return text
    for match in reversed(list(_STATED.finditer(text))):
        rest = text[match.end() :]
        end = _SENTENCE_END.search(rest)
        clause = _clause(rest[: end.start()] if end else rest)
        if clause:
            return clause
        break
    return _last_formula_or_number(text) or (text if len(text.split()) <= 5 and len(text) <= 60 else None)


def _is_bare(text: str) -> bool:
    text = _ENVIRONMENT.sub("", TEXT_GROUP.sub("", text))
    return len(text) <= _BARE and not _PROSE.search(text)


def _clause(clause: str) -> str | None:
    """What follows "the answer is", in its sentence."""
    clause = clause.strip()
    if not clause or _is_bare(clause):
        return clause or None
    formulas = _formulas(clause)
    if formulas:
        return _with_joined(clause, formulas, 0)
    choice = _CHOICE.match(clause)
    if choice:
        return choice[1]
    number = _NUMBERS.search(clause)
    if number:
        return _number(clause, number)
    return clause if len(clause.split()) <= 5 else None


def _last_formula_or_number(text: str) -> str | None:
    formulas = _formulas(text)
    numbers = [m for m in _NUMBERS.finditer(text) if not any(a <= m.start() < b for a, b in formulas)]
    if formulas and (not numbers or formulas[-1][1] > numbers[-1].end()):
        return _with_joined(text, formulas, len(formulas) - 1)
    return _number(text, numbers[-1]) if numbers else None


def _with_joined(text: str, formulas: list[tuple[int, int]], at: int) -> str:
    """The formula `at` with those before and after it that commas, "and" or "or" join to it."""
    first = last = at
    while first > 0 and _JOINED.fullmatch(text[formulas[first - 1][1] : formulas[first][0]]):
        first -= 1
    while last + 1 < len(formulas) and _JOINED.fullmatch(text[formulas[last][1] : formulas[last + 1][0]]):
        last += 1
    percent = re.match(r"\s*\\?(?:%|percent|pct)", text[formulas[last][1] :])
    return text[formulas[first][0] : formulas[last][1] + (percent.end() if percent else 0)]


def _formulas(text: str) -> list[tuple[int, int]]:
    r"""(start, end) of $...$, $$...$$, \(...\) and \[...\] without prose, in order. Dollars pair from the right."""
    spans = [match.span() for match in _FORMULA.finditer(text)]
    dollars = [match.span() for match in _DOLLARS.finditer(text)]
    spans += [(a[0], b[1]) for a, b in zip(dollars[-2::-2], dollars[::-2], strict=False)]
    inner = [(a, b, text[a:b].strip("$ \n")) for a, b in spans]
    return sorted((a, b) for a, b, formula in inner if _is_bare(formula) and not _CURRENCY.fullmatch(formula))


def _number(text: str, run: re.Match) -> str | None:
    """One number as it is; several, which may be options to choose from, as a list; None for "5 or more", "not 5"."""
    if _DENIED_BEFORE.search(text[: run.start()][-20:]) or _DENIED_AFTER.match(text[run.end() :]):
        return None
    numbers = [match.group() for match in _ONE_NUMBER.finditer(run.group())]
    if len(numbers) > 1:
        return ", ".join(numbers)
    scale = _SCALE.match(text, run.end())
    return text[run.start() : scale.end() if scale else run.end()].strip()
