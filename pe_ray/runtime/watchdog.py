"""Hang detection: a worker that hangs exits by itself. Ray would wait for it without end."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator
from contextlib import contextmanager

_STDERR = 2

_limit: float | None = None


@contextmanager
def exit_on_stall(seconds: float) -> Iterator[None]:
    """Exit this process, as a crash would, unless the block ends or calls `note_progress` in time.

    The timer is a thread of its own that needs no Python, so it also ends a process that hangs in
    native code. It writes the names of functions and lines, never values, to the worker's log.
    """
    global _limit
    _limit = seconds
    note_progress()
    try:
        yield
    finally:
        _limit = None
        faulthandler.cancel_dump_traceback_later()


def note_progress() -> None:
    """Restart the timer, if there is one."""
    if _limit is not None:
        faulthandler.dump_traceback_later(_limit, exit=True, file=_STDERR)


class StalledError(Exception):
    """Nothing was finished for longer than any work may take."""
