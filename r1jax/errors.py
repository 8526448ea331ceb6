"""Errors that a person can act on: one sentence that names the field, the value and the fix."""

import contextlib
import errno
import os
import select
import sys
from collections.abc import Iterator
from typing import TextIO


class R1JaxError(Exception):
    """Something the user can mend. The message is one sentence naming what is wrong, its value, and the fix."""


class ConfigError(R1JaxError):
    """A setting that cannot work."""


class CheckpointError(R1JaxError):
    """A checkpoint that is missing, damaged or from another run."""


class RewardError(R1JaxError):
    """A reward function that raised, hung, or returned the wrong number or kind of values."""


class DataError(R1JaxError):
    """A data set, tokenizer or row that cannot be used."""


def check_field(ok: bool, field: str, value: object, fix: str) -> None:
    """Raises `ConfigError` naming `field` and `value` unless `ok`; `fix` says what would be right."""
    if not ok:
        raise ConfigError(f"{field}={value!r}: {fix}")


def _is_unread(stream: TextIO) -> bool:
    """Whether a pipe's reader is gone; other pipes that break are no business of the one who reads the output."""
    poller = select.poll()
    poller.register(stream, 0)
    return any(event & select.POLLERR for _, event in poller.poll(0))


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """For entry points: prints an `R1JaxError`, or a full disk, as one sentence on stderr and exits with status 2.

    Ctrl-C ends with a sentence too, and status 130.
    """
    try:
        yield
    except R1JaxError as error:
        message = str(error)
    except BrokenPipeError:
        if not _is_unread(sys.stdout):
            raise
        # Whoever read the output, as `| head` does, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor is anything left to be flushed at exit
        raise SystemExit(141) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = f"{error.filename or 'the run folder'}: no space is left on its disk; free some and run again"
    except KeyboardInterrupt:
        print("\nstopped: what has been saved stays, and the same command goes on from there", file=sys.stderr)
        raise SystemExit(130) from None
    else:
        return
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)
