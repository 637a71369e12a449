"""Hang detection: a worker exits by itself, a stage is ended by the driver.

Ray makes again what a dead worker was making, but waits without end for a worker that hangs, and
for an actor of a lost node that fits nowhere else.
"""

from __future__ import annotations

import faulthandler
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SETTLE_SECONDS = 60.0  # after a node was lost: Ray notices within 30, and moves its work
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
    """No part was finished for too long, after a node was lost for example."""


class LostNodes:
    """Detects a stage that makes no progress since a node was lost.

    An actor of a lost node waits for room that the actors of other nodes never give up. So the rest
    is shared out again once nothing has been finished for a minute, or for twice the longest time
    between two results, if that is longer.
    """

    def __init__(self, stall_seconds: float) -> None:
        self._stall_seconds = stall_seconds
        self._nodes = _alive()
        self._last = self._looked = time.monotonic()
        self._longest = 0.0

    def finished(self) -> None:
        """Note that a part was finished."""
        now = time.monotonic()
        self._longest, self._last = max(self._longest, now - self._last), now

    def check(self) -> None:
        """Raise StalledError if the stage makes no progress; cheap enough for every step."""
        now = time.monotonic()
        patience = min(self._stall_seconds, max(_SETTLE_SECONDS, 2 * self._longest))
        if now - max(self._last, self._looked) >= patience:
            self._looked = now
            if self._nodes - _alive():
                raise StalledError

    def callback(self) -> type:
        """Return `check` as a callback of Ray Data's execution loop."""
        check = self.check

        class Callback:
            def before_execution_starts(self, executor: Any) -> None: ...

            def on_execution_step(self, executor: Any) -> None:
                check()

            def after_execution_succeeds(self, executor: Any) -> None: ...

            def after_execution_fails(self, executor: Any, error: Exception) -> None: ...

        return Callback


def _alive() -> set[str]:
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
