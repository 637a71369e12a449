"""The SQLite files that say what was spent: opened for one transaction, with errors that help.

A copy is restored only where the file is damaged. What another process holds is sound, and a copy
would forget what was spent.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pe_ray.errors import FaultError, InputError
from pe_ray.files.locks import find_holder

logger = logging.getLogger(__name__)

BUSY_SECONDS = 120.0
_PATIENCE = 5.0  # seconds, before it is said what is waited for
_DAMAGE = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class DamageError(Exception):
    """A part of the file that isn't as it was written; its text names the part."""


@contextmanager
def connect(path: Path, mode: Literal["rw", "rwc"], what: str) -> Iterator[sqlite3.Connection]:
    """Open a connection, used once since none survives a fork; closing it rolls back.

    what: the file holds, for errors. Waits for other processes that hold it, at most BUSY_SECONDS.
    """
    database = None
    waiting = threading.Timer(_PATIENCE, _name_holder, [path])
    waiting.daemon = True
    waiting.start()
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
        raise _explain(error, path, what) from error
    finally:
        waiting.cancel()
        if database is not None:
            database.close()


def _name_holder(path: Path) -> None:
    """Log which process is waited for."""
    if holder := find_holder(path):
        logger.warning("%s: waiting for %s, at most %g s", path, holder, BUSY_SECONDS)


def _explain(error: Exception, path: Path, what: str) -> Exception:
    """Return the error for a user."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        holder = find_holder(path) or "a process that this machine can't see"
        return FaultError(
            f"{path}: the {what} was held by {holder} for {BUSY_SECONDS:g} s; stop that one if it "
            "hangs"
        )
    if code == sqlite3.SQLITE_FULL:
        fix = "free some space on its disk, then the same command continues"
    elif code in _DAMAGE:
        fix = "restore a copy of the same age"
    else:
        fix = "see to its disk and permissions, then the same command continues"
    return InputError(f"{path}: the {what} can't be used ({error}); {fix}")
