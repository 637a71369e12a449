"""Crashes at any statement: what a process leaves that is killed there (sqlite rolls back then)."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock


class Crash(BaseException):
    """A process that is no more: not an Exception, so that no handler takes it for a failure."""


class Fuse:
    """Blows at the n-th place that asks it."""

    def __init__(self, left: int | None) -> None:
        self.left = left

    def __call__(self) -> None:
        if self.left is None:
            return
        if self.left == 0:
            raise Crash
        self.left -= 1


class FusedConnection(sqlite3.Connection):
    """A connection that may die before or after any statement."""

    fuse = Fuse(None)

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        self.fuse()
        done = super().execute(*arguments)
        self.fuse()
        return done


@contextmanager
def fused_sqlite(fuse: Fuse) -> Iterator[None]:
    """Let every connection to sqlite ask the fuse."""
    connect = sqlite3.connect

    def fused_connect(*arguments: Any, **named: Any) -> sqlite3.Connection:
        connection: Any = connect(*arguments, factory=FusedConnection, **named)
        connection.fuse = fuse
        return connection

    with mock.patch.object(sqlite3, "connect", fused_connect):
        yield
