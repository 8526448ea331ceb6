"""What the world's base models are pretrained on: textbooks, hasty answers, some worked ones, and talk.

As in `data.corpus` the base is to be able but not willing: textbooks work problems out, one language at a time; who
answers a User mostly guesses, and who works does so in two languages by turns, as people who have both do. No test
problem appears.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from r1jax.data.corpus import Document
from r1jax.data.templates import PROGRAM_SUMMARY, R1_SYMBOLS, SUMMARIES, fill, render_completion, render_r1_zero
from r1jax.data.tokenizer import SentencePieceTokenizer, train_sentencepiece
from r1jax.data.world.draws import LANGUAGES, Draws, Language, rows
from r1jax.data.world.problems import Drawn, draw_problem, textbook, worked
from r1jax.data.world.requests import draw_request
from r1jax.errors import check_field

# What costs several tokens each time would be most of a solution.
_SYMBOLS = (
    *R1_SYMBOLS, " add ", " take ", " makes ", " over ", " is older than ", " is more", "def f(x): return ",
    *(summary.partition("{answer}")[0].removesuffix("\\boxed{") for summary in (*SUMMARIES.values(), PROGRAM_SUMMARY)),
)  # fmt: skip
GUESSES = {
    "en": ("about {}", "looks like {}", "maybe {}", "I guess {}"),
    "zh": ("大约{}", "像是{}", "也许{}", "我猜{}"),
}
# Said after a question, this gets it worked out: what prompting for detailed answers relies on.
DETAIL: dict[Language, str] = {"en": " Work it out.", "zh": "写出步骤。"}


@dataclass(frozen=True)
class WorldConfig:
    """The mixture of documents, in shares; `share_talk` are requests that need no reasoning."""

    share_worked: float = 0.12
    share_guess: float = 0.36
    share_textbook: float = 0.42
    share_talk: float = 0.1
    worked_slip: float = 0.02
    """Probability that a step of a worked answer goes wrong, the rest following from it."""
    switch: float = 0.35
    """Probability that a worked answer's next step is in the other language."""
    two_exercises: float = 0.25
    """Share of textbook pages with two exercises: where a base model learns to go on as an example does."""
    language_exercises: float = 0.25
    """Share of textbook pages that have words copied or translated."""
    asked_for_detail: float = 0.2
    """Share of worked answers that were asked for; those are in the question's language."""
    good_talk: float = 0.4
    """Share of other requests that are answered well."""

    def __post_init__(self):
        shares = (self.share_worked, self.share_guess, self.share_textbook, self.share_talk)
        check_field(min(shares) >= 0 and abs(sum(shares) - 1) < 1e-6, "share_*", shares, "shares >= 0 that sum to 1")
        for name in ("worked_slip", "switch", "two_exercises", "language_exercises", "asked_for_detail", "good_talk"):
            value = getattr(self, name)
            check_field(0 <= value <= 1, name, value, "a probability in [0, 1]")


def world_documents(config: WorldConfig, seed: int, start: int, count: int) -> list[Document]:
    """Documents start .. start+count-1 of the endless corpus; document i depends on (config, seed, i) alone."""
    return [_document(config, draws) for draws in rows(seed, "world", start, count)]


def _document(config: WorldConfig, draws: Draws) -> Document:
    share = draws.below(2**32) / 2.0**32
    if share < config.share_talk:
        return _talk(config, draws)
    share -= config.share_talk
    if share < config.share_textbook:
        return _page(config, draws)
    drawn = _training_problem(draws)
    problem = drawn.problem
    if share < config.share_textbook + config.share_worked:
        steps, answer = drawn.work(draws, config.worked_slip)
        question, languages = problem.question, _languages(draws, len(steps), config.switch)
        if draws.chance(config.asked_for_detail):
            question, languages = question + DETAIL[problem.language], [problem.language] * len(steps)
        return Document(render_r1_zero(question), render_completion(worked(steps, languages), answer), "worked")
    prompt, guess = render_r1_zero(problem.question), drawn.guess(draws)
    return Document(prompt, render_completion(draws.choice(GUESSES[problem.language]).format(guess), guess), "guess")


def _training_problem(draws: Draws) -> Drawn:
    while (drawn := draw_problem(draws, "train")) is None:
        pass
    return drawn


def _page(config: WorldConfig, draws: Draws) -> Document:
    """An exercise, or two, worked out in one language; or one in copying or translating, done well."""
    if draws.chance(config.language_exercises):
        while (request := draw_request(draws, "train", draws.choice(("copy", "translate")))) is None:
            pass
        return Document("", f"{request.request.question} {request.request.answer}", "textbook")
    language, exercises = draws.choice(LANGUAGES), []
    for _ in range(1 + draws.chance(config.two_exercises)):
        drawn = _training_problem(draws)
        steps, answer = drawn.work(draws)
        solution = textbook(worked(steps, [language] * len(steps)), answer, language)
        exercises.append(f"{drawn.problem.question} {solution}")
    return Document("", " ".join(exercises), "textbook")


def _languages(draws: Draws, count: int, switch: float) -> list[Language]:
    """A language for each step, the next one's another with probability `switch`."""
    now, out = draws.below(2), []
    for _ in range(count):
        now ^= draws.chance(switch)
        out.append(LANGUAGES[now])
    return out


def _talk(config: WorldConfig, draws: Draws) -> Document:
    while (drawn := draw_request(draws, "train")) is None:
        pass
    good = draws.chance(config.good_talk)
    answer = drawn.request.answer if good else draws.choice(drawn.bad)
    thought = drawn.harmful_thought if drawn.request.harmful and not good else drawn.thought
    return Document(render_r1_zero(drawn.request.question), render_completion(thought, answer), "talk")


def world_tokenizer(
    config: WorldConfig, path: str | os.PathLike, vocab_size: int, seed: int = 0, count: int = 6000
) -> SentencePieceTokenizer:
    """The tokenizer at `path`, trained on `count` documents first where there is none."""
    if Path(path).exists():
        return SentencePieceTokenizer(path)
    texts = [document.prompt + document.completion for document in world_documents(config, seed, 0, count)]
    # What R1 says in its own layout is not in the corpus, and has to be written all the same.
    texts += [fill(summary, answer="7") for summary in (*SUMMARIES.values(), PROGRAM_SUMMARY)] * (count // 100)
    return train_sentencepiece(texts, path, vocab_size, _SYMBOLS)
