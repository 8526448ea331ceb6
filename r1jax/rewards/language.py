"""Language consistency: the share of the chain of thought's words that are in the language asked for."""

import functools
import re
from collections.abc import Sequence

import numpy as np

from r1jax.errors import RewardError

# Letters of each script, and the languages written in it that are told apart. Others are counted, as none of these.
_SCRIPTS = {
    "latin": (
        r"A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0300-\u036f\u1e00-\u1eff",
        "en fr de es it pt nl sv da no fi pl cs sk hu ro hr sl sq tr vi id tl sw ca eu lt lv et is cy ga",
    ),
    "cyrillic": (r"\u0400-\u0481\u048a-\u052f\u0300-\u036f", "ru uk bg sr kk"),
    "han": (
        r"\u3005\u3006\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
        r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U000323af",
        "zh ja",
    ),
    "hangul": (r"\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3", "ko"),
    "arabic": (
        r"\u0620-\u065f\u066e-\u06d3\u06d5-\u06dc\u06df-\u06e8\u06ea-\u06ef\u06fa-\u06ff\u0750-\u077f"
        r"\u200c\ufb50-\ufbb1\ufbd3-\ufd3d\ufd50-\ufdfb\ufe70-\ufefc",
        "ar fa ur",
    ),
    "devanagari": (r"\u0900-\u0963\u0971-\u097f\u200c\u200d", "hi mr ne"),
    "bengali": (r"\u0980-\u09e3\u09f0\u09f1\u09fc", "bn"),
    "tamil": (r"\u0b80-\u0be5", "ta"),
    "telugu": (r"\u0c00-\u0c65", "te"),
    "thai": (r"\u0e01-\u0e3a\u0e40-\u0e4e", "th"),
    "greek": (r"\u0370-\u037d\u037f-\u0386\u0388-\u03ff\u0300-\u036f\u1f00-\u1fff", "el"),
    "hebrew": (r"\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7-\u05f2", "he"),
}
_UNSPACED = ("han", "thai")  # every character counts as a word, where a language writes none between its words
_SCRIPT_OF = {language: script for script, (_, languages) in _SCRIPTS.items() for language in languages.split()}
LANGUAGES = tuple(sorted(_SCRIPT_OF))
"""The codes (ISO 639-1; "tl" for Filipino) that `language_consistency` takes."""

_PIECE = 12, 16  # words of a piece that is judged as one, at most; characters of unspaced scripts
_SHORTEST = 4  # words: shorter clauses are judged together with the next
_LEAVE, _RETURN = 4.0, 1.0  # nats of evidence for another language at which the judgement leaves the target, and back
_LEAST_PROBABLE = 1e-6  # so that its logarithm is finite
_LONGEST_NAME = 3  # words

# Quantifiers are possessive: what follows a word must not be able to give back its letters, one by one.
_LETTERS = "".join(letters for letters, _ in _SCRIPTS.values())
_WORD = "(?P<{0}>(?<![{1}0-9_])[{1}]{{2,}}+(?:['’-][{1}]++)*+(?![0-9_(]))"  # else it is a symbol or a call
_TOKENS = re.compile(
    "|".join(
        [
            *(
                f"(?P<{script}>[{letters}])" if script in _UNSPACED else _WORD.format(script, letters)
                for script, (letters, _) in _SCRIPTS.items()
            ),
            rf"(?P<other>[^\W\d_{_LETTERS}]{{2,}}+)",
            r"(?P<stop>[.!?:;,\n。！？：；，、…।؟،()\[\]\"“”«»|]+)",
        ]
    )
)
_NEUTRAL = re.compile(
    r"`[^`\n]++`"
    r"|\$\$[^$]++\$\$"
    # Pandoc's rule: "$5 and then $6" are prices. What a formula holds does not touch its dollars with a blank.
    r"|\$(?=\S)[^$\n]++(?<=\S)\$(?![0-9])"
    r"|\\[A-Za-z]++"
    r"|(?:https?://|www\.)\S++|[\w.+-]{1,64}@\S++"
    r"|</?[A-Za-z][\w-]*+(?:\s[^<>]*+)?/?>"
    r"|(?<![A-Za-z_])[0-9]++(?:[.,][0-9]++)*+[A-Za-z]*+"
)


def language_consistency(
    prompts: list[str], completions: list[str], language: Sequence[str | None] | str, **columns
) -> list[float | None]:
    """Num(words in the target language) / Num(words) of each chain of thought (arXiv 2501.12948, equation 7).

    `language` holds the target of each row, or one for all: a code of `LANGUAGES`, alone or with a region ("pt-BR").
    None scores None: the row has no target. The chain of thought is what stands before the last `</think>`, or all of
    a completion without one.

    Formulas, code (fenced or inline), numbers, LaTeX commands, addresses, tags, symbols of one letter and Latin names
    inside another script are no words. Characters count as words in Chinese, Japanese and Thai. A language that shares
    its script with others is judged in pieces of at most 12 words, each in the light of those around it: a name or a
    short clause is no evidence, a sentence in another language is. Single words borrowed from a language of the same
    script are not noticed.

    A chain without words, of formulas alone, has nothing in another language and scores 1.0; a blank chain scores 0.0,
    or not to think would be the surest way to this reward. Raises `RewardError` for a code that is not known.
    """
    if isinstance(language, str):
        language = [language] * len(completions)
    return [_score(completion, code) for completion, code in zip(completions, language, strict=True)]


def language_share(text: str, language: str) -> float | None:
    """Share of the text's words that are in `language`, as `language_consistency` counts; None where it has no word.

    Raises `RewardError` for a code that is not known.
    """
    code = re.split("[-_]", language.strip().lower())[0]
    if code not in _SCRIPT_OF:
        raise RewardError(f"language={language!r}: use one of {', '.join(LANGUAGES)}")
    script = _SCRIPT_OF[code]
    words, pieces = _pieces(text, script)
    if not words:
        return None
    languages = _SCRIPTS[script][1].split()
    if len(languages) > 1 and pieces:
        judged = _judge(pieces, script, languages.index(code))
        pieces = [piece for piece, number in zip(pieces, judged, strict=True) if languages[number] == code]
    return sum(map(len, pieces)) / words


def _score(completion: str, language: str | None) -> float | None:
    if language is None:
        return None
    thought, closed, _ = completion.rpartition("</think>")
    thought = thought if closed else completion
    share = language_share(thought, language)
    if share is None:
        return float(bool(thought.replace("<think>", "").strip()))
    return share


def _pieces(text: str, script: str) -> tuple[int, list[list[str]]]:
    """(number of words of all scripts, those in `script` in pieces to be judged one by one)."""
    most = _PIECE[script in _UNSPACED]
    words, pieces, piece = 0, [], []
    runs = _runs(_prose(text))
    for run_script, clauses in runs:
        count = sum(map(len, clauses))
        if run_script == "latin" and len(runs) > 1 and count <= _LONGEST_NAME and all(map(_are_names, clauses)):
            continue
        words += count
        for clause in clauses if run_script == script else ():
            piece += clause
            if len(piece) >= _SHORTEST:
                parts = -(-len(piece) // most)
                pieces += [piece[len(piece) * i // parts : len(piece) * (i + 1) // parts] for i in range(parts)]
                piece = []
    return words, [*pieces, piece] if piece else pieces


def _runs(text: str) -> list[tuple[str, list[list[str]]]]:
    """Neighbouring words of one script: (script, words by clause)."""
    runs, new_clause = [], True
    for token in _TOKENS.finditer(text):
        if token.lastgroup == "stop":
            new_clause = True
            continue
        if not runs or runs[-1][0] != token.lastgroup:
            runs.append((token.lastgroup, [[]]))
        elif new_clause:
            runs[-1][1].append([])
        runs[-1][1][-1].append(token.group())
        new_clause = False
    return runs


def _are_names(words: list[str]) -> bool:
    return all(word != word.lower() for word in words)


def _prose(text: str) -> str:
    """The text without what is neutral. Each step reads it a fixed number of times."""
    text = " ".join(text.split("```")[::2])  # what a fence that is never closed holds is code as well
    text = re.sub(r"\\(begin|end)\{[^{}\n]*+\}", r"\\\1 ", text)
    for opening, closing in ((r"\[", r"\]"), (r"\(", r"\)"), ("\\begin ", "\\end "), ("[asy]", "[/asy]")):
        before, *parts = text.split(opening)
        text = " ".join([before, *(part.partition(closing)[2] if closing in part else part for part in parts)])
    return _NEUTRAL.sub(" ", text)


def _judge(pieces: list[list[str]], script: str, target: int) -> list[int]:
    """The language of each piece, as an index into the script's: the likeliest sequence (Viterbi) from the target on.

    A piece's evidence is py3langid's probability of each language; a change costs `_LEAVE` or `_RETURN`.
    """
    languages = _SCRIPTS[script][1].split()
    states = np.arange(len(languages))
    entry = np.where(states == target, _RETURN, _LEAVE)
    score = np.where(states == target, 0.0, -_LEAVE)
    joint = "" if script in _UNSPACED else " "
    came_from = []
    for piece in pieces:
        # Only the start of a word counts: a megabyte of letters or accents is no word.
        probability = dict(_identifier().rank(joint.join(word[:40] for word in piece)))
        best = score.argmax()
        stay = score >= score[best] - entry
        came_from.append(np.where(stay, states, best))
        evidence = np.log([max(probability[code], _LEAST_PROBABLE) for code in languages])
        score = np.where(stay, score, score[best] - entry) + evidence
    judged = [target if score[target] == score.max() else int(score.argmax())]
    for previous in reversed(came_from[1:]):
        judged.append(int(previous[judged[-1]]))
    return judged[::-1]


@functools.cache
def _identifier():
    """py3langid's classifier over our languages: naive Bayes over byte n-grams, the same on every call."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # its model takes most of a second to unpack

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(LANGUAGES)
    return identifier
