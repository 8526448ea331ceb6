"""Ahead-of-time compilation: each program once, its time printed and kept."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from r1jax import sharding


class Programs:
    """Compiles a run's programs and records how long each took, in `<run_dir>/compile_times.json`.

    A compiled program accepts the shapes and shardings that it was compiled for and raises for any other, so that
    nothing is ever compiled a second time unseen.
    """

    def __init__(self, run_dir: Path, console: Console):
        self._path, self._console = run_dir / "compile_times.json", console
        # A resumed run adds to what the stages before it took.
        self.seconds: dict[str, float] = json.loads(self._path.read_text()) if self._path.exists() else {}

    def compile(
        self,
        name: str,
        function: Callable[..., Any],
        *args: Any,
        layout: sharding.Layout,
        donate: tuple[int, ...] = (),
        out_shardings: Any = None,
        run_once: bool = False,
    ) -> Callable[..., Any]:
        """Lowers `function` for `args` (arrays or ShapeDtypeStructs with shardings) under `layout` and compiles it.

        `run_once` asks XLA's CPU backend not to optimise: a program that runs once is not worth seconds of that.
        """

        def under_layout(*args):
            with sharding.use(layout):
                return function(*args)

        start = time.monotonic()
        jitted = jax.jit(under_layout, donate_argnums=donate, out_shardings=out_shardings)
        hasty = {"xla_backend_optimization_level": 0} if run_once and jax.default_backend() == "cpu" else None
        compiled = jitted.lower(*args).compile(hasty)
        self.seconds[name] = time.monotonic() - start
        self._console.print(f"compiled {name} in {self.seconds[name]:.1f} s", highlight=False)
        partial = self._path.with_name(self._path.name + ".partial")
        partial.write_text(json.dumps(self.seconds))
        os.replace(partial, self._path)
        return compiled
