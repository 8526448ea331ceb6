"""The world's reasoning problems: sums in symbols and in words, comparisons, small programs, orders of people.

Each can be worked out step by step, in either language or in both by turns, and each can be guessed at once.
"""

import re
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol

from r1jax.data.problems import GAINS, LIMIT, LOSSES, NAMES, OBJECTS, expression
from r1jax.data.world.draws import LANGUAGES, Draws, Language, Split, rows, split_of
from r1jax.errors import DataError, check_field

LEVELS = (1, 2, 3)
ZH_OBJECTS = dict(zip(OBJECTS, ("苹果", "笔", "硬币", "鸡蛋", "卡片"), strict=True))


class Step(NamedTuple):
    """One step of a solution, as it reads in each language."""

    en: str
    zh: str


@dataclass(frozen=True)
class Problem:
    """One reasoning problem. `tests` are a program's, as assertions, empty elsewhere; `language` is the question's."""

    question: str
    answer: str
    kind: str
    language: Language
    level: int
    tests: tuple[str, ...] = ()
    domain: str = "reasoning"


class Kind(Protocol):
    """A kind of problem. `draw` makes what is asked, everything else is said of that."""

    def draw(self, draws: Draws, level: int) -> Any: ...

    def key(self, asked: Any) -> str:
        """What no two splits may share."""

    def question(self, asked: Any, language: Language, draws: Draws) -> str: ...

    def work(self, asked: Any, draws: Draws, slip: float) -> tuple[list[Step], str]:
        """The steps and the answer that they end with; each step goes wrong with probability `slip`."""

    def guess(self, asked: Any, draws: Draws) -> str:
        """An answer given at once."""


def worked(steps: list[Step], languages: list[Language]) -> str:
    """The steps as one line, each in its language; a blank stands only between English words."""
    text = ""
    for step, language in zip(steps, languages, strict=True):
        text += step.en if language == "en" else step.zh
    return text.strip()


# What steps are written with, in either language.
_WORDS = ((" is more", "大"), (" add ", "加"), (" take ", "减"), (" makes ", "得"), (" over ", "大于"), (", ", "，"))


def translated(text: str, language: Language) -> str:
    """A worked solution with all its steps in `language`."""
    for en, zh in sorted(_WORDS, key=lambda pair: -len(pair[1])):  # "大于" before "大"
        text = text.replace(zh, en) if language == "en" else text.replace(en, zh)
    return text


# ------------------------------------------------------------------------------------------------------- totals


def _terms(draws: Draws, count: int) -> tuple[int, ...]:
    """A first term of 1..9 and further ones of +-1..9 whose running total stays in 0..LIMIT."""
    terms = [draws.within(1, 9)]
    while len(terms) < count:
        total = sum(terms)
        down, up = min(9, total), min(9, LIMIT - total)
        step = draws.below(down + up) - down
        terms.append(step + (step >= 0))
    return tuple(terms)


def _slipped(total: int, draws: Draws, slip: float) -> int:
    if not draws.chance(slip):
        return total
    return total + (draws.choice((-2, -1, 1, 2)) if total >= 2 else draws.choice((1, 2)))


def _running(terms: tuple[int, ...], draws: Draws, slip: float) -> tuple[list[Step], int]:
    """`(3, 5, -2)` as "3 add 5 makes 8 take 2 makes 6": each total is where the next step starts."""
    total = terms[0]
    steps = [Step(str(total), str(total))]
    for term in terms[1:]:
        total = max(0, _slipped(total + term, draws, slip))
        en, zh = ("add", "加") if term > 0 else ("take", "减")
        steps.append(Step(f" {en} {abs(term)} makes {total}", f"{zh}{abs(term)}得{total}"))
    return steps, total


def _near(total: int, draws: Draws, radius: int = 5) -> str:
    return str(max(0, total + draws.within(-radius, radius)))


class Sum:
    def draw(self, draws: Draws, level: int) -> tuple[int, ...]:
        return _terms(draws, level + 2)

    def key(self, asked: tuple[int, ...]) -> str:
        return "total " + ",".join(map(str, asked))  # shared with word problems: the same sum

    def question(self, asked: tuple[int, ...], language: Language, draws: Draws) -> str:
        return f"What is {expression(asked)}?" if language == "en" else f"{expression(asked)}是多少？"

    def work(self, asked: tuple[int, ...], draws: Draws, slip: float) -> tuple[list[Step], str]:
        steps, total = _running(asked, draws, slip)
        return steps, str(total)

    def guess(self, asked: tuple[int, ...], draws: Draws) -> str:
        return _near(sum(asked), draws)


class Word(Sum):
    def question(self, asked: tuple[int, ...], language: Language, draws: Draws) -> str:
        name, thing = draws.choice(NAMES), draws.choice(OBJECTS)
        if language == "zh":
            parts = [f"{name}有{asked[0]}个{ZH_OBJECTS[thing]}"]
            parts += [f"{'得' if term > 0 else '丢'}{abs(term)}个" for term in asked[1:]]
            return "，".join(parts) + "。有几个？"
        parts = [f"{name} has {asked[0]} {thing}"]
        parts += [f"{draws.choice(GAINS if term > 0 else LOSSES)} {abs(term)}" for term in asked[1:]]
        return ", ".join(parts) + ". How many?"


class Comparison:
    """Which of two sums is more; the answer is its total."""

    def draw(self, draws: Draws, level: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        first = _terms(draws, 2 + (level > 2))
        while sum(second := _terms(draws, 2 + (level > 1))) == sum(first):
            pass
        return first, second

    def key(self, asked: tuple[tuple[int, ...], tuple[int, ...]]) -> str:
        return f"more {sorted(asked)}"

    def question(self, asked: tuple[tuple[int, ...], tuple[int, ...]], language: Language, draws: Draws) -> str:
        first, second = map(expression, asked)
        return f"Which is more, {first} or {second}?" if language == "en" else f"{first}和{second}哪个大？"

    def work(self, asked: tuple[tuple[int, ...], tuple[int, ...]], draws: Draws, slip: float) -> tuple[list[Step], str]:
        (first, one), (second, other) = (_running(terms, draws, slip) for terms in asked)
        more = str(max(one, other))
        start = Step(f", {second[0].en}", f"，{second[0].zh}")
        return [*first, start, *second[1:], Step(f", {more} is more", f"，{more}大")], more

    def guess(self, asked: tuple[tuple[int, ...], tuple[int, ...]], draws: Draws) -> str:
        return _near(max(map(sum, asked)), draws)


# ------------------------------------------------------------------------------------------------------ programs


class Rule(NamedTuple):
    """f(x) = x + number, x - number or number - x, and the two x that are shown."""

    family: str
    number: int
    shown: tuple[int, int]

    def __call__(self, x: int) -> int:
        return {"x+": x + self.number, "x-": x - self.number, "-x": self.number - x}[self.family]

    def code(self) -> str:
        return f"{self.number}-x" if self.family == "-x" else f"{self.family}{self.number}"


class Program:
    """A function is shown at two places; the answer is a program for it, which runs in the sandbox."""

    def draw(self, draws: Draws, level: int) -> Rule:
        family = ("x+", "x-", "-x")[level - 1]
        number = draws.within(2, 9) if family != "-x" else draws.within(10, 18)
        low, high = (number, 18) if family == "x-" else (1, 9)
        first = draws.within(low, high)
        while (second := draws.within(low, high)) == first:
            pass
        return Rule(family, number, (first, second))

    def key(self, asked: Rule) -> str:
        return f"rule {asked.code()} {sorted(asked.shown)}"

    def question(self, asked: Rule, language: Language, draws: Draws) -> str:
        shown = ", ".join(f"f({x})={asked(x)}" for x in asked.shown)
        return f"Write f with {shown}." if language == "en" else f"写f，{shown}。"

    def work(self, asked: Rule, draws: Draws, slip: float) -> tuple[list[Step], str]:
        steps, found = [], asked.number
        for i, x in enumerate(asked.shown):
            low, high = sorted((x, asked(x)))
            found = max(0, _slipped(asked.number, draws, slip))
            comma_en, comma_zh = (", ", "，") if i else ("", "")
            if asked.family == "-x":
                step = Step(f"{x} add {asked(x)} makes {found}", f"{x}加{asked(x)}得{found}")
            else:
                step = Step(f"{high} take {low} makes {found}", f"{high}减{low}得{found}")
            steps.append(Step(comma_en + step.en, comma_zh + step.zh))
        return steps, _program(asked._replace(number=found))

    def guess(self, asked: Rule, draws: Draws) -> str:
        family = draws.choice(("x+", "x-", "-x"))
        return _program(Rule(family, max(1, asked.number + draws.within(-2, 2)), asked.shown))

    def tests(self, asked: Rule) -> tuple[str, ...]:
        """At the places shown, and at others that no guess at those can satisfy."""
        return (f"assert [f(x) for x in {_PLACES + asked.shown}] == {[asked(x) for x in _PLACES + asked.shown]}",)


_PLACES = (0, 7, 46, -5)


def _program(rule: Rule) -> str:
    return f"def f(x): return {rule.code()}"


# -------------------------------------------------------------------------------------------------------- orders


class People(NamedTuple):
    """People from the oldest to the youngest, in which order neighbours are told, and who is asked for."""

    order: tuple[str, ...]
    told: tuple[int, ...]
    oldest: bool


class Order:
    """Who is the oldest or the youngest of several people, of whom neighbours are compared."""

    def draw(self, draws: Draws, level: int) -> People:
        count = level + 2
        order = tuple(draws.sample(NAMES, count))
        return People(order, tuple(draws.sample(range(count - 1), count - 1)), draws.chance(0.5))

    def key(self, asked: People) -> str:
        return "order " + ",".join(asked.order)

    def question(self, asked: People, language: Language, draws: Draws) -> str:
        pairs = [(asked.order[i], asked.order[i + 1]) for i in asked.told]
        if language == "zh":
            return "".join(f"{a}比{b}大。" for a, b in pairs) + ("谁最大？" if asked.oldest else "谁最小？")
        facts = "".join(f"{a} is older than {b}. " for a, b in pairs)
        return facts + ("Who is the oldest?" if asked.oldest else "Who is the youngest?")

    def work(self, asked: People, draws: Draws, slip: float) -> tuple[list[Step], str]:
        order = list(asked.order)
        if draws.chance(slip * (len(order) - 1)):
            i = draws.below(len(order) - 1)
            order[i], order[i + 1] = order[i + 1], order[i]
        steps = [Step(order[0], order[0])]
        steps += [Step(f" over {name}", f"大于{name}") for name in order[1:]]
        return steps, order[0] if asked.oldest else order[-1]

    def guess(self, asked: People, draws: Draws) -> str:
        return draws.choice(asked.order)


KINDS: dict[str, Kind] = {
    "sum": Sum(),
    "word": Word(),
    "comparison": Comparison(),
    "program": Program(),
    "order": Order(),
}


@dataclass(frozen=True)
class Drawn:
    """A problem with what its solutions are made of."""

    kind: str
    asked: Any = field(repr=False)
    problem: Problem

    def work(self, draws: Draws, slip: float = 0.0) -> tuple[list[Step], str]:
        return KINDS[self.kind].work(self.asked, draws, slip)

    def guess(self, draws: Draws) -> str:
        return KINDS[self.kind].guess(self.asked, draws)


def draw_problem(draws: Draws, split: Split | None) -> Drawn | None:
    """A problem of any kind, level and language; None where another split owns it."""
    name, level = draws.choice(tuple(KINDS)), draws.choice(LEVELS)
    language = draws.choice(LANGUAGES)
    kind = KINDS[name]
    asked = kind.draw(draws, level)
    if split is not None and split_of(kind.key(asked)) != split:
        return None
    _, answer = kind.work(asked, draws, 0.0)
    tests = kind.tests(asked) if isinstance(kind, Program) else ()
    return Drawn(name, asked, Problem(kind.question(asked, language, draws), answer, name, language, level, tests))


def reasoning_problems(seed: int, count: int, split: Split) -> list[dict[str, Any]]:
    """`count` problems of a split as rows; a shorter list is a prefix of a longer one.

    No two test problems ask the same question; training problems may recur. Raises `DataError` where a split has too
    few.
    """
    check_field(split in ("train", "test"), "split", split, "use 'train' or 'test'")
    found: list[Problem] = []
    seen: set[str] = set()
    start = 0
    while len(found) < count:
        before = len(found)
        for draws in rows(seed, f"reasoning {split}", start, 1024):
            drawn = draw_problem(draws, split)
            if drawn is None or (split == "test" and drawn.problem.question in seen):
                continue
            seen.add(drawn.problem.question)
            found.append(drawn.problem)
        start += 1024
        if len(found) == before:
            raise DataError(
                f"count={count}: the {split} split has hardly more than {len(found)} different questions; ask for fewer"
            )
    return [asdict(problem) for problem in found[:count]]


def textbook_examples(seed: int, count: int) -> list[dict[str, Any]]:
    """Training problems with "response": worked out in the question's language, and the answer, as a textbook does."""
    found = []
    start = 0
    while len(found) < count:
        for draws in rows(seed, "examples", start, count):
            drawn = draw_problem(draws, "train")
            if drawn is None:
                continue
            (steps, answer), language = drawn.work(draws), drawn.problem.language
            response = textbook(worked(steps, [language] * len(steps)), answer, language)
            found.append({"question": drawn.problem.question, "response": response, "language": language})
        start += count
    return found[:count]


def textbook(work: str, answer: str, language: Language) -> str:
    """How a textbook writes a solution: without tags."""
    return f"{work}{'. ' if language == 'en' else '。'}{answer}"


def from_textbook(text: str) -> tuple[str, str] | None:
    """(work, answer) of what `textbook` writes; None where the text is anything else."""
    found = re.fullmatch(r"(.+?)(?:\. |。)(.+)", text.strip())
    return (found[1], found[2]) if found else None
