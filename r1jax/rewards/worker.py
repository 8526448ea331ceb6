"""The process that runs reward functions for `RewardPool`. It imports no JAX: that takes seconds and a device."""

import fcntl
import numbers
import os
import pickle
import resource
import select
import signal
import traceback
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any

_LARGEST = 3e38  # what float32 holds; nan is not <= it either


def serve(tasks_fd: int, lifeline_fd: int, memory: int | None = None) -> None:
    """Answers tasks until the other end of the socket closes. `memory`: bytes that tasks may allocate, None: no limit.

    The first message is the pickled functions by name; the answer is None, or why one cannot be loaded. Every further
    message is (name, pickled keyword arguments); the answer is (scores, None) or (None, what is wrong with them).
    """
    _die_with_parent(lifeline_fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    tasks = Connection(tasks_fd)
    functions = {}
    try:
        for name, pickled in tasks.recv().items():
            functions[name] = pickle.loads(pickled)
    except Exception as error:
        tasks.send(f"reward function {name!r} cannot be loaded in a worker process ({_brief(error)})")
        return
    if memory is not None:
        _limit_memory(memory)
    tasks.send(None)
    while True:
        try:
            name, arguments = tasks.recv()
        except EOFError:
            return
        tasks.send(_evaluate(name, functions[name], arguments))


def _die_with_parent(lifeline_fd: int) -> None:
    """Has the kernel kill this process when the parent, which alone holds the pipe's other end, is gone.

    The signal is SIGIO, whose default action ends a process whatever it is doing: a thread that waits for the end of
    the pipe would never run while a reward function sits in C code that keeps the interpreter lock.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline_fd, fcntl.F_SETFL, fcntl.fcntl(lifeline_fd, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline_fd], [], [], 0)[0]:  # the parent was gone before the signal was armed
        os._exit(1)


def _limit_memory(more: int) -> None:
    """Has allocations fail `more` bytes above the address space in use, which threads' stacks alone can make large."""
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = used + more if hard == resource.RLIM_INFINITY else min(used + more, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _evaluate(name: str, function: Callable, arguments: bytes) -> tuple[list[float | None] | None, str | None]:
    try:
        keywords = pickle.loads(arguments)
    except Exception as error:
        return None, f"the columns for reward function {name!r} cannot be loaded in a worker process ({_brief(error)})"
    return evaluate(name, function, keywords)


def evaluate(name: str, function: Callable, keywords: dict[str, Any]) -> tuple[list[float | None] | None, str | None]:
    """(scores, None), or (None, what is wrong with them), of a reward function's answer to its keyword arguments."""
    label = f"reward function {name!r}"
    try:
        if "completion_ids" in keywords:  # they travel as arrays, and are lists for functions written for TRL
            ids = [row.tolist() if hasattr(row, "tolist") else row for row in keywords["completion_ids"]]
            keywords = keywords | {"completion_ids": ids}
        scores = function(**keywords)
        if isinstance(scores, Iterable):
            scores = [score.item() if hasattr(score, "item") else score for score in scores]
    except KeyboardInterrupt:  # only where it is a person's: workers ignore the signal
        raise
    except BaseException as error:  # a reward function that calls sys.exit has failed as well
        return None, f"{label} raised {_brief(error)}: mend it, or let it return None for what it cannot score"
    if not isinstance(scores, list):
        return None, f"{label} returned {scores!r:.80}: return a list, with a score or None for each completion"
    expected = len(keywords["completions"])
    if len(scores) != expected:
        return None, f"{label} returned {len(scores)} scores for {expected} completions: return one for each"
    for score in scores:
        if score is not None and not (isinstance(score, numbers.Real) and abs(score) <= _LARGEST):
            return (
                None,
                f"{label} returned {score!r:.80}: a score is a finite number, or None for what cannot be scored",
            )
    return [None if score is None else float(score) for score in scores], None


def _brief(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
