"""The sandbox: what programs try in order to get out, to stay, to take more than their share, or to end the grader.

Each attempt is a program that prints ESCAPED where it gets through. Many also run without isolation, where they must
get through: otherwise they would show nothing.
"""

import dataclasses
import errno
import os
import platform
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from escape_attempts import ATTEMPTS, FORKERS, GREEDY, PRELUDE

from r1jax.errors import ConfigError, RewardError
from r1jax.rewards import sandbox as sandbox_module
from r1jax.rewards import seccomp
from r1jax.rewards.sandbox import PYTHON, PYTHON_FLAGS, SCRATCH, Limits, Sandbox

SECRET = "b7c1e0-the-users-own-secret"
PROJECT_FILE = Path(sandbox_module.__file__)
OUR_NAMESPACES = Path("/proc/self/status").read_text().partition("NSpid:")[2].splitlines()[0].split()

try:
    Sandbox().close()
    REFUSED = None
except ConfigError as error:
    REFUSED = str(error)
pytestmark = pytest.mark.skipif(REFUSED is not None, reason=f"no isolation on this machine: {REFUSED}")


@dataclasses.dataclass(frozen=True)
class Outside:
    """What a program has no business with."""

    folder: Path
    port: int
    unix_path: str
    abstract: str

    def describe(self):
        return {
            "FOLDER": str(self.folder),
            "FILE": str(self.folder / "secret.txt"),
            "PORT": self.port,
            "UNIX": self.unix_path,
            "ABSTRACT": self.abstract,
            "SECRET": SECRET,
            "GRADER": os.getpid(),
            "HOME": str(Path.home()),
            "PROJECT": str(PROJECT_FILE),
            "SCRATCH": SCRATCH,
        }


@pytest.fixture(scope="module")
def outside():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "secret.txt").write_text(SECRET)
        listeners = []
        for family, address in (
            (socket.AF_INET, ("127.0.0.1", 0)),
            (socket.AF_UNIX, str(folder / "socket")),
            (socket.AF_UNIX, f"\0r1jax-{os.getpid()}"),
        ):
            listener = socket.socket(family)
            listener.bind(address)
            listener.listen()
            listeners.append(listener)
        os.environ["R1JAX_TEST_SECRET"] = SECRET
        yield Outside(folder, listeners[0].getsockname()[1], str(folder / "socket"), f"\0r1jax-{os.getpid()}")
        del os.environ["R1JAX_TEST_SECRET"]
        for listener in listeners:
            listener.close()


@pytest.fixture(scope="module")
def sandbox(outside):
    box = Sandbox()
    yield box
    box.close()


@pytest.fixture(scope="module")
def no_sandbox(outside):
    box = Sandbox(unsafe_no_isolation=True)
    yield box
    box.close()


def run(box, source, limits=None, **options):
    return box.run([PYTHON, *PYTHON_FLAGS, "-c", source], limits=limits or LIMITS, **options)


def nested_processes():
    """Processes in a process namespace below ours, by id: those in our process group, as inits are, or started by us.

    Other sandboxes may be at work on the machine.
    """
    parents, nested = {}, set()
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            status = dict(line.split(":\t", 1) for line in path.read_text().splitlines() if ":\t" in line)
            group = os.getpgid(int(path.parent.name))
        except (OSError, ValueError):
            continue
        parents[int(path.parent.name)] = int(status["PPid"])
        if len(status["NSpid"].split()) > len(OUR_NAMESPACES):
            nested.add((int(path.parent.name), group))
    found = set()
    for pid, group in nested:
        ancestor = pid
        while ancestor not in (0, os.getpid()):
            ancestor = parents.get(ancestor, 0)
        if group == os.getpgrp() or ancestor:
            found.add(pid)
    return found


def started(count, before):
    """Nested processes that were not there `before`, once there are `count`."""
    deadline = time.monotonic() + 10
    while len(found := nested_processes() - before) < count:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


LIMITS = Limits(wall_seconds=8.0, cpu_seconds=1, memory_mb=256, scratch_mb=8, scratch_files=64, threads=16)
# Their own end: none of these programs ends by itself.
BRIEF = dataclasses.replace(LIMITS, wall_seconds=0.7)

CALLS = {
    name: numbers[["x86_64", "aarch64"].index(platform.machine())]
    for name, numbers in {**seccomp._DENIED, **seccomp._FORKS}.items()
    if numbers[["x86_64", "aarch64"].index(platform.machine())] is not None
}


def source_of(name, outside):
    settings = {**outside.describe(), "CALLS": CALLS}
    return "\n".join([*(f"{key} = {value!r}" for key, value in settings.items()), PRELUDE, ATTEMPTS[name][1]])


@pytest.mark.parametrize("name", ATTEMPTS)
def test_attempts(sandbox, outside, name):
    keeper = sandbox._keeper.pid
    before = nested_processes()
    outcome = run(sandbox, source_of(name, outside))
    assert b"ESCAPED" not in outcome.stdout, outcome
    # It ran: a slip of the attempt's own would end it early. Refusals of the sandbox are what ends it otherwise.
    assert outcome.end == "" and b"SyntaxError" not in outcome.stderr and b"NameError" not in outcome.stderr, outcome
    assert not nested_processes() - before
    assert run(sandbox, "print(6 * 7)").stdout == b"42\n"
    assert sandbox._keeper.pid == keeper and sandbox._keeper.poll() is None
    assert sorted(p.name for p in outside.folder.iterdir()) == ["secret.txt", "socket"]
    assert (outside.folder / "secret.txt").read_text() == SECRET


@pytest.mark.parametrize("name", [name for name, (succeeds, _) in ATTEMPTS.items() if succeeds])
def test_the_same_attempts_get_through_without_isolation(no_sandbox, outside, name):
    outcome = run(no_sandbox, source_of(name, outside))
    (outside.folder / "mine").unlink(missing_ok=True)
    assert b"ESCAPED" in outcome.stdout, outcome


# What is known of each one's end. Whatever it does, it costs its own result and no other.
ENDS = {
    "spin": {"exit_code": -signal.SIGXCPU},
    "spin, deaf to signals": {"exit_code": -signal.SIGKILL},
    "spin in C": {"exit_code": -signal.SIGXCPU},
    "sleep": {"end": "time"},
    "stop itself and everybody": {"end": "time"},
    "allocate at once": {"stdout": b"refused\n"},
    "map at once": {"stdout": b"refused\n"},
    "flood the output": {"end": "output"},
    "flood the errors": {"end": "time"},
    "recurse": {"exit_code": 1},
    "recurse without a limit": {},
    "read at address 0": {"exit_code": -signal.SIGSEGV},
    "abort": {"exit_code": -signal.SIGABRT},
    "kill itself": {"exit_code": -signal.SIGTERM},
    "close everything": {"exit_code": 0, "stdout": b""},
    "a huge source": {"exit_code": 1},
}


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_programs(sandbox, name):
    expected, before, start = ENDS[name], nested_processes(), time.monotonic()
    limits = BRIEF if expected.get("end") == "time" else LIMITS
    outcome = run(sandbox, GREEDY[name], limits)
    assert time.monotonic() - start < limits.wall_seconds + 2
    assert {field: getattr(outcome, field) for field in expected} == expected, outcome
    assert len(outcome.stdout) <= limits.output_bytes + (1 << 17) and len(outcome.stderr) <= 1 << 14
    assert not nested_processes() - before
    assert run(sandbox, "print(6 * 7)").stdout == b"42\n"


def test_memory_in_many_pieces(sandbox):
    source = """
held = []
try:
    while True: held.append(bytearray(b'x' * (1 << 20)))
except MemoryError: print(len(held))
"""
    assert 150 < int(run(sandbox, source).stdout) < LIMITS.memory_mb


def test_threads(sandbox):
    source = """
import os, threading, time
threading.stack_size(1 << 16)
n = 1
try:
    while True:
        threading.Thread(target=time.sleep, args=(9,), daemon=True).start()
        n += 1
except RuntimeError: print(n, flush=True)
os._exit(0)
"""
    assert int(run(sandbox, source).stdout) == LIMITS.threads
    # Counted for each program apart, not for the user that all of them share.
    runs = [sandbox.start([PYTHON, *PYTHON_FLAGS, "-c", source], limits=LIMITS) for _ in range(3)]
    assert [int(r.result().stdout) for r in runs] == [LIMITS.threads] * 3


def test_disk(sandbox):
    source = """
n = 0
for i in range(50):
    try:
        with open(f'f{i}', 'wb', buffering=0) as f:
            while True: n += f.write(bytes(1 << 16))
    except OSError as error: last = error.errno
print(n, last)
"""
    written, last = map(int, run(sandbox, source).stdout.split())
    assert written <= LIMITS.scratch_mb << 20 and last == errno.ENOSPC
    source = "import os\ntry:\n    for i in range(10000): os.mkdir(f'd{i}')\nexcept OSError: print(i)"
    assert int(run(sandbox, source).stdout) < LIMITS.scratch_files
    source = "f = open('f', 'wb')\ntry: f.truncate(1 << 40); print('sparse')\nexcept OSError: print('refused')"
    assert b"sparse" not in run(sandbox, source).stdout


def test_descriptors(sandbox):
    source = "import os\nn = 0\ntry:\n    while True: os.dup(0); n += 1\nexcept OSError: print(n)"
    assert int(run(sandbox, source).stdout) == LIMITS.open_files - 3


def test_nothing_is_left_for_the_next_program(sandbox):
    assert run(sandbox, "import os\nopen('left', 'w').close()\nprint(os.listdir('.'))").stdout == b"['left']\n"
    assert run(sandbox, "import os\nprint(os.listdir('.'))").stdout == b"[]\n"


# Where a program may fork, as compilers do.
FORKING = dataclasses.replace(LIMITS, forks=True)


@pytest.mark.parametrize("name", FORKERS)
def test_children_end_with_their_program(sandbox, name):
    before, start = nested_processes(), time.monotonic()
    bomb = "bomb" in name
    outcome = run(sandbox, FORKERS[name], dataclasses.replace(FORKING, wall_seconds=1.0) if bomb else FORKING)
    if bomb:
        assert outcome.end == "time" or outcome.exit_code != 0
    else:
        assert outcome.stdout == b"gone\n" and outcome.ok and time.monotonic() - start < LIMITS.wall_seconds - 1
    assert not nested_processes() - before
    assert run(sandbox, "print(6 * 7)").stdout == b"42\n"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86's second set of system calls")
def test_32_bit_system_calls_are_the_programs_end(sandbox):
    source = (
        "import ctypes, mmap\npage = mmap.mmap(-1, 4096, prot=7)\n"
        "page.write(bytes.fromhex('b814000000cd80c3'))\n"  # mov eax, 20 (getpid); int 0x80; ret
        "print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))())"
    )
    outcome = run(sandbox, source)
    assert outcome.exit_code == -signal.SIGSYS, outcome


@pytest.mark.parametrize(("machine", "architecture"), seccomp._ARCHITECTURES.items())
@pytest.mark.parametrize("allow_fork", [True, False])
def test_the_filter_of_either_architecture(monkeypatch, machine, architecture, allow_fork):
    monkeypatch.setattr(seccomp.platform, "machine", lambda: machine)
    code = list(struct.iter_unpack("=HBBI", seccomp.build_filter(allow_fork)))

    def verdict(number, *arguments, architecture=architecture):
        data, at, register = (
            struct.pack("=iIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments))),
            0,
            0,
        )
        while True:
            kind, yes, no, k = code[at]
            at += 1
            if kind == 0x06:
                return {0x7FFF0000: "allow", 0x80000000: "kill", 0x50001: errno.EPERM, 0x50026: errno.ENOSYS}[k]
            if kind == 0x20:
                (register,) = struct.unpack_from("=I", data, k)
            else:
                at += yes if {0x15: register == k, 0x35: register >= k, 0x45: register & k}[kind] else no

    column = list(seccomp._ARCHITECTURES).index(machine)
    for numbers in seccomp._DENIED.values():
        if numbers[column] is not None:
            assert verdict(numbers[column]) == errno.EPERM
    assert verdict(0, architecture=0x40000003) == "kill"
    clone, clone3, socketpair = seccomp._CLONE[column], seccomp._CLONE3[column], seccomp._SOCKETPAIR[column]
    assert verdict(clone3) == errno.ENOSYS
    assert verdict(socketpair, socket.AF_UNIX) == "allow" and verdict(socketpair, socket.AF_INET) == errno.EPERM
    thread, process = 0x3D0F00, signal.SIGCHLD  # the flags of glibc's threads and of fork
    assert verdict(clone, thread) == "allow"
    assert verdict(clone, process) == ("allow" if allow_fork else errno.EPERM)
    for namespace in (0x80, 0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(clone, thread | namespace) == verdict(clone, process | namespace) == errno.EPERM
    if machine == "x86_64":
        assert verdict(57) == verdict(58) == ("allow" if allow_fork else errno.EPERM)
        assert verdict(0x40000000 | 41) == errno.ENOSYS
        assert verdict(0) == verdict(1) == verdict(59) == "allow"  # read, write, execve
    else:
        assert verdict(63) == verdict(64) == verdict(221) == "allow"


# The grader's side.


def test_what_a_program_is_given(sandbox):
    source = """
import os, sys
print(os.getcwd(), open('a').read(), sys.stdin.read(), sorted(os.environ))
sys.stderr.write('err')
"""
    outcome = run(sandbox, source, files={"a": b"content"}, stdin=b"x" * 300_000)
    assert outcome.stdout.startswith(f"{SCRATCH} content {'x' * 300_000} ['HOME'".encode())
    assert (outcome.stderr, outcome.exit_code, outcome.ok) == (b"err", 0, True)
    assert 0 < outcome.cpu_seconds <= outcome.wall_seconds * 4
    assert run(sandbox, "import sys; sys.exit(7)").exit_code == 7
    kinds = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
    source = f"import os\nfor kind in {kinds}: print(os.readlink('/proc/self/ns/' + kind))"
    theirs = run(sandbox, source).stdout.decode().split()
    assert len(theirs) == len(kinds) and not {os.readlink(f"/proc/self/ns/{kind}") for kind in kinds} & set(theirs)
    assert SECRET.encode() not in Path(f"/proc/{sandbox._keeper.pid}/environ").read_bytes()
    # Sets of strings have one order, so that a program gets the same reward twice.
    source = "print(set('abcdefgh'))"
    assert len({run(sandbox, source).stdout for _ in range(3)}) == 1


def test_a_channel_and_output_that_nobody_wants(sandbox):
    theirs, ours = socket.socketpair()
    source = "import os\nprint('x' * 10_000_000)\nos.write(3, os.read(3, 10)[::-1])"
    program = sandbox.start([PYTHON, *PYTHON_FLAGS, "-c", source], channel=theirs, discard_output=True, limits=LIMITS)
    with ours:
        ours.sendall(b"abc")
        assert ours.recv(10) == b"cba" and ours.recv(1) == b""
    assert program.result().ok and program.result().stdout == b""


def test_a_program_can_be_ended(sandbox):
    before = nested_processes()
    program = sandbox.start([PYTHON, *PYTHON_FLAGS, "-c", "import time; print('a', flush=True); time.sleep(60)"])
    time.sleep(1.0)
    start = time.monotonic()
    outcome = program.end()
    assert (outcome.end, outcome.exit_code, outcome.stdout) == ("cancelled", None, b"a\n")
    assert time.monotonic() - start < 5 and not nested_processes() - before
    assert program.end() is outcome


def test_many_threads_share_a_sandbox(sandbox):
    results = {}
    threads = [
        threading.Thread(target=lambda i=i: results.update({i: run(sandbox, f"print({i})").stdout})) for i in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: f"{i}\n".encode() for i in range(20)}


def test_a_keeper_that_died_is_replaced():
    box = Sandbox()
    try:
        box._keeper.kill()
        box._keeper.wait()
        assert run(box, "print(1)").stdout == b"1\n"
    finally:
        box.close()
    assert box._keeper.returncode is not None


def test_programs_end_with_the_grader():
    """Killed without a chance to tidy up, with a program that sleeps and one that spins."""
    code = (
        f"import sys, time\nsys.path[:0] = {[str(Path(__file__).parents[1])]!r}\n"
        "from r1jax.rewards.sandbox import *\nbox = Sandbox()\n"
        "runs = [box.start([PYTHON, *PYTHON_FLAGS, '-c', s], limits=Limits(wall_seconds=60, cpu_seconds=60)) "
        "for s in ('import time; time.sleep(99)', 'while True: pass')]\n"
        "print(box._keeper.pid, flush=True)\ntime.sleep(60)"
    )
    before = nested_processes()
    grader = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    keeper = int(grader.stdout.readline())
    mine = started(4, before)  # two programs with an init each
    grader.kill()
    grader.communicate()
    deadline = time.monotonic() + 5
    while (mine & nested_processes() or Path(f"/proc/{keeper}/cwd").exists()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not mine & nested_processes() and not Path(f"/proc/{keeper}/cwd").exists()


def test_a_program_ends_with_its_supervisor(sandbox):
    before = nested_processes()
    program = sandbox.start([PYTHON, *PYTHON_FLAGS, "-c", "import time; time.sleep(60)"])
    ours = started(2, before)
    status = Path(f"/proc/{min(ours)}/status").read_text()  # the init comes first
    os.kill(int(status.partition("PPid:")[2].split()[0]), signal.SIGKILL)
    with pytest.raises(RewardError, match="lost a program"):
        program.result()
    deadline = time.monotonic() + 5
    while ours & nested_processes() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not ours & nested_processes()
    assert run(sandbox, "print(6 * 7)").stdout == b"42\n"


def test_what_cannot_be_executed_is_its_own_fault(sandbox):
    outcome = sandbox.run(["/no/such/program"])
    assert (outcome.exit_code, outcome.stderr) == (127, b"/no/such/program: No such file or directory\n")
    assert sandbox.run(["./x"], files={"x": b"\x7fELF nonsense"}).exit_code == 127


def test_a_full_machine_is_not_a_machine_without_isolation(sandbox):
    with pytest.raises(RewardError, match=r"No space left.*use fewer workers"):
        run(sandbox, "", files={"x": bytes(9 << 20)})
    assert run(sandbox, "print(6 * 7)").stdout == b"42\n"


def test_a_machine_without_isolation_is_refused(monkeypatch):
    """A limit of no user namespaces: what a machine looks like that forbids them, or a container."""
    code = (
        f"import sys\nsys.path[:0] = {[str(Path(__file__).parents[1])]!r}\n"
        "from r1jax.errors import ConfigError\nfrom r1jax.rewards.sandbox import *\n"
        "try: Sandbox()\nexcept ConfigError as error: print(error)\n"
        "box = Sandbox(unsafe_no_isolation=True)\nprint(box.run([PYTHON, *PYTHON_FLAGS, '-c', 'print(7)']).stdout)"
    )
    script = "import ctypes, os, sys\nlibc = ctypes.CDLL(None)\n" + FORBID_NAMESPACES + f"exec({code!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    refusal, answer = done.stdout.splitlines()
    assert "unshare" in refusal and "Operation not permitted" in refusal and "unsafe_no_isolation=True" in refusal
    assert answer == r"b'7\n'"
    monkeypatch.setattr(sandbox_module.sys, "platform", "darwin")
    with pytest.raises(ConfigError, match="use Linux"):
        Sandbox()


FORBID_NAMESPACES = """
import struct
number = {"x86_64": 272, "aarch64": 97}[os.uname().machine]
code = b"".join(struct.pack("=HBBI", *i) for i in
                [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000)])
buffer = ctypes.create_string_buffer(code, len(code))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(buffer)), 16)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(program)), 0, 0) == 0
"""


def test_a_lost_program_is_an_error(sandbox, monkeypatch):
    program = sandbox.start([PYTHON, *PYTHON_FLAGS, "-c", "import time; time.sleep(9)"], limits=BRIEF)
    program._deadline = time.monotonic() - 1
    with pytest.raises(RewardError, match="lost a program"):
        program.result()


def test_without_isolation_limits_remain(no_sandbox):
    assert run(no_sandbox, "print(6 * 7)").stdout == b"42\n"
    assert run(no_sandbox, "import time; time.sleep(9)", BRIEF).end == "time"
    assert run(no_sandbox, "bytearray(1 << 33)").exit_code == 1
    assert run(no_sandbox, "while True: print('x' * 4000)").end == "output"
    source = "import os, time\nprint(os.getcwd(), flush=True)\nif os.fork() == 0: time.sleep(60)\ntime.sleep(60)"
    outcome = run(no_sandbox, source, BRIEF)
    assert outcome.end == "time" and not Path(outcome.stdout.decode().strip()).exists()


AS_ORDINARY_USER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0 and libc.mount(b"none", b"/", None, 0x44000, None) == 0
for source, target in {pairs!r}:
    os.makedirs(target)
    assert libc.mount(source.encode(), target.encode(), None, 0x5000, None) == 0, source
os.setgroups([]); os.setgid(12345); os.setuid(12345)
os.chdir("/")
environment = {{"PYTHONPATH": {path!r}, "PATH": "/usr/bin:/bin", "LD_LIBRARY_PATH": {base!r} + "/lib", "HOME": {home!r},
               "PYTHONDONTWRITEBYTECODE": "1", "JAX_PLATFORMS": "cpu"}}
python = {base!r} + "/bin/" + os.path.basename(os.path.realpath(sys.executable))
options = ["-q", "-x", "-rs", "-p", "no:cacheprovider", "-k", {chosen!r}]
os.execve(python, [python, "-m", "pytest", *options, {tests!r}], environment)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="the tests run as an ordinary user already")
def test_all_of_this_as_an_ordinary_user():
    """The same tests in a process that is not root, which finds Python and the packages where it may read them."""
    folder = Path(tempfile.mkdtemp(prefix="r1jax-user-"))
    folder.chmod(0o755)
    (folder / "home").mkdir()
    os.chown(folder / "home", 12345, 12345)
    root = Path(__file__).parents[1]
    packages = [path for path in sys.path if path.endswith("site-packages")]
    pairs = [(os.path.realpath(sys.base_prefix), f"{folder}/python"), (str(root / "r1jax"), f"{folder}/src/r1jax")]
    pairs += [(str(root / "tests"), f"{folder}/src/tests")]
    pairs += [(path, f"{folder}/packages{i}") for i, path in enumerate(packages)]
    script = AS_ORDINARY_USER.format(
        pairs=pairs,
        path=":".join([f"{folder}/src", *(f"{folder}/packages{i}" for i in range(len(packages)))]),
        base=f"{folder}/python",
        home=f"{folder}/home",
        chosen="test_attempts or children or threads or disk or 32_bit",
        tests=f"{folder}/src/tests/{Path(__file__).name}",
    )
    try:
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    finally:
        for path in sorted(folder.rglob("*"), key=lambda p: -len(p.parts)):
            path.rmdir()
        folder.rmdir()
    assert done.returncode == 0 and " passed" in done.stdout and "skipped" not in done.stdout, (
        done.stdout[-3000:] + done.stderr[-3000:]
    )
