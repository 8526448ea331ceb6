"""Which texts share a sequence of words with a benchmark's (arXiv 2501.12948, D.1, "Decontamination")."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from r1jax.errors import check_field

# How a formula looks and not what it says, and the code of diagrams, which are much alike: two triangles are no match.
_LOOKS = re.compile(
    r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|text|textbf|mathrm|mathbf|mbox|operatorname|q?quad)(?![a-z])"
    r"|\\[,;:!>~ ]|(?<=\\)[dt](?=frac)|(?<=\d)(?:,(?:\\!)?|\{,\})(?=\d{3}(?!\d))"
    r"|\[asy\](?:(?!\[/?asy\]).)*\[/asy\]",
    re.DOTALL,
)
# Of scripts without spaces (Chinese, Japanese, Thai, Lao, Burmese, Khmer) a character is a word.
_UNSPACED = r"\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORDS = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_PUNCTUATION = re.compile(r"[\s,:;!?$'\"]|\.(?!\d)")


def words_of(text: str) -> list[str]:
    """The words of a text, without case, punctuation, operators and LaTeX's layout."""
    return _WORDS.findall(_plain(text))


def squeezed(text: str) -> str:
    """A text without case, blanks, punctuation and LaTeX's layout; its operators stay."""
    return _PUNCTUATION.sub("", _plain(text))


def _plain(text: str) -> str:
    return _LOOKS.sub("", unicodedata.normalize("NFKC", text).casefold())


class Match(NamedTuple):
    """A text's first match with a benchmark."""

    row: int
    """The number of the benchmark text, from 0; of several with the same words, the first."""
    words: str
    """What the two share, as compared: without case, punctuation and layout."""


class NgramIndex:
    """The n-grams of a benchmark's texts, to be looked up in any number of others.

    The paper filters out texts "that contained matching 10-gram sequences from evaluation questions or reference
    solutions". Words are compared without case, punctuation, LaTeX's layout and thousands separators. A text of fewer
    than `n` words has no n-gram: it matches one that is the same as a whole, operators and order included. An n-gram
    is kept as a hash of 64 bits, which takes about 100 bytes.
    """

    def __init__(self, benchmark_texts: Iterable[str], n: int = 10):
        check_field(n >= 1, "n", n, "words in sequence, at least 1")
        self._n = n
        self._rows: dict[int, int] = {}
        for row, text in enumerate(benchmark_texts):
            for key, _ in self._keys(text):
                self._rows.setdefault(key, row)

    def match(self, text: str) -> Match | None:
        """The first sequence of `text` that a benchmark text has too; None where there is none."""
        for key, words in self._keys(text):
            if key in self._rows:
                return Match(self._rows[key], " ".join(words))
        return None

    def _keys(self, text: str) -> Iterator[tuple[int, list[str]]]:
        """(hash, words) of each n-gram, or of the whole of a text that is too short for one."""
        words = words_of(text)
        if 0 < len(words) < self._n:
            yield hash(squeezed(text)), words
        for start in range(len(words) - self._n + 1):
            ngram = words[start : start + self._n]
            yield hash(tuple(ngram)), ngram


def contaminated(texts: Iterable[str], benchmark_texts: Iterable[str], n: int = 10) -> list[Match | None]:
    """For each of `texts`, where it shares `n` words in sequence with one of `benchmark_texts`, or None.

    `NgramIndex` says what is compared, and serves where there are too many texts for a list. Raises `ConfigError` for
    an `n` below 1.
    """
    index = NgramIndex(benchmark_texts, n)
    return [index.match(text) for text in texts]
