"""What a process sets up once, before its first computation."""

from __future__ import annotations

import os
from pathlib import Path

import jax


def compile_cache(folder: Path) -> None:
    """Keeps compiled programs in `folder`, so that a restarted run does not compile again, unless
    JAX_COMPILATION_CACHE_DIR already names a place."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(folder.resolve()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
