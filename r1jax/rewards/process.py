"""The parent's side of one worker process."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.connection import Connection

from r1jax.errors import ConfigError

_START_TIMEOUT = 60.0  # seconds: a worker imports the modules of the reward functions, which may be heavy
_COMMAND = (
    "import sys; sys.path[:] = {path!r}; from r1jax.rewards.worker import serve; serve({tasks}, {lifeline}, {memory})"
)


class WorkerProcess:
    """A fresh interpreter running `worker.serve`, in a session of its own, so that a kill takes its children too.

    Not multiprocessing: fork copies a JAX process's threads and locks, and spawn and forkserver import the parent's
    main script again, and JAX with it.
    """

    def __init__(self, functions: dict[str, bytes], memory: int | None = None):
        """Starts the process, without waiting for it.

        `functions` are pickled; `memory` is how many bytes they may allocate beyond what the process starts with.
        """
        ours, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        path = [str(entry) for entry in sys.path]
        command = _COMMAND.format(path=path, tasks=theirs.fileno(), lifeline=lifeline, memory=memory)
        self._process = subprocess.Popen(
            [sys.executable, "-c", command],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), lifeline),
            start_new_session=True,
        )
        theirs.close()
        os.close(lifeline)
        self._tasks = Connection(ours.detach())
        with contextlib.suppress(OSError):  # a process that has died already is reported by `wait_ready`
            self._tasks.send(functions)

    def wait_ready(self) -> None:
        """Waits until the functions are loaded. Raises `ConfigError` where one cannot be."""
        try:
            problem = self.receive(time.monotonic() + _START_TIMEOUT)
        except TimeoutError:
            problem = f"a reward worker was not ready after {_START_TIMEOUT:.0f} s"
        except (EOFError, OSError):
            problem = "a reward worker died while it started"
        if problem is not None:
            raise ConfigError(f"{problem}: define reward functions in a module that a fresh Python process can import")

    def send(self, message: object) -> None:
        self._tasks.send(message)

    def receive(self, deadline: float) -> object:
        """The next message. Raises `TimeoutError` at `deadline` (monotonic seconds), `EOFError` if the worker died."""
        if not self._tasks.poll(max(0.0, deadline - time.monotonic())):
            raise TimeoutError
        return self._tasks.recv()

    def kill(self) -> None:
        """Ends the process and its children; any thread may call it, and a `receive` under way raises."""
        if self._process.returncode is None:  # not reaped yet, so its id cannot be another's
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def close(self) -> None:
        """Kills, and frees the descriptors; only for the thread that sends and receives."""
        self.kill()
        self._tasks.close()
        os.close(self._lifeline)
