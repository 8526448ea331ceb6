"""Progress: a live bar on a terminal, lines in a log file, and a rate that ignores what was done before."""

import io

from rich.console import Console

import r1jax.progress as progress_module
from r1jax.progress import stage


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


def test_lines_where_there_is_no_terminal(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    console = Console(file=io.StringIO(), force_terminal=False, width=40)
    with stage("rl [zero]", total=100, initial=90, console=console, interval=10) as progress:
        for _ in range(10):
            clock.now += 4
            progress.advance(reward=0.43211, length=21)
    assert console.file.getvalue().splitlines() == [  # after 12, 24, 36 seconds, and at the end
        "rl [zero]: 93/100  4 s/it  0:00:12 elapsed  0:00:28 left  reward 0.432  length 21",
        "rl [zero]: 96/100  4 s/it  0:00:24 elapsed  0:00:16 left  reward 0.432  length 21",
        "rl [zero]: 99/100  4 s/it  0:00:36 elapsed  0:00:04 left  reward 0.432  length 21",
        "rl [zero]: 100/100  4 s/it  0:00:40 elapsed  0:00:00 left  reward 0.432  length 21",
    ]


def test_a_bar_on_a_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with stage("sampling", total=3, console=console) as progress:
        progress.advance(2, reward=0.5)
        progress.advance()
    shown = console.file.getvalue()
    assert "sampling" in shown and "3/3" in shown and "reward 0.5" in shown


def test_an_empty_stage_and_a_failed_one_end_cleanly():
    console = Console(file=io.StringIO(), force_terminal=False)
    with stage("nothing", total=0, console=console):
        pass
    assert "nothing: 0/0" in console.file.getvalue()
    try:
        with stage("fails", total=5, console=console) as progress:
            progress.advance()
            raise KeyError
    except KeyError:
        pass
    assert "fails: 1/5" in console.file.getvalue()
