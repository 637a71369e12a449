"""Connections to the SQLite files that say what was spent, and what their errors tell a user."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pe_ray.errors import InputError

BUSY_SECONDS = 120.0


class DamageError(Exception):
    """A part of the file that isn't as it was written; its text names the part."""


@contextmanager
def connect(path: Path, mode: Literal["rw", "rwc"], what: str) -> Iterator[sqlite3.Connection]:
    """Open a connection, used once since none survives a fork; closing it rolls back.

    what: the file holds, for errors.
    """
    database = None
    try:
        uri = f"{path.resolve().as_uri()}?mode={mode}"
        database = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
        database.execute("PRAGMA synchronous = EXTRA")  # syncs the folder as well
        database.execute("PRAGMA secure_delete = ON")  # replaced times leave no bytes
        yield database
    except DamageError as damage:
        raise InputError(
            f"{path}: {damage} isn't what was written there; the file is damaged, restore a copy "
            "of the same age"
        ) from None
    except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter where a schema is damaged
        code = getattr(error, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_FULL:
            raise InputError(
                f"{path}: no space left on the {what}'s disk; free some, then the same command "
                "continues"
            ) from None
        if code == sqlite3.SQLITE_BUSY:
            raise InputError(
                f"{path}: another process held the {what} for {BUSY_SECONDS:g} seconds; end that "
                "one (`fuser` names it), then the same command continues"
            ) from None
        raise InputError(f"{path}: the {what} can't be used ({error}); restore a copy") from error
    finally:
        if database is not None:
            database.close()
