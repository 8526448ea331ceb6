"""What makes a sandbox's isolation: a process that builds an empty root once, and starts every program behind it.

`r1jax.rewards.sandbox` starts this file as a script of its own, without the package: it imports little, so that it
forks fast, and never sees the environment or the memory of the process that grades. Four kinds of process:

- the keeper (`main`), which builds the root and forks a supervisor for each request, and does nothing else;
- a supervisor, outside the program's namespaces: it starts the init, carries output, and holds the clock;
- an init, process 1 of the program's own process namespace, whose end is the end of all that the program started;
- the program, in a user namespace of its own, where it has no capability, over no file system and over no network.
"""

import ctypes
import gc
import marshal
import os
import resource
import select
import signal
import socket
import struct
import sys
import time

NOBODY = 65534
CHANNEL = 3  # the descriptor at which a program finds its end of a channel, as in `call_bridge`

_NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC = 0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000
_NEWUSER, _NEWPID, _NEWNET = 0x1000_0000, 0x2000_0000, 0x4000_0000
_NOSUID, _NODEV, _NOEXEC, _BIND, _REC, _PRIVATE = 2, 4, 8, 0x1000, 0x4000, 0x4_0000
_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV, _ATTR_NOEXEC = 1, 2, 4, 8
_PDEATHSIG, _DUMPABLE, _SECCOMP, _CAPBSET_DROP, _NO_NEW_PRIVS = 1, 4, 22, 24, 38
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MOUNT_SETATTR = 442
_STATUS = struct.Struct("<id")  # exit code (or minus the signal), CPU seconds
_STDERR_KEPT = 1 << 14
_REPORT_SECONDS = 0.1

_libc = ctypes.CDLL(None, use_errno=True)


def _call(step, name, *arguments):
    """A C function that returns -1 on failure. Raises `OSError` that names the step."""
    ctypes.set_errno(0)
    if getattr(_libc, name)(*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), step)


def _mount(source, target, kind, flags, options=""):
    _call(f"mount {target}", "mount", source.encode(), target.encode(), kind.encode(), flags, options.encode())


def _set_attributes(path, attributes, recursive):
    """mount_setattr(2), which adds flags and keeps those that are there."""
    change = struct.pack("=4Q", attributes, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    arguments = (ctypes.c_int(_AT_FDCWD), path.encode(), ctypes.c_uint(flags), change, ctypes.c_size_t(len(change)))
    _call(f"mount_setattr {path}", "syscall", ctypes.c_long(_MOUNT_SETATTR), *arguments)


def _prctl(*arguments):
    _call(f"prctl {arguments[0]}", "prctl", *map(ctypes.c_ulong, (*arguments, *[0] * (5 - len(arguments)))))


def _write(path, text):
    with open(path, "w") as file:
        file.write(text)


# The keeper


def main():
    """Serves requests from the socket whose descriptor is the first argument, until its other end closes."""
    control = socket.socket(fileno=int(sys.argv[1]))
    config = marshal.loads(control.recv(1 << 16))
    gc.disable()  # a collection in a forked process would copy every page
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the grader's to handle
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors are nobody's to wait for
    outer_id = None
    try:
        if config["isolated"]:
            outer_id = _build_root(config)
    except OSError as error:
        control.send(marshal.dumps(_described(error)[1]))
        return
    control.send(marshal.dumps(None))
    while True:
        try:
            message, descriptors, _, _ = socket.recv_fds(control, 1, 2, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            return
        if not message:
            return
        try:
            child = os.fork()
        except OSError:  # the grader sees the end of its connection
            child = None
        if child == 0:
            control.close()
            _supervise(socket.socket(fileno=descriptors[0]), descriptors[1:], config["scratch"], outer_id)
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def _build_root(config):
    """Leaves the file system for one of nothing but what programs need, read-only. Returns the id that they run as.

    Root of this machine is not root there: programs run as nobody. Anyone else becomes, in a user namespace of this
    process, who may mount, and programs run as themselves, in a file system that has no file of theirs.
    """
    privileged = os.geteuid() == 0 and all(_is_mapped(f"/proc/self/{kind}_map") for kind in ("uid", "gid"))
    if privileged:
        try:
            _call("unshare mount namespace", "unshare", _NEWNS)
            os.setgroups([])
        except PermissionError:
            privileged = False
    if not privileged:
        user, group = os.geteuid(), os.getegid()
        _call("unshare user namespace", "unshare", _NEWUSER | _NEWNS)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"0 {user} 1")
        _write("/proc/self/gid_map", f"0 {group} 1")
    _mount("none", "/", "", _REC | _PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", _NOSUID | _NODEV, "mode=0755,size=1m")
    os.mkdir("/tmp/.old")
    pivot_root = ctypes.c_long(_PIVOT_ROOT[os.uname().machine])
    _call("pivot_root", "syscall", pivot_root, b"/tmp", b"/tmp/.old")
    os.chdir("/")
    for path in (*config["folders"], "/proc"):
        os.makedirs(path, exist_ok=True)
        _bind(path, _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV)
    for path in (*config["files"], *config["devices"]):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "x").close()
        _bind(path, _ATTR_RDONLY | _ATTR_NOSUID | (0 if path in config["devices"] else _ATTR_NODEV))
    for path, target in config["links"].items():
        os.symlink(target, path)
    os.makedirs(config["scratch"], exist_ok=True)
    _call("unmount the old root", "umount2", b"/.old", _DETACH)
    os.rmdir("/.old")
    _set_attributes("/", _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV, recursive=False)
    return NOBODY if privileged else 0


def _is_mapped(path):
    with open(path) as file:
        ranges = [tuple(map(int, line.split())) for line in file]
    return any(start <= NOBODY < start + count for start, _, count in ranges)


def _bind(path, attributes):
    _mount("/.old" + path, path, "", _BIND | _REC)
    _set_attributes(path, attributes, recursive=True)


# A supervisor


def _supervise(client, channel, scratch, outer_id):
    """Runs the program that `client` asks for, and answers with what became of it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        answer = _run(client, channel, _receive(client), scratch, outer_id)
    except BaseException as error:
        answer = {"failure": _described(error)}
    try:
        client.sendall(marshal.dumps(answer))
    except OSError:  # the grader has gone
        pass


def _receive(client):
    """A request: its length in 8 bytes, then marshal. Raises `EOFError` where the grader has gone."""
    with client.makefile("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        data = stream.read(size)
    if not size or len(data) != size:
        raise EOFError("the request ends early")
    return marshal.loads(data)


def _run(client, channel, request, scratch, outer_id):
    scratch = scratch if outer_id is not None else _make_folder()
    (output_r, output_w), (error_r, error_w), (status_r, status_w) = (os.pipe() for _ in range(3))
    input_r = _readable(request["stdin"])
    alive_r, alive_w = os.pipe()
    for descriptor in (output_w, error_w):
        os.fchmod(descriptor, 0o666)  # for a program that opens /dev/stdin
    if outer_id is not None:
        _call("unshare process namespace", "unshare", _NEWPID)
    started = time.monotonic()
    init = os.fork()
    if init == 0:
        try:
            for descriptor in (output_r, error_r, status_r, alive_w):
                os.close(descriptor)
            client.close()
            streams = [input_r, os.open(os.devnull, os.O_WRONLY) if request["discard_output"] else output_w, error_w]
            _init(request, streams, channel, status_w, alive_r, scratch, outer_id)
        except BaseException as error:
            _report_failure(status_w, error)
        os._exit(1)
    for descriptor in (input_r, output_w, error_w, status_w, alive_r, *channel):
        os.close(descriptor)
    try:
        outcome = _carry(client, request, output_r, error_r, status_r, started + request["wall_seconds"])
        if outcome["end"] == "cancelled":  # a program that has just ended by itself is about to be reported
            select.select([status_r], [], [], _REPORT_SECONDS)
    finally:
        if outer_id is None:
            try:
                os.killpg(init, signal.SIGKILL)
            except ProcessLookupError:
                os.kill(init, signal.SIGKILL)
        else:
            os.kill(init, signal.SIGKILL)
        os.waitpid(init, 0)  # returns when all of its namespace has ended
        if outer_id is None:
            _remove_folder(scratch)
    outcome["wall_seconds"] = time.monotonic() - started
    outcome["stdout"] += _drain(output_r)
    if len(outcome["stdout"]) > request["output_bytes"]:
        outcome["end"] = outcome["end"] or "output"
    status = outcome.pop("status") + _drain(status_r)
    if status.startswith(b"!"):
        number, _, text = status[1:].partition(b"\0")[0].decode(errors="replace").partition(" ")
        outcome["failure"] = int(number), text
    elif len(status) == _STATUS.size:
        outcome["exit_code"], outcome["cpu_seconds"] = _STATUS.unpack(status)
        if outcome["end"] == "cancelled":  # it had ended before
            outcome["end"] = ""
    return outcome


def _make_folder():
    import tempfile  # takes longer than a program's start, and only a sandbox without isolation needs it

    return tempfile.mkdtemp(prefix="r1jax-program-")


def _remove_folder(path):
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def _readable(data):
    """A file of `data` to read, and not to write: of a pipe, programs that ask its size or map it get nothing."""
    file = os.memfd_create("input")
    try:
        with open(file, "wb", closefd=False) as stream:
            stream.write(data)
        os.fchmod(file, 0o444)
        return os.open(f"/proc/self/fd/{file}", os.O_RDONLY)
    finally:
        os.close(file)


def _carry(client, request, output_r, error_r, status_r, deadline):
    """Carries output until the init ends, the deadline passes, output is too much, or the grader has gone."""
    poll, read = select.poll(), {output_r: bytearray(), error_r: bytearray(), status_r: bytearray()}
    for descriptor in (client.fileno(), *read):
        poll.register(descriptor, select.POLLIN)
    end = None
    while end is None:
        left = deadline - time.monotonic()
        if left <= 0:
            end = "time"
            break
        for descriptor, _ in poll.poll(left * 1000 + 1):
            if descriptor == client.fileno():
                end = "cancelled"
            elif data := os.read(descriptor, 1 << 16):
                read[descriptor] += data
                del read[error_r][:-_STDERR_KEPT]
                if len(read[output_r]) > request["output_bytes"]:
                    end = "output"
            elif descriptor == status_r:
                end = ""
            else:
                poll.unregister(descriptor)
    return {
        "stdout": bytes(read[output_r]),
        "stderr": bytes(read[error_r]),
        "status": bytes(read[status_r]),
        "end": end,
        "exit_code": None,
        "cpu_seconds": 0.0,
        "failure": None,
    }


def _drain(descriptor):
    """What is left in a pipe that nobody writes to any more."""
    os.set_blocking(descriptor, False)
    data = b""
    try:
        while part := os.read(descriptor, 1 << 16):
            data += part
    except BlockingIOError:  # without isolation, something still holds the pipe
        pass
    return data


# An init


def _init(request, streams, channel, status_w, alive_r, scratch, outer_id):
    """Process 1: makes the program's own mounts, starts it, and reports its end. Never returns."""
    _prctl(_PDEATHSIG, signal.SIGKILL)
    if outer_id is None:
        os.setsid()
    else:
        limits = request["limits"]
        _call("unshare mount namespace", "unshare", _NEWNS)
        _mount("proc", "/proc", "proc", _NOSUID | _NODEV | _NOEXEC, "hidepid=2,subset=pid")
        options = f"mode=1777,size={limits['scratch_bytes']},nr_inodes={limits['scratch_files']}"
        _mount("tmpfs", scratch, "tmpfs", _NOSUID | _NODEV, options)
    for name, content in request["files"].items():
        path = os.path.join(scratch, name)
        with open(path, "wb") as file:
            file.write(content)
        os.chmod(path, 0o755)
    ready_r, ready_w = os.pipe()
    mapped_r, mapped_w = os.pipe()
    program = os.fork()
    if program == 0:
        try:
            os.close(ready_r)
            os.close(mapped_w)
            _become_program(request, streams, channel, ready_w, mapped_r, scratch, outer_id)
        except BaseException as error:
            _report_failure(status_w, error)
        os._exit(1)
    for descriptor in (*streams, *channel, ready_w, mapped_r):
        os.close(descriptor)
    if outer_id is not None and os.read(ready_r, 1):
        for kind in ("uid", "gid"):
            _write(f"/proc/{program}/{kind}_map", f"{NOBODY} {outer_id} 1")
        if outer_id:
            os.setresgid(outer_id, outer_id, outer_id)
            os.setresuid(outer_id, outer_id, outer_id)
        _prctl(_PDEATHSIG, signal.SIGKILL)  # a change of user clears it
        os.write(mapped_w, b"1")
    if select.select([alive_r], [], [], 0)[0]:  # the supervisor had ended before the signal was armed
        os._exit(1)
    while True:
        child, status, usage = os.wait3(0)
        if child == program:
            code = os.waitstatus_to_exitcode(status)
            os.write(status_w, _STATUS.pack(code, usage.ru_utime + usage.ru_stime))
            os._exit(0)


def _report_failure(status_w, error):
    os.write(status_w, "!{} {}\0".format(*_described(error)).encode())


def _described(error):
    """What kept a program from starting: the system's number for it, 0 where it has none, and a text."""
    step = getattr(error, "filename", None) or type(error).__name__
    return getattr(error, "errno", None) or 0, f"{step}: {getattr(error, 'strerror', None) or error}"[:1000]


# A program, before it is one


def _become_program(request, streams, channel, ready_w, mapped_r, scratch, outer_id):
    limits = request["limits"]
    if outer_id is None:
        _prctl(_PDEATHSIG, signal.SIGKILL)
    else:
        try:
            _write("/proc/self/oom_score_adj", "1000")  # where memory runs out, this goes first
        except OSError:
            pass
        _call("unshare namespaces", "unshare", _NEWUSER | _NEWNET | _NEWIPC | _NEWUTS | _NEWCGROUP)
        _prctl(_DUMPABLE, 1)  # for the init to write its maps
        os.write(ready_w, b"1")
        if not os.read(mapped_r, 1):
            os._exit(1)
        socket.sethostname("sandbox")
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        os.setsid()
    for number, target in enumerate(streams):
        os.dup2(target, number)
    if channel:
        os.dup2(channel[0], CHANNEL)
    os.chdir(scratch)
    os.umask(0o077)
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):  # ignored signals would stay so
        signal.signal(number, signal.SIG_DFL)
    cpu = limits["cpu_seconds"]
    for name, value in {
        "AS": limits["memory_bytes"],
        "STACK": limits["stack_bytes"],
        "FSIZE": limits["scratch_bytes"],
        "NOFILE": limits["open_files"],
        "CORE": 0,
        "MEMLOCK": 0,
        "MSGQUEUE": 0,
        "SIGPENDING": 256,
        "NPROC": limits["threads"],
    }.items():
        # Without a user namespace of its own, a program's threads are counted with all of the user's.
        if hasattr(resource, f"RLIMIT_{name}") and (outer_id is not None or name != "NPROC"):
            _limit(getattr(resource, f"RLIMIT_{name}"), value, value)
    _limit(resource.RLIMIT_CPU, cpu, cpu + 1)  # the second ends a program that ignores the first
    if outer_id is not None:
        for capability in range(64):
            if _libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0):
                break
        _prctl(_NO_NEW_PRIVS, 1)
        code = ctypes.create_string_buffer(request["seccomp"], len(request["seccomp"]))
        program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(code))
        program = ctypes.create_string_buffer(program, len(program))
        _prctl(_SECCOMP, 2, ctypes.addressof(program))
    try:
        os.execve(request["argv"][0], request["argv"], {**request["environment"], "HOME": scratch, "TMPDIR": scratch})
    except OSError as error:  # a compiler was led to make what cannot be run, say: nothing is wrong with the sandbox
        os.write(2, f"{request['argv'][0]}: {error.strerror}\n".encode())
        os._exit(127)


def _limit(kind, soft, hard):
    ceiling = resource.getrlimit(kind)[1]
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    resource.setrlimit(kind, (soft, hard))


if __name__ == "__main__":
    main()
