r"""One spelling for each answer: LaTeX's and Unicode's ways of writing the same thing.

A cleaned answer has no layout commands, `\frac` in its plain form, digits without separators, `%` for percent, commas
for "and" and "or", and what LaTeX sets as text in double quotes: `5"cm"`, `"Evelyn"`.
"""

import re
import unicodedata
from collections.abc import Iterator

_UNICODE = {
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ", "∙": r"\cdot ", "÷": "/", "∕": "/",
    "π": r"\pi ", "θ": r"\theta ", "∞": r"\infty ", "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ",
    "≠": r"\ne ", "≈": r"\approx ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "±": r"\pm ",
    "°": r"^\circ ", "²": "^2", "³": "^3", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "（": "(", "）": ")", "，": ",", "、": ",", "：": ":", "；": ";", "。": ".", "％": "%", "＝": "=",
    "’": "'", "‘": "'", "“": "", "”": "", '"': "", "€": " ", "£": " ", "¥": " ", "￥": " ", "₹": " ",
}  # fmt: skip
_UNICODE |= {chr(ord("０") + digit): str(digit) for digit in range(10)}  # as wide as Chinese and Japanese letters
_TRANSLATION = str.maketrans(_UNICODE)

_TEXT = (
    r"\\(?:text|mbox|hbox|textbf|textit|textrm|textsf|texttt|textnormal|emph"
    r"|mathrm|mathbf|mathit|mathsf|mathtt|operatorname|boldsymbol|bm|rm|bf)"
)
TEXT_GROUP = re.compile(_TEXT + r"\s*\{([^{}]*)\}")
_JOIN_WORD = re.compile(r"\s*,?\s*(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])\s*|\s*,\s*")
_JOIN = re.compile(r'\s*,?\s*(?<![A-Za-z\\"])(?:and|or)(?![A-Za-z"])\s*')
_LAYOUT = re.compile(
    r"\\m?(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])(?:\s*\.(?![0-9]))?"
    r"|\\(?:rm|bf|it|displaystyle|textstyle|scriptstyle|limits|nolimits|boxed|fbox)(?![A-Za-z])"
    r"|(?<!\\)\\[\[\]()]|\\?\$"
)
_FRAC = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_THOUSANDS = re.compile(r"(?<=[0-9])(?:\{,\}|,?\\[,;:! ]|,?\\!|~| )\s*(?=[0-9]{3}(?![0-9]))")
_EMPTY_SET = re.compile(r"\\\{\s*\\\}")
_COMMA_IN_BRACES = re.compile(r"\{\s*,\s*\}")
_SPACE = re.compile(r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![A-Za-z]{2})|\\(?:enspace|thinspace|newline)(?![A-Za-z])")
_ESCAPED = re.compile(r"\\?([\x08\x0c])")  # \frac and \begin whose \f and \b someone took for escapes
_DOUBLED_BACKSLASH = re.compile(r"\\\\(?=[A-Za-z])")
_PERCENT = re.compile(r'\s*(?:\\%|%|"\s*(?:\\?%|percent(?:age)?|pct)\s*"|\b(?:percent(?:age)?|pct)\b)')
_SYNONYMS = {
    r"\leq": r"\le", r"\leqslant": r"\le", r"\geq": r"\ge", r"\geqslant": r"\ge", r"\lt": "<", r"\gt": ">",
    r"\neq": r"\ne", r"\varnothing": r"\emptyset", r"\lbrace": r"\{", r"\rbrace": r"\}", r"\lbrack": "[",
    r"\rbrack": "]", r"\lvert": "|", r"\rvert": "|", r"\vert": "|", r"\mid": "|", r"\lor": ",", r"\vee": ",",
    r"\ldots": r"\dots", r"\cdots": r"\dots", r"\dotsc": r"\dots", r"\dotsb": r"\dots", r"\degree": r"^\circ",
    r"\colon": ":", r"\approxeq": r"\approx", r"\simeq": r"\approx", r"\ast": "*", r"\dotsm": r"\dots",
}  # fmt: skip
_COMMAND = re.compile(r"\\[A-Za-z]+")
_ROOT = re.compile(r"√\s*(?:([0-9]+(?:\.[0-9]+)?|[A-Za-z])|\(([^()]*)\)|\{([^{}]*)\})")
_SCIENTIFIC = re.compile(r"([-+]?[0-9]+(?:\.[0-9]+)?)[eE]([-+]?[0-9]{1,3})")
_COMPARISONS = (("<=", r"\le "), (">=", r"\ge "), ("!=", r"\ne "), ("==", "="), ("**", "^"))
_BROKEN_RELATION = re.compile(r"\\([lg]e)(?=[a-pr-z](?![A-Za-z]))")  # \lex for \le x
_TABLES = ("matrix", "array", "cases", "aligned")


def without_hidden(text: str) -> str:
    """`text` without characters that nobody sees."""
    return "".join(c for c in text if c.isascii() or unicodedata.category(c) not in ("Cf", "Cc", "Co", "Cn", "Cs"))


def clean(text: str) -> str:
    """An answer of moderate length in the spelling of the module's first lines."""
    text = _ESCAPED.sub(lambda m: "\\f" if m[1] == "\x0c" else "\\b", text.translate(_TRANSLATION))
    if not text.isascii():
        text = "".join(" " if unicodedata.category(c) == "Zs" else c for c in text)
        text = _ROOT.sub(lambda m: rf"\sqrt{{{m[1] or m[2] or m[3]}}}", text)
    if not any(name in text for name in _TABLES):
        text = _DOUBLED_BACKSLASH.sub(r"\\", text)
    text = TEXT_GROUP.sub(_quoted, text)
    text = _COMMAND.sub(lambda m: _SYNONYMS.get(m.group(), m.group()), _BROKEN_RELATION.sub(r"\\\1 ", text))
    text = _THOUSANDS.sub("", _FRAC.sub(r"\\frac", _LAYOUT.sub(" ", text)))
    text = _EMPTY_SET.sub(r"\\emptyset ", text)
    text = _SPACE.sub(" ", _COMMA_IN_BRACES.sub(",", text).replace(r"\!", ""))
    for written, meant in _COMPARISONS:
        text = text.replace(written, meant)
    text = _PERCENT.sub("%", _JOIN.sub(" , ", text)).replace('""', "")
    text = " ".join(text.split()).lstrip(" ,;:*`=").rstrip(" \\.,;:*`")
    return _SCIENTIFIC.sub(r"\1\\times 10^{\2}", text) if _SCIENTIFIC.fullmatch(text) else text


def _quoted(match: re.Match) -> str:
    r"""Text that is a number or one letter is one (\mathbf{5}, \text{(A)}); a longer text is words, joined or apart."""
    inner = match.group(1).strip()
    if re.search(r"[0-9]", inner):
        return f" {inner} "
    return " , ".join(map(_quoted_word, _JOIN_WORD.split(inner)))


def _quoted_word(text: str) -> str:
    letter = text.strip("(). ")
    return f" {letter} " if len(letter) == 1 and letter.isascii() else f'"{text}"'


def squash(text: str) -> str:
    """`text` without the spaces that say nothing."""
    return re.sub(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])", "", text)


def scan(text: str) -> Iterator[tuple[int, str, int]]:
    r"""Yields (position, token, depth of brackets before it): commands, escaped characters and single characters.

    Raises `ValueError` where brackets do not close. Kinds need not match: [0, 1) is an interval.
    """
    depth = 0
    for match in re.finditer(r"\\[A-Za-z]+|\\.|.", text, re.S):
        token = match.group()
        if token in (")", "]", "}", r"\}"):
            depth -= 1
            if depth < 0:
                raise ValueError("a bracket that was not opened")
        yield match.start(), token, depth
        if token in ("(", "[", "{", r"\{"):
            depth += 1
    if depth:
        raise ValueError("a bracket that is not closed")


def split(text: str, separators: frozenset[str]) -> tuple[list[str], list[str]]:
    """`text` cut at the tokens in `separators` that stand outside all brackets: (parts, the tokens between them).

    Raises `ValueError` where brackets do not close.
    """
    parts, found, start, quoted = [], [], 0, False
    for position, token, depth in scan(text):
        quoted ^= token == '"'
        if depth == 0 and not quoted and token in separators:
            parts.append(text[start:position].strip())
            found.append(token)
            start = position + len(token)
    return [*parts, text[start:].strip()], found
