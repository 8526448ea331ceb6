"""Progress of a long stage: a live bar on a terminal, a plain line every few seconds in a log file."""

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class Stage:
    """What `stage` yields: `advance` counts finished steps and shows live fields."""

    def __init__(self, title: str, total: int, initial: int, console: Console, interval: float):
        self._title, self._total, self._done, self._initial = title, total, initial, initial
        self._console, self._interval = console, interval
        self._start = self._last_line = time.monotonic()
        self._fields: dict[str, object] = {}
        self._last_done = -1  # what the latest line told
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = ("[bold]{task.description}", BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[live]}"), console=console)
            self._task = self._bar.add_task(title, total=total, completed=initial, live="")

    def advance(self, steps: int = 1, **fields: object) -> None:
        """Counts `steps` more. `fields` stay shown until changed; floats to 3 significant digits."""
        self._done += steps
        self._fields |= fields
        if self._bar is not None:
            self._bar.update(self._task, advance=steps, live=self._live())
        elif time.monotonic() - self._last_line >= self._interval:
            self._print_line()

    def _live(self) -> str:
        return "  ".join(
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self._fields.items()
        )

    def _print_line(self) -> None:
        self._last_line, self._last_done = time.monotonic(), self._done
        elapsed = self._last_line - self._start
        rate = (self._done - self._initial) / elapsed if elapsed else 0.0
        left = _clock((self._total - self._done) / rate) if rate else "?"
        pace = f"{self._done}/{self._total}  {_rate(rate)}  {_clock(elapsed)} elapsed  {left} left"
        self._console.print(
            f"{self._title}: {pace}  {self._live()}".rstrip(), markup=False, highlight=False, soft_wrap=True
        )


@contextlib.contextmanager
def stage(
    title: str, total: int, initial: int = 0, *, console: Console | None = None, interval: float = 10.0
) -> Iterator[Stage]:
    """Shows progress through `total` steps, of which `initial` were done before (a resumed run): not in the rate.

    `interval`: seconds between lines where the output is no terminal; a last line is always printed.
    """
    progress = Stage(title, total, initial, console or Console(), interval)
    with progress._bar or contextlib.nullcontext():
        try:
            yield progress
        finally:
            if progress._bar is None and progress._last_done != progress._done:
                progress._print_line()


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_rate(task.speed or 0.0), style="progress.data.speed")


def _rate(per_second: float) -> str:
    """it/s, or s/it for slow steps, with 3 digits."""
    if not per_second:
        return "– it/s"
    return f"{per_second:.3g} it/s" if per_second >= 1 else f"{1 / per_second:.3g} s/it"


def _clock(seconds: float) -> str:
    hours, minutes = divmod(int(seconds) // 60, 60)
    return f"{hours}:{minutes:02d}:{int(seconds) % 60:02d}"
