"""IFEval's 25 verifiable instructions, each a function (response, its arguments) -> whether it is followed.

What each one asks for is table 1 of arXiv 2311.07911; where the paper leaves a choice, the data set's prompts decide
(what separates paragraphs, how a section is marked), so that scores compare with those published.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Callable, Sequence

_OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")

# A full stop after these ends no sentence.
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof rev hon st sr jr gen col capt lt sgt gov sen rep pres mt ft vs etc inc ltd co corp dept univ "
    "est fig eq no nos vol pp ed eds al e.g i.e a.m p.m u.s u.k u.n d.c b.c a.d ph.d m.d b.a m.a jan feb mar apr jun "
    "jul aug sep sept oct nov dec".split()
)
# The mark starts a run of such marks, and what follows is possessive: thousands of them are read once.
_SENTENCE_END = re.compile(r"(?<![.!?…])([.!?…]++|[。！？｡।]++)[\"'”’»)\]*_]*+(?=\s|$|(?<=[。！？｡।]))")
_NEXT = re.compile(r"\s*[\"'“‘(\[*_]*(\w?)")
_WORD_BEFORE = re.compile(r"[\w.'’-]{1,32}\Z")


def count_words(text: str) -> int:
    """Runs of letters, digits and underscores: "it's" is two. Vowel signs and accents do not part a word."""
    return len(re.findall(r"\w+", "".join(c for c in text if unicodedata.category(c)[0] != "M")))


def count_sentences(text: str) -> int:
    """Stretches of text that end in a full stop, a question or an exclamation mark, or at the end of the text.

    Full stops of abbreviations, initials and decimals end none; nor does one before a small letter.
    """
    ends = [end for end in _SENTENCE_END.finditer(text) if end[1].strip(".…") or not _goes_on(text, end)]
    starts = [0, *(end.end() for end in ends)]
    stretches = zip(starts, [*starts[1:], len(text)], strict=True)
    return sum(bool(re.search(r"\w", text[start:stop])) for start, stop in stretches)


def _goes_on(text: str, end: re.Match) -> bool:
    """Whether a full stop, or dots, stand inside a sentence."""
    word = _WORD_BEFORE.search(text, max(0, end.start() - 32), end.start())
    token = word.group().lower() if word else ""
    following = _NEXT.match(text, end.end())[1]
    if following.islower():
        return True
    # An initial ("J. Smith") goes on; "Plan B." may end a sentence, and "I" always may.
    initial = len(token) == 1 and token.isalpha() and token != "i" and text[end.start() - 1].isupper()
    return (token in _ABBREVIATIONS or initial) and bool(following)


@functools.cache
def _identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # its model takes most of a second to unpack

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def detect_language(text: str) -> str | None:
    """The language of most of the text (ISO 639-1, one of langid's 97), None where it has no letters."""
    if not any(letter.isalpha() for letter in text):
        return None
    # The model knows words as they are written; a text in capitals is one in small letters to it.
    return _identifier().classify(text.lower() if text.isupper() else text)[0]


def _compare(count: int, relation: str, threshold: int) -> bool:
    if relation not in ("at least", "less than"):
        raise ValueError(f"relation={relation!r}: use 'at least' or 'less than'")
    return count >= threshold if relation == "at least" else count < threshold


def _keywords_existence(response: str, keywords: Sequence[str]) -> bool:
    return all(keyword.lower() in response.lower() for keyword in keywords)


def _keywords_frequency(response: str, keyword: str, frequency: int, relation: str) -> bool:
    return _compare(response.lower().count(keyword.lower()), relation, frequency)


def _forbidden_words(response: str, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", response, re.I) for word in forbidden_words)


def _letter_frequency(response: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compare(response.lower().count(letter.lower()), let_relation, let_frequency)


def _response_language(response: str, language: str) -> bool:
    return detect_language(response) == language


def _number_sentences(response: str, num_sentences: int, relation: str) -> bool:
    return _compare(count_sentences(response), relation, num_sentences)


def _number_paragraphs(response: str, num_paragraphs: int) -> bool:
    """Paragraphs separated by the divider ***; one may stand before the first and after the last."""
    return _parts(response, r"\s?\*\*\*\s?") == num_paragraphs


def _parts(text: str, divider: str) -> int | None:
    """How many parts the dividers make, None where one within the text is empty."""
    parts = [part.strip() for part in re.split(divider, text)]
    if not all(parts[1:-1]):
        return None
    return sum(map(bool, parts))


def _number_words(response: str, num_words: int, relation: str) -> bool:
    return _compare(count_words(response), relation, num_words)


def _nth_paragraph_first_word(response: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs separated by two line breaks; the nth starts with the word, whatever marks surround it."""
    paragraphs = [paragraph.strip() for paragraph in re.split(r"\n\s*\n", response) if paragraph.strip()]
    if len(paragraphs) != num_paragraphs or not 1 <= nth_paragraph <= num_paragraphs:
        return False
    word = re.match(r"[^.,?!'\"\s]*", paragraphs[nth_paragraph - 1].lstrip("'\""))
    return word.group().lower() == first_word.lower()


def _number_placeholders(response: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[[^\[\]\n]*\]", response)) >= num_placeholders


def _postscript(response: str, postscript_marker: str) -> bool:
    """The marker, in capitals or not, also with blanks within it ("P. S.")."""
    marker = r"\s?".join(map(re.escape, postscript_marker.replace(" ", "")))
    return bool(re.search(rf"(?<!\w){marker}", response, re.I))


def _number_bullet_lists(response: str, num_bullets: int) -> bool:
    """Exactly as many lines that start with * (not **) or -."""
    return len(re.findall(r"^[ \t]*(?:\*(?!\*)[^\n]|-)", response, re.M)) == num_bullets


def _constrained_response(response: str) -> bool:
    return any(option in response for option in _OPTIONS)


def _number_highlighted_sections(response: str, num_highlights: int) -> bool:
    """*Such* and **such** stretches within a line."""
    found = re.findall(r"\*\*([^\n*]*)\*\*|\*([^\n*]*)\*", response)
    return sum(bool((double or single).strip()) for double, single in found) >= num_highlights


def _multiple_sections(response: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter)}\s?\d+", response)) >= num_sections


def _json_format(response: str) -> bool:
    fenced = re.fullmatch(r"```(?:json)?(.*?)(?:```)?", response.strip(), re.I | re.S)
    try:
        json.loads(fenced[1] if fenced else response)
    except (ValueError, RecursionError):
        return False
    return True


def _title(response: str) -> bool:
    """<<A title>> within a line."""
    for line in response.split("\n"):
        _, opened, rest = line.partition("<<")
        title, closed, _ = rest.rpartition(">>")
        if opened and closed and title.strip("<> \t"):
            return True
    return False


def _two_responses(response: str) -> bool:
    parts = [part.strip() for part in response.split("******")]
    return _parts(response, r"\*{6}") == 2 and len({part for part in parts if part}) == 2


def _repeat_prompt(response: str, prompt_to_repeat: str) -> bool:
    return response.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _end_checker(response: str, end_phrase: str) -> bool:
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _capital_word_frequency(response: str, capital_frequency: int, capital_relation: str) -> bool:
    """Words all of whose letters are capitals; one with hyphens or full stops in it is one word."""
    words = re.findall(r"\w+(?:[-.&/]\w+)*", response)
    return _compare(sum(word.isupper() for word in words), capital_relation, capital_frequency)


def _english_capital(response: str) -> bool:
    return response.isupper() and detect_language(response) == "en"


def _english_lowercase(response: str) -> bool:
    return response.islower() and detect_language(response) == "en"


def _no_comma(response: str) -> bool:
    return "," not in response


def _quotation(response: str) -> bool:
    response = response.strip()
    return len(response) > 1 and response[0] == response[-1] == '"'


INSTRUCTIONS: dict[str, Callable[..., bool]] = {
    "keywords:existence": _keywords_existence,
    "keywords:frequency": _keywords_frequency,
    "keywords:forbidden_words": _forbidden_words,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _response_language,
    "length_constraints:number_sentences": _number_sentences,
    "length_constraints:number_paragraphs": _number_paragraphs,
    "length_constraints:number_words": _number_words,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph_first_word,
    "detectable_content:number_placeholders": _number_placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _number_bullet_lists,
    "detectable_format:constrained_response": _constrained_response,
    "detectable_format:number_highlighted_sections": _number_highlighted_sections,
    "detectable_format:multiple_sections": _multiple_sections,
    "detectable_format:json_format": _json_format,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeat_prompt,
    "startend:end_checker": _end_checker,
    "startend:quotation": _quotation,
    "change_case:capital_word_frequency": _capital_word_frequency,
    "change_case:english_capital": _english_capital,
    "change_case:english_lowercase": _english_lowercase,
    "punctuation:no_comma": _no_comma,
}
"""The checks by instruction id. Keyword arguments are the data set's `kwargs`; `ValueError` for one that is unknown."""
