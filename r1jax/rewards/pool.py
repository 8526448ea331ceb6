"""Runs reward functions in worker processes with deadlines, while the device works on something else."""

import functools
import math
import pickle
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from r1jax.errors import ConfigError, RewardError, check_field
from r1jax.rewards.combination import combine
from r1jax.rewards.parameters import takes_token_ids
from r1jax.rewards.process import WorkerProcess
from r1jax.rewards.registry import RewardFunction, get_reward
from r1jax.rewards.worker import evaluate

_CLOSED = "the reward pool is closed: keep it open until its batches are scored"
_GRACE = 0.5  # seconds beyond the deadline in which the pool's threads put down their tasks


@dataclass(frozen=True)
class RewardBatch:
    """Scores of B completions under F reward functions.

    `rewards` float32 [B, F] holds nan where a function returned None, was lost, or is not meant for the row's domain;
    `total` float32 [B] is what `combine` makes of them, nan where a function that counts has no score: such a row
    cannot be scored and gets no advantage.
    `timeouts` and `crashes` count the scores, of the B x F, lost to the deadline and to workers that died.
    """

    names: tuple[str, ...]
    rewards: np.ndarray
    total: np.ndarray
    timeouts: int
    crashes: int


class RewardHandle:
    """A batch being scored."""

    def __init__(
        self,
        names: tuple[str, ...],
        weights: np.ndarray,
        rows: int,
        deadline: float,
        gate: str | None = None,
        applies: np.ndarray | None = None,
    ):
        self.deadline = deadline
        self._names, self._weights = names, weights
        self._gate = None if gate is None else names.index(gate)
        self._applies = np.ones((rows, len(names)), bool) if applies is None else applies
        self._rewards = np.full((rows, len(names)), np.nan, np.float32)
        self._pending = self._applies.copy()
        self._local: list[Callable[[], None]] = []  # scores that `result` has to make itself
        self._lost = {"timeouts": 0, "crashes": 0}
        self._error: str | None = None
        self._changed = threading.Condition()

    def result(self) -> RewardBatch:
        """Runs the local functions, if any, and waits for the workers' scores, at most shortly beyond the deadline.

        Raises `RewardError` if a function raised or returned anything but one number or None for each completion.
        """
        while self._local and self._error is None:
            self._local.pop(0)()
        with self._changed:
            self._changed.wait_for(
                lambda: self._error is not None or not self._pending.any(),
                timeout=max(0.0, self.deadline - time.monotonic()) + _GRACE,
            )
            if self._error is not None:
                raise RewardError(self._error)
            rewards, timeouts = self._rewards.copy(), self._lost["timeouts"] + int(self._pending.sum())
        total = combine(rewards, self._weights, self._gate, self._applies)
        return RewardBatch(self._names, rewards, total, timeouts, self._lost["crashes"])

    def _settle(
        self,
        rows: np.ndarray,
        function: int,
        scores: Sequence[float | None] | None = None,
        error: str | None = None,
        lost: Literal["timeouts", "crashes"] | None = None,
    ) -> None:
        """Ends one task, with its scores, with an error, or with its scores lost."""
        with self._changed:
            self._error = self._error or error
            if scores is not None:
                self._rewards[rows, function] = [np.nan if score is None else score for score in scores]
            if lost is not None:
                self._lost[lost] += len(rows)
            self._pending[rows, function] = False
            self._changed.notify_all()


@dataclass(frozen=True)
class _Task:
    """One function on some rows of a batch, by number; `arguments` are its pickled keyword arguments."""

    handle: RewardHandle
    rows: np.ndarray
    function: int
    arguments: bytes

    def settle(self, **outcome) -> None:
        self.handle._settle(self.rows, self.function, **outcome)


class RewardPool:
    """Reward functions of TRL's signature, `f(prompts, completions, **columns) -> list[float | None]`, in processes.

    Args:
      functions: by name, or a list that goes by the functions' own names. A function is a callable that a fresh
        process can import, or a string for `get_reward`.
      weights: by name, or in order; 1 each by default.
      gate: the name of a function without whose 1 the others only take away, as `combine` says; None: no gate.
      local: functions that run in this process, because they need its device (a reward model), given as `functions`
        are; names, weights and scores follow those of `functions`, which may then be empty. They are called on the
        whole batch, in `RewardHandle.result`, while the workers grade; nothing ends one that takes long.
      domains: by a function's name, the domains that it is meant for: it is called for the rows whose column "domain"
        is among them, and absent from the total of the others, as `combine` says. Functions without an entry are meant
        for all rows. R1's last stage has rule rewards on reasoning prompts and preference rewards on general ones
        (arXiv 2501.12948, section 3.2).
      num_workers: processes. They start here and serve every batch; they end with the pool, or with this process
        however it ends.
      timeout: seconds from `submit` until the unfinished scores of a batch are given up. A worker that is still busy
        then is killed and replaced.
      rows_per_task: how many completions a function is given at a time. One hang costs as many scores, and with a
        single worker all that wait behind it. None gives a function the whole batch, as one that compares
        completions needs.

    Raises `ConfigError` for settings that cannot work and functions that a worker cannot load.
    """

    def __init__(
        self,
        functions: Mapping[str, RewardFunction | str] | Sequence[RewardFunction | str],
        weights: Mapping[str, float] | Sequence[float] | None = None,
        num_workers: int = 1,
        timeout: float = 60.0,
        rows_per_task: int | None = 16,
        gate: str | None = None,
        local: Mapping[str, RewardFunction] | Sequence[RewardFunction] = (),
        domains: Mapping[str, Sequence[str]] | None = None,
    ):
        check_field(num_workers >= 1, "num_workers", num_workers, "an integer >= 1")
        check_field(timeout > 0, "timeout", timeout, "seconds > 0")
        check_field(rows_per_task is None or rows_per_task >= 1, "rows_per_task", rows_per_task, "None, or >= 1")
        named, self._local = _named(functions), _named(local)
        check_field(bool(named) or bool(self._local), "functions", functions, "give at least one reward function")
        shared = sorted(set(named) & set(self._local))
        check_field(not shared, "local", shared, "functions has these names already; give a dict of other names")
        self._functions = {name: _pickled(name, function) for name, function in named.items()}
        named |= self._local
        self._token_functions = {name for name, function in named.items() if takes_token_ids(function)}
        self.names = tuple(named)
        check_field(gate is None or gate in self.names, "gate", gate, f"must be one of {', '.join(self.names)}")
        self._gate = gate
        self._weights = _in_order(weights, self.names)
        self._domains = _checked_domains(domains or {}, self.names)
        self._timeout, self._rows_per_task = timeout, rows_per_task
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._failure: str | None = None
        self._workers = [WorkerProcess(self._functions) for _ in range(num_workers if self._functions else 0)]
        try:
            for worker in self._workers:
                worker.wait_ready()
        except BaseException:
            for worker in self._workers:
                worker.close()
            raise
        self._threads = [
            threading.Thread(target=self._serve, args=(slot,), name=f"reward-pool-{slot}", daemon=True)
            for slot in range(len(self._workers))
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]] | None = None,
        completion_ids: Sequence[np.ndarray] | None = None,
    ) -> RewardHandle:
        """Starts scoring B completions and returns at once; `columns` are further keyword arguments, each a list [B].

        `completion_ids` are the token ids of each completion. Only functions that name an argument of that name are
        sent them, as lists of int.

        Raises `RewardError` where lengths differ, a column cannot be sent, or the pool is closed.
        """
        if self._failure is not None:
            raise RewardError(self._failure)
        if self._token_functions and completion_ids is None:
            raise RewardError(f"reward function {min(self._token_functions)!r} takes completion_ids: pass token ids")
        batch = {**(columns or {}), "prompts": prompts, "completions": completions}
        ids = {"completion_ids": completion_ids} if self._token_functions else {}
        rows = len(completions)
        for name, column in (batch | ids).items():
            if len(column) != rows:
                raise RewardError(f"column {name!r} has {len(column)} values for {rows} completions: give one for each")
        applies = self._applies(batch, rows)
        deadline = time.monotonic() + self._timeout
        handle = RewardHandle(self.names, self._weights, rows, deadline, self._gate, applies)
        for task in self._worker_tasks(handle, batch, ids, applies):
            self._tasks.put(task)
        handle._local += self._local_tasks(handle, batch, ids, applies)
        return handle

    def _applies(self, batch: Mapping[str, Sequence[Any]], rows: int) -> np.ndarray:
        """bool [B, F]: which functions each row is meant for."""
        applies = np.ones((rows, len(self.names)), bool)
        for name, domains in self._domains.items():
            if "domain" not in batch:
                raise RewardError(f"reward function {name!r} is for domains {', '.join(domains)}: pass a column domain")
            applies[:, self.names.index(name)] = [domain in domains for domain in batch["domain"]]
        return applies

    def _worker_tasks(self, handle: RewardHandle, batch: Mapping, ids: Mapping, applies: np.ndarray) -> list[_Task]:
        tasks = []
        for start in range(0, len(applies), self._rows_per_task or len(applies) or 1):
            span = np.arange(start, min(len(applies), start + (self._rows_per_task or len(applies))))
            packed: dict[tuple[bytes, bool], bytes] = {}  # functions that are sent the same share it
            for function, name in enumerate(self._functions):
                rows = span[applies[span, function]]
                if not len(rows):
                    continue
                key = (rows.tobytes(), name in self._token_functions)
                if key not in packed:
                    packed[key] = _packed(batch | ids if key[1] else batch, rows)
                tasks.append(_Task(handle, rows, function, packed[key]))
        return tasks

    def _local_tasks(
        self, handle: RewardHandle, batch: Mapping, ids: Mapping, applies: np.ndarray
    ) -> list[Callable[[], None]]:
        def task(function: int, name: str, rows: np.ndarray) -> None:
            keywords = _chosen(batch | ids if name in self._token_functions else batch, rows)
            scores, error = evaluate(name, self._local[name], keywords)
            handle._settle(rows, function, scores, error)

        numbered = enumerate(self._local, len(self._functions))
        due = [(function, name, np.flatnonzero(applies[:, function])) for function, name in numbered]
        return [functools.partial(task, *each) for each in due if len(each[2])]

    def close(self) -> None:
        """Ends the workers. Batches still under way raise `RewardError`."""
        self._failure = self._failure or _CLOSED
        for _ in self._threads:
            self._tasks.put(None)
        for worker in self._workers:
            worker.kill()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> "RewardPool":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _serve(self, slot: int) -> None:
        """Hands tasks to one worker, and replaces it when it hangs or dies; a thread's whole life."""
        while (task := self._tasks.get()) is not None:
            if self._failure is not None:
                task.settle(error=self._failure)
            elif time.monotonic() >= task.handle.deadline:
                task.settle(lost="timeouts")
            else:
                try:
                    self._workers[slot].send((self.names[task.function], task.arguments))
                    scores, error = self._workers[slot].receive(task.handle.deadline)
                    task.settle(scores=scores, error=error)
                    continue
                except TimeoutError:
                    outcome = {"lost": "timeouts"}
                except (EOFError, OSError):
                    outcome = {"lost": "crashes"}
                task.settle(**(outcome if self._failure is None else {"error": self._failure}))
                if self._failure is None:
                    self._replace(slot)
        self._workers[slot].close()

    def _replace(self, slot: int) -> None:
        self._workers[slot].close()
        self._workers[slot] = WorkerProcess(self._functions)
        try:
            self._workers[slot].wait_ready()
        except ConfigError as error:
            self._failure = self._failure or str(error)


def _named(functions: Mapping[str, RewardFunction | str] | Sequence[RewardFunction | str]) -> dict[str, RewardFunction]:
    """The functions themselves, by name."""
    if not isinstance(functions, Mapping):
        named = {(f if isinstance(f, str) else getattr(f, "__name__", type(f).__name__)): f for f in functions}
        check_field(len(named) == len(functions), "functions", list(named), "two share a name; give a dict of names")
        functions = named
    named = {name: get_reward(f) if isinstance(f, str) else f for name, f in functions.items()}
    for name, function in named.items():
        check_field(callable(function), f"functions[{name!r}]", function, "give a callable or the name of one")
    return named


def _pickled(name: str, function: RewardFunction) -> bytes:
    """A function as a worker receives it."""
    try:
        pickled = pickle.dumps(function)
    except Exception as error:
        raise ConfigError(_unloadable(name, error)) from None
    while isinstance(function, functools.partial):
        function = function.func
    if getattr(function, "__module__", None) == "__main__":
        raise ConfigError(_unloadable(name, "it is defined in the main script"))
    return pickled


def _chosen(batch: Mapping[str, Sequence[Any]], rows: np.ndarray) -> dict[str, list[Any]]:
    """The keyword arguments for some rows of a batch."""
    return {name: [column[row] for row in rows] for name, column in batch.items()}


def _packed(batch: Mapping[str, Sequence[Any]], rows: np.ndarray) -> bytes:
    """The keyword arguments of a task."""
    try:
        return pickle.dumps(_chosen(batch, rows))
    except Exception as error:
        raise RewardError(f"columns {sorted(batch)} cannot be pickled ({error}): use plain values") from None


def _unloadable(name: str, reason: object) -> str:
    return (
        f"reward function {name!r} cannot be sent to a worker process ({reason}): "
        "define it at the top level of a module and import it from there"
    )


def _in_order(weights: Mapping[str, float] | Sequence[float] | None, names: tuple[str, ...]) -> np.ndarray:
    """The weights as float32 [F], in the order of `names`."""
    if weights is None:
        weights = [1.0] * len(names)
    if isinstance(weights, Mapping):
        check_field(set(weights) == set(names), "weights", dict(weights), f"give one for each of {', '.join(names)}")
        weights = [weights[name] for name in names]
    ok = len(weights) == len(names) and all(math.isfinite(weight) for weight in weights)
    check_field(ok, "weights", list(weights), f"give one finite number for each of {', '.join(names)}")
    return np.array(weights, np.float32)


def _checked_domains(domains: Mapping[str, Sequence[str]], names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    for name, values in domains.items():
        check_field(name in names, "domains", name, f"no such function; use one of {', '.join(names)}")
        ok = not isinstance(values, str) and len(values) > 0 and all(isinstance(value, str) for value in values)
        check_field(ok, f"domains[{name!r}]", values, "give one domain or more, as a tuple of texts")
    return {name: tuple(values) for name, values in domains.items()}
