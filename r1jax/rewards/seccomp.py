"""The system calls that a sandboxed program may not make, as a filter for Linux's seccomp."""

import platform
import struct

# By name: number on x86_64, number on aarch64 (None: no such call). Numbers are the kernel's, and never change.
_DENIED = {
    # other processes' memory, descriptors and state
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "perf_event_open": (298, 241),
    # the file systems that there are, and the namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "unshare": (272, 97),
    "setns": (308, 268),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    # the network
    "socket": (41, 198),
    "setsockopt": (54, 208),  # sizes of buffers, which no limit counts
    # memory and objects that are not counted as a process's address space, or outlive a process
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "io_setup": (206, 0),
    # the machine, and parts of the kernel with a history of holes
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "iopl": (172, None),
    "ioperm": (173, None),
    "personality": (135, 92),
}
_FORKS = {"fork": (57, None), "vfork": (58, None)}
_CLONE, _CLONE3, _SOCKETPAIR = (56, 220), (435, 435), (53, 199)
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_* of linux/audit.h

_CLONE_THREAD = 0x0001_0000
_CLONE_NAMESPACES = 0x7E02_0080  # CLONE_NEW{TIME,NS,CGROUP,UTS,IPC,USER,PID,NET}
_AF_UNIX = 1
_EPERM, _ENOSYS = 1, 38

# Classic BPF (linux/filter.h, linux/seccomp.h): offsets in seccomp_data, instructions, verdicts.
_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16
_LOAD, _RETURN, _IF_EQUAL, _IF_GREATER_EQUAL, _IF_BITS = 0x20, 0x06, 0x15, 0x35, 0x45
_ALLOW, _ERRNO, _KILL = 0x7FFF_0000, 0x0005_0000, 0x8000_0000


def supported() -> bool:
    """Whether this machine's architecture is one whose system calls are known here."""
    return platform.machine() in _ARCHITECTURES


def build_filter(allow_fork: bool) -> bytes:
    """The filter, an array of the kernel's `struct sock_filter`: EPERM for what it names, and all else is allowed.

    Without `allow_fork` a process can start threads, but no further process: what its address space may hold is then
    all the memory that there is. clone3, whose flags a filter cannot read, does not exist for the program; C libraries
    fall back on clone. Raises `KeyError` where the architecture is not `supported`.
    """
    column = list(_ARCHITECTURES).index(platform.machine())
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 1, 0, _ARCHITECTURES[platform.machine()]),  # a 32-bit program has other numbers
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if platform.machine() == "x86_64":  # the x32 numbers, a second name for every call
        code += [(_IF_GREATER_EQUAL, 0, 1, 0x4000_0000), (_RETURN, 0, 0, _ERRNO | _ENOSYS)]
    denied = _DENIED if allow_fork else {**_DENIED, **_FORKS}
    for numbers in denied.values():
        if numbers[column] is not None:
            code += [(_IF_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    code += [(_IF_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, _ERRNO | _ENOSYS)]
    code += [
        (_IF_EQUAL, 0, 4, _SOCKETPAIR[column]),
        (_LOAD, 0, 0, _ARGUMENT),
        (_IF_EQUAL, 0, 1, _AF_UNIX),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | _EPERM),
        (_IF_EQUAL, 1, 0, _CLONE[column]),
        (_RETURN, 0, 0, _ALLOW),
        (_LOAD, 0, 0, _ARGUMENT),
        (_IF_BITS, 0, 1, _CLONE_NAMESPACES),
        (_RETURN, 0, 0, _ERRNO | _EPERM),
        (_IF_BITS, 1, 0, 0 if allow_fork else _CLONE_THREAD),
        (_RETURN, 0, 0, _ALLOW if allow_fork else _ERRNO | _EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
