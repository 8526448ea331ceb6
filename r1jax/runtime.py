"""What a process sets up once, before its first computation, and what memory it has."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

TRANSPARENT_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
CONTROL_GROUPS, CONTROL_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_ANEW = "R1JAX_STARTED_ANEW"  # in the environment of a process that has been: never twice


def use_huge_pages() -> None:
    """Starts this process anew with glibc's allocator asking for huge pages, where Linux gives them to who asks.

    XLA on CPU takes the scratch memory of a step from the system and gives it back after. Handed out in pages of 4 KB,
    zeroed one by one, that is a quarter of the processor time of a training step. glibc reads the setting when a
    process starts. For the first line of a script that is the whole process, before it has read or written anything.
    What GLIBC_TUNABLES already says about huge pages stands, so that `glibc.malloc.hugetlb=0` there keeps this away.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "jax" in sys.modules:  # a script run within another process, such as a test's
        return
    if _ANEW in os.environ or "glibc.malloc.hugetlb" in tunables or "[madvise]" not in _on_request():
        return
    asked = ":".join(filter(None, [tunables, "glibc.malloc.hugetlb=1"]))
    with contextlib.suppress(OSError):  # then it goes on as it is
        os.execve(sys.executable, sys.orig_argv, os.environ | {"GLIBC_TUNABLES": asked, _ANEW: "1"})


def _on_request() -> str:
    try:
        return TRANSPARENT_HUGE_PAGES.read_text()
    except OSError:  # another system, or a kernel without
        return ""


def host_memory() -> int:
    """Bytes that this process may have: the machine's memory, or less where a control group that it is in says so."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # another system
        total = 8 << 30
    for limit in _memory_limits():
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            total = min(total, int(limit.read_text()))
    return total


def _memory_limits() -> Iterator[Path]:
    """Where the limits of this process's control group and of those around it are, in either version of the system."""
    with contextlib.suppress(OSError):  # no control groups
        for line in CONTROL_GROUP.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            root = CONTROL_GROUPS / "memory" if controllers else CONTROL_GROUPS
            group = root / path.lstrip("/")
            for around in (group, *group.parents[: len(group.parents) - len(root.parents)]):
                yield around / ("memory.limit_in_bytes" if controllers else "memory.max")


def compile_cache(folder: Path) -> None:
    """Keeps compiled programs in `folder`, so that a restarted run does not compile again, unless
    JAX_COMPILATION_CACHE_DIR already names a place."""
    import jax  # not above: a process that starts anew should not have waited for it

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(folder.resolve()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
