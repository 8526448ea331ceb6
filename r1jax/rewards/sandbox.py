"""Runs programs that may be hostile, apart from everything: the grader's side of `sandbox_jail`.

What a program gets: Python's installation and the system's programs and libraries, read-only; an empty folder of
limited size, in which it starts; a private /proc; null, zero, full, random and urandom. What it has not: a network, the
user's files, the environment, other processes in sight, capabilities, the system calls of `seccomp`. When its first
process ends, so does all that it started. It runs as nobody where the grader is root, otherwise as the user, but with
none of the user's files.

Memory: a program is one process with threads unless `Limits.forks`, so that `memory_mb` is all that it can map and
`scratch_mb` all that it can store; what remains are the buffers of its pipes and sockets, some tens of MB.
With `forks` every process has `memory_mb` for itself, and there are at most `threads` of them.
"""

import atexit
import contextlib
import errno
import marshal
import os
import platform
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from r1jax.errors import ConfigError, RewardError
from r1jax.rewards import seccomp

SCRATCH = "/scratch"  # the one folder that a program can write to, and starts in
_SYSTEM = [
    *("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store", "/etc/alternatives"),
    *(
        f"{top}/{name}"
        for top in ("/usr", "/usr/local")
        for name in ("bin", "lib", "lib32", "lib64", "libexec", "include")
    ),
]  # not all of /usr: images for containers keep projects in /usr/src
_SYSTEM_FILES = ["/etc/ld.so.cache"]
_DEVICES = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"]
_LINKS = {
    "/dev/fd": "/proc/self/fd",
    **{f"/dev/{n}": f"/proc/self/fd/{i}" for i, n in enumerate(("stdin", "stdout", "stderr"))},
}
_GRACE = 20.0  # seconds beyond a program's own in which a busy machine may start and end it
_EXHAUSTED = {errno.EAGAIN, errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE}
_MB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What one run may use. Times are in seconds, sizes in MiB where a name says so."""

    wall_seconds: float = 10.0
    cpu_seconds: int = 10
    """Of each process."""
    memory_mb: int = 512
    """Address space of each process."""
    stack_mb: int = 8
    scratch_mb: int = 64
    scratch_files: int = 1024
    output_bytes: int = _MB
    """Of standard output; a program that writes more is ended. Of standard error the last 16 KiB are kept."""
    threads: int = 32
    """Threads, and processes where there may be several."""
    forks: bool = False
    """Whether it may start processes, as a compiler does."""
    open_files: int = 64


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    stdout: bytes
    stderr: bytes
    end: Literal["", "time", "output", "cancelled"]
    """Why it was ended; empty where it ended by itself."""
    exit_code: int | None
    """0 is no proof of anything: a program chooses it. Minus the signal that killed it; None where it was ended."""
    cpu_seconds: float
    """0 where it was ended."""
    wall_seconds: float

    @property
    def ok(self) -> bool:
        return self.end == "" and self.exit_code == 0


class Sandbox:
    """Starts programs in isolation. Any thread may use it; a keeper process stands behind it until `close`.

    The keeper ends with this process, however this process ends, and every program with it.

    Args:
      unsafe_no_isolation: run programs as ordinary child processes of this user, with limits on memory, time, size and
        output, and nothing else: they can read, write and send whatever the user can, and leave processes behind. For
        machines that allow no isolation, and programs that are trusted.

    Raises `ConfigError` where the machine can give no isolation.
    """

    def __init__(self, unsafe_no_isolation: bool = False):
        self._isolated = not unsafe_no_isolation
        self._lock = threading.Lock()
        if sys.platform != "linux" or (self._isolated and not seccomp.supported()):
            raise ConfigError(
                f"programs cannot be run here ({sys.platform} on {platform.machine()}): use Linux on x86_64 or aarch64"
            )
        self._start_keeper()
        outcome = self.run([PYTHON, *PYTHON_FLAGS, "-c", "print('ready')"], limits=Limits(wall_seconds=30.0))
        if outcome.stdout != b"ready\n":
            problem = outcome.stderr.decode(errors="replace").strip() or f"exit code {outcome.exit_code}"
            raise ConfigError(_refusal(f"Python does not start in it: {problem}"))

    def start(
        self,
        argv: Sequence[str],
        stdin: bytes = b"",
        files: Mapping[str, bytes] | None = None,
        limits: Limits | None = None,
        channel: socket.socket | None = None,
        discard_output: bool = False,
    ) -> "Run":
        """Starts a program and returns at once.

        `argv` begins with an absolute path; `files` are put into its folder, in which it starts; a `channel` is its
        descriptor 3, and closed here; `discard_output` sends its standard output nowhere, where no limit applies. What
        cannot be executed ends with exit code 127.

        Raises `RewardError` where the keeper has ended and ends again as soon as it is started.
        """
        limits = limits or Limits()
        ours, theirs = socket.socketpair()
        request = {
            "argv": list(argv),
            "stdin": stdin,
            "files": dict(files or {}),
            "environment": _ENVIRONMENT,
            "discard_output": discard_output,
            "wall_seconds": limits.wall_seconds,
            "output_bytes": limits.output_bytes,
            "seccomp": seccomp.build_filter(limits.forks) if self._isolated else b"",
            "limits": {
                "cpu_seconds": limits.cpu_seconds,
                "memory_bytes": limits.memory_mb * _MB,
                "stack_bytes": limits.stack_mb * _MB,
                "scratch_bytes": limits.scratch_mb * _MB,
                "scratch_files": limits.scratch_files,
                "open_files": limits.open_files,
                "threads": limits.threads,
            },
        }
        try:
            with theirs:
                self._hand_over([theirs, *([channel] if channel else [])])
        finally:
            if channel:
                channel.close()
        data = marshal.dumps(request)
        try:
            ours.sendall(len(data).to_bytes(8, "little") + data)
        except OSError:
            pass  # `Run.result` says so
        return Run(ours, limits.wall_seconds)

    def run(self, argv: Sequence[str], **options) -> Outcome:
        """`start` and wait."""
        return self.start(argv, **options).result()

    def close(self) -> None:
        """Ends the keeper. Runs under way go on until their limits."""
        with self._lock:
            self._stop_keeper()

    def _hand_over(self, sockets: list[socket.socket]) -> None:
        with self._lock:
            for attempt in (1, 2):
                try:
                    socket.send_fds(self._control, [b"r"], [s.fileno() for s in sockets])
                    return
                except OSError:  # the keeper has died: somebody killed it
                    if attempt == 2:
                        raise RewardError(
                            "the sandbox's keeper process ends as soon as it starts: see its messages"
                        ) from None
                    self._stop_keeper()
                    self._start_keeper()

    def _start_keeper(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._keeper = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    "-B",
                    str(Path(__file__).with_name("sandbox_jail.py")),
                    str(theirs.fileno()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _LOADER if name in os.environ},
                pass_fds=[theirs.fileno()],
            )
        try:
            self._control.send(
                marshal.dumps({"isolated": self._isolated, "scratch": SCRATCH, **(_root() if self._isolated else {})})
            )
            answer = self._control.recv(1 << 16)
            problem = marshal.loads(answer) if answer else "its process died"
        except OSError as error:
            problem = str(error)
        if problem is not None:
            self._stop_keeper()
            raise ConfigError(_refusal(problem))

    def _stop_keeper(self) -> None:
        self._control.close()
        try:
            self._keeper.wait(timeout=1.0)
        except subprocess.TimeoutExpired:  # a process forked from this one holds the connection too
            self._keeper.kill()
            self._keeper.wait()


class Run:
    """A program under way."""

    def __init__(self, connection: socket.socket, wall_seconds: float):
        self._connection = connection
        self._deadline = time.monotonic() + wall_seconds + _GRACE
        self._outcome: Outcome | None = None

    def result(self) -> Outcome:
        """Waits until nothing of the program is left.

        Raises `ConfigError` where isolation failed, `RewardError` where it could not be started or is lost.
        """
        if self._outcome is not None:
            return self._outcome
        data = bytearray()
        with self._connection, contextlib.suppress(OSError):
            while True:
                self._connection.settimeout(max(0.01, self._deadline - time.monotonic()))
                part = self._connection.recv(1 << 16)
                if not part:
                    break
                data += part
        try:
            answer = marshal.loads(data)
        except (EOFError, ValueError, TypeError):
            raise RewardError(
                "the sandbox lost a program: the machine has no processes or memory left, or it stands still; "
                "use fewer workers"
            ) from None
        failure = answer.pop("failure")
        if failure is not None:
            if failure[0] in _EXHAUSTED:
                raise RewardError(
                    f"the sandbox could not start a program ({failure[1]}): the machine has no processes or memory "
                    "left; use fewer workers"
                )
            raise ConfigError(_refusal(failure[1]))
        self._outcome = Outcome(**answer)
        return self._outcome

    def end(self) -> Outcome:
        """Ends the program if it has not ended."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
        return self.result()


_shared: dict[bool, Sandbox] = {}
_shared_lock = threading.Lock()


def shared_sandbox(unsafe_no_isolation: bool = False) -> Sandbox:
    """This process's one sandbox, started when it is first needed. Raises as `Sandbox` does."""
    with _shared_lock:
        if unsafe_no_isolation not in _shared:
            _shared[unsafe_no_isolation] = Sandbox(unsafe_no_isolation)
            atexit.register(_shared[unsafe_no_isolation].close)
        return _shared[unsafe_no_isolation]


PYTHON = os.path.realpath(sys.executable)
# Not -I: it would ignore PYTHONHASHSEED, with which sets of strings have one order in every run.
PYTHON_FLAGS = ("-S", "-s", "-B")
_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "PYTHONUTF8": "1",
    "MALLOC_ARENA_MAX": "2",  # each arena takes 64 MiB of a limited address space
}
_LOADER = ("LD_LIBRARY_PATH",)  # some installations of Python do not start without
if sysconfig.get_config_var("Py_ENABLE_SHARED"):
    _ENVIRONMENT["LD_LIBRARY_PATH"] = f"{os.path.dirname(os.path.dirname(PYTHON))}/lib"


def _root() -> dict:
    """What a program's file system consists of, as `sandbox_jail` takes it. All paths are free of symbolic links."""
    prefixes = {os.path.realpath(sys.base_prefix), os.path.dirname(os.path.dirname(PYTHON))}
    python = [f"{prefix}/{name}" for prefix in prefixes for name in ("lib", "lib64")]
    links = {path: os.readlink(path) for path in (*_SYSTEM, *python) if os.path.islink(path)}
    folders = []
    for path in sorted({path for path in (*_SYSTEM, *python) if path not in links and os.path.isdir(path)}):
        if not _covered(path, folders):
            folders.append(path)
    files = [path for path in (*_SYSTEM_FILES, PYTHON) if os.path.isfile(path) and not _covered(path, folders)]
    devices = [path for path in _DEVICES if os.path.exists(path)]
    links |= _LINKS
    if not any(path.startswith("/tmp/") for path in (*folders, *files)):  # as where Python was unpacked there
        links["/tmp"] = SCRATCH
    return {"folders": folders, "files": files, "devices": devices, "links": links}


def _covered(path: str, folders: Sequence[str]) -> bool:
    return any(path.startswith(folder + "/") for folder in folders)


def _refusal(problem: str) -> str:
    return (
        f"programs cannot be run in isolation here ({problem}): use Linux 5.14 or newer, with user namespaces for "
        "everyone (kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0, "
        "user.max_user_namespaces > 0) or as root with CAP_SYS_ADMIN (containers: --privileged), or accept the risk "
        "with unsafe_no_isolation=True"
    )
