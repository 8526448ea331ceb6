"""Whether two answers mean the same.

Most comparisons are settled here, exactly and in microseconds (`r1jax.rewards.exact`). The rest goes to math-verify in
worker processes, which are killed at a deadline, limited in memory and replaced after a number of gradings, so that no
answer can hang or crash whoever asked.
"""

import atexit
import os
import pickle
import queue
import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

from r1jax.errors import RewardError, check_field
from r1jax.rewards.answers import gold_answer
from r1jax.rewards.exact import same
from r1jax.rewards.expression_parser import GREEK
from r1jax.rewards.expressions import Unreadable
from r1jax.rewards.latex import clean, scan, squash, without_hidden
from r1jax.rewards.meaning import NAME, Relation, Senseless, read
from r1jax.rewards.process import WorkerProcess
from r1jax.rewards.symbolic import symbolic_equality
from r1jax.rewards.units import without_unit

MAX_ANSWER = (
    1000  # characters; a longer answer is wrong unread, a longer gold one cannot be parsed (MATH's have up to 120)
)
_MAX_DEPTH = 30  # of brackets, in what goes to algebra
_START = 60.0  # seconds in which a worker must have imported sympy
_FUNCTIONS = {"symbolic": pickle.dumps(symbolic_equality)}
_NOT_ALGEBRA = re.compile(
    r'"|(?<![A-Za-z\\])(?!(?:sqrt|frac|[pbvBV]?matrix|array)(?![A-Za-z]))(?=[A-Z]*[a-z])[A-Za-z]{4,}'
    r"|(?<![A-Za-z])'|__|[^\x20-\x7e]"
)
_OPERATION = re.compile(r"\\(?:sum|prod|int|lim|gcd|lcm|max|min|det|begin\{vmatrix)(?![A-Za-z])")
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_DEGREES = re.compile(r"([0-9.]+)\s*\^(?:\{\\circ\}|\\circ)")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_ALGEBRA = GREEK | frozenset(  # what math-verify is known to understand; it reads \phantom{5} as 5
    "pi frac sqrt binom cdot times div pm mp sum prod int lim to infty log ln exp sin cos tan cot sec csc arcsin "
    "arccos arctan sinh cosh tanh max min gcd lcm le ge ne in cup cap setminus emptyset subset subseteq "
    "circ overline overrightarrow vec hat bar lfloor rfloor lceil rceil langle rangle begin end mathbb mathcal angle "
    "triangle approx partial prime det operatorname text".split()
)


@dataclass(frozen=True)
class _Question:
    """What algebra is asked: whether `answer` equals `gold`; or, where `answer` is "", only whether `gold` parses."""

    gold: str
    answer: str
    verdict: bool | None
    """What holds if algebra can parse the gold answer; None: what algebra says."""
    otherwise: bool | None
    """What holds if it cannot."""


class EquivalencePool:
    """Compares answers, with processes for what needs algebra, which start when first needed. Threads may share it.

    Args:
      workers: processes at most.
      deadline: seconds for one grading by algebra. Its worker is then killed, and the answer is wrong: were it not
        scored, writing what hangs would save a model from being marked down.
      gradings: how many a worker serves before it is replaced: sympy's caches grow.
      memory: bytes that a worker may allocate beyond what it starts with.

    `asked` counts gradings by algebra, `timeouts` and `crashes` those of them that were lost.
    """

    def __init__(self, workers: int = 1, deadline: float = 2.0, gradings: int = 1000, memory: int = 1 << 30):
        check_field(workers >= 1, "workers", workers, "an integer >= 1")
        check_field(deadline > 0, "deadline", deadline, "seconds > 0")
        check_field(gradings >= 1, "gradings", gradings, "an integer >= 1")
        check_field(memory > 0, "memory", memory, "bytes > 0")
        self.workers, self.asked, self.timeouts, self.crashes = workers, 0, 0, 0
        self._deadline, self._closed = deadline, False
        self._slots: queue.LifoQueue[_Slot] = queue.LifoQueue()  # the last used is the next: few are started
        for _ in range(workers):
            self._slots.put(_Slot(gradings, memory))
        self._by_algebra = lru_cache(maxsize=10_000)(self._ask)

    def equivalent(self, gold: str, answer: str | None) -> bool | None:
        """Whether `answer` (None: there is none) means what `gold` does; None where `gold` cannot be parsed.

        Raises `RewardError` where the pool is closed, or math-verify is needed and not installed.
        """
        return self.compare([gold], [answer])[0]

    def compare(self, golds: Sequence[str], answers: Sequence[str | None]) -> list[bool | None]:
        """`equivalent` of each pair, those that need algebra spread over the workers. Repeated pairs are asked once."""
        found = [_without_algebra(gold, answer) for gold, answer in zip(golds, answers, strict=True)]
        questions = list(dict.fromkeys(each for each in found if isinstance(each, _Question)))
        if self.workers == 1 or len(questions) < 2:
            settled = dict(zip(questions, map(self._settle, questions), strict=True))
        else:
            with ThreadPoolExecutor(min(self.workers, len(questions))) as threads:
                settled = dict(zip(questions, threads.map(self._settle, questions), strict=True))
        return [settled[each] if isinstance(each, _Question) else each for each in found]

    def close(self) -> None:
        """Ends the workers, after the gradings under way."""
        self._closed = True
        slots = [self._slots.get() for _ in range(self.workers)]
        for slot in slots:
            slot.stop()
            self._slots.put(slot)

    def __enter__(self) -> "EquivalencePool":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _settle(self, question: _Question) -> bool | None:
        score = self._by_algebra(question.gold, question.answer)
        if score is None:
            return question.otherwise
        return bool(score) if question.verdict is None else question.verdict

    def _ask(self, gold: str, answer: str) -> float | None:
        slot = self._slots.get()
        try:
            if self._closed:
                raise RewardError("the equivalence pool is closed: keep it open until its answers are compared")
            self.asked += 1
            return slot.grade(gold, answer, self._deadline)
        except TimeoutError:
            self.timeouts += 1
        except (EOFError, OSError):
            self.crashes += 1
        finally:
            self._slots.put(slot)
        return 0.0 if answer else None


class _Slot:
    """One worker process at a time."""

    def __init__(self, gradings: int, memory: int):
        self._gradings, self._memory, self._served = gradings, memory, 0
        self._process: WorkerProcess | None = None

    def grade(self, gold: str, answer: str, deadline: float) -> float | None:
        """Raises `TimeoutError` after `deadline` seconds, `EOFError` or `OSError` if the worker dies."""
        for fresh in (self._process is None, True):
            if self._process is None:
                self._start()
            try:
                scores, error = self._call(gold, answer, deadline)
                break
            except (EOFError, OSError) as lost:
                self.stop()
                if fresh or isinstance(lost, TimeoutError):
                    raise  # else it may have died before it was asked
        self._served += 1
        if error is not None or self._served >= self._gradings:
            self.stop()
        if error is not None:  # of memory, or of recursion
            return 0.0 if answer else None
        return scores[0]

    def stop(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None

    def _start(self) -> None:
        self._process, self._served = WorkerProcess(_FUNCTIONS, self._memory), 0
        try:
            self._process.wait_ready()
            _, error = self._call("1", "", _START)
        except BaseException:
            self.stop()
            raise
        if error is not None:
            self.stop()
            raise RewardError(f"answers cannot be compared by algebra ({error}): pip install math-verify")

    def _call(self, gold: str, answer: str, seconds: float) -> tuple[list[float | None] | None, str | None]:
        task = pickle.dumps({"prompts": [""], "completions": [answer], "answer": [gold]})
        self._process.send(("symbolic", task))
        return self._process.receive(time.monotonic() + seconds)


def _without_algebra(gold: str, answer: str | None) -> bool | _Question | None:
    """The verdict, or what algebra has to be asked for it."""
    expected, plain = _gold(gold)
    for_algebra = _for_algebra(expected)
    if not plain and for_algebra is None:
        return None
    given = _given(answer)
    verdict = False if given is None else same(expected, given)
    if verdict is None and _is_unfinished(expected, given):
        verdict = False
    text = None if verdict is not None else _for_algebra(given)
    if text is None or for_algebra is None:
        verdict = bool(verdict)
        return verdict if plain else _Question(for_algebra, "", verdict, None)
    return _Question(for_algebra, text, None, False if plain else None)


def _is_unfinished(gold: str, answer: str) -> bool:
    """Whether an answer leaves to be done what the question asks, which algebra would do for it: an equation or an
    inequality that is not solved, an operation that is not carried out."""
    if any(operation not in gold for operation in _OPERATION.findall(answer)):
        return True
    given, expected = read(answer), read(gold)
    unsolved = isinstance(given, Relation) and not _is_solved(given)
    return unsolved and not (isinstance(expected, Relation) and not _is_solved(expected))


def _is_solved(relation: Relation) -> bool:
    """x = ..., a < x < b, -x < a: one side is a name that stands on no other."""
    sides = [squash(side) for side in relation.sides]
    return any(
        NAME.fullmatch(side.lstrip("-"))
        and not any(side.lstrip("-") in other for j, other in enumerate(sides) if j != i)
        for i, side in enumerate(sides)
    )


@lru_cache(maxsize=4096)
def _gold(gold: str) -> tuple[str, bool]:
    """(the cleaned gold answer, whether it can be read without algebra)"""
    expected = clean(without_hidden(gold_answer(gold)[: MAX_ANSWER + 1]))
    if len(expected) > MAX_ANSWER:
        return "", False
    meaning = read(expected)
    if isinstance(meaning, Senseless) and not meaning.large:
        return "", False
    return expected, meaning is not None


def _given(answer: str | None) -> str | None:
    """The cleaned answer; None where there is none, or it is too long to be one.

    Characters that nobody sees, and digits of other scripts but full-width ones, stay: with them nothing is equal to a
    gold answer.
    """
    if answer is None or len(answer) > MAX_ANSWER:
        return None
    return clean(answer) or None


def _for_algebra(text: str) -> str | None:
    """A cleaned answer as algebra takes it, without its unit; None where it is no formula, or has no value."""
    try:
        text, _ = without_unit(text)
        depth = max((depth for _, _, depth in scan(text)), default=_MAX_DEPTH)
    except (Unreadable, ValueError):
        return None
    if (
        depth >= _MAX_DEPTH
        or not re.search("[A-Za-z0-9]", text)
        or _NOT_ALGEBRA.search(text)
        or isinstance(read(text), Senseless)
    ):
        return None
    if any(name not in _ALGEBRA for name in _COMMAND.findall(text)):
        return None
    if _TRIGONOMETRY.search(text):  # elsewhere degrees are a unit
        text = _DEGREES.sub(r"(\1\\cdot\\frac{\\pi}{180})", text)
    return text.replace("%", r"\%")


_default: EquivalencePool | None = None
_lock = threading.Lock()


def equivalent(gold: str, answer: str | None) -> bool | None:
    """Whether `answer` means what `gold` does, the gold answer first; None where `gold` cannot be parsed.

    Either may be LaTeX or plain, the gold one also boxed or in a sentence. Equal are 1/2 and 0.5, 10% and 10 or 0.1,
    5 cm and 5, x = 5 and 5, lists in any order. A decimal stands for something exact if it shows six significant digits
    of it. An answer that cannot be compared within two seconds is wrong.
    """
    return compare([gold], [answer])[0]


def compare(golds: Sequence[str], answers: Sequence[str | None]) -> list[bool | None]:
    """`equivalent` of each pair, with one worker process, which this process keeps; `EquivalencePool` takes more."""
    return _shared().compare(golds, answers)


def _shared() -> EquivalencePool:
    global _default
    with _lock:
        if _default is None:
            _default = EquivalencePool()
            atexit.register(_default.close)
        return _default


def _forget() -> None:
    """A forked child must neither talk to its parent's worker nor end it."""
    global _default, _lock
    if _default is not None:
        atexit.unregister(_default.close)
    _default, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)
