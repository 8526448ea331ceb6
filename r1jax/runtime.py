"""What a process sets up once, before its first computation."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import jax


def keep_host_memory() -> None:
    """Keeps freed memory in the process (glibc).

    A jitted step on CPU allocates its temporaries anew each time. By default glibc gives such blocks back to the
    system, which clears every page when it hands them out again, on every step.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # not glibc
        return
    m_trim_threshold, m_top_pad, m_mmap_max, m_arena_max = -1, -2, -4, -8
    for option, value in ((m_mmap_max, 0), (m_trim_threshold, 2**31 - 1), (m_top_pad, 256 << 20), (m_arena_max, 1)):
        mallopt(option, value)


def compile_cache(folder: Path) -> None:
    """Keeps compiled programs in `folder`, so that a restarted run does not compile again, unless
    JAX_COMPILATION_CACHE_DIR already names a place."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(folder.resolve()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
