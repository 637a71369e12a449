"""A store of calls that are paid for: which were made, what they cost, and what was answered.

One SQLite file that any number of processes may use at once. On several machines it must lie on a
file system with working locks. A call is entered before it is made and counts from then on, so the
caps hold in any interleaving. An answer is stored in the transaction that marks it answered. A
unique index allows one call per key that is under way or answered, so nobody pays twice for an
answer that is there. If a process dies while it waits for an answer, nobody knows whether the call
was paid for: it stays counted, and the call is made again.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pe_ray.errors import InputError
from pe_ray.files.locks import is_locked, locked

Outcome = Literal["answered", "refused", "bad", "unknown", "free"]
"""answered: kept. refused: kept, not counted. bad: counted, unusable, so asked again. unknown:
counted, asked again. free: forgotten, as if it had not been made."""

_VERSION = 1
_BUSY_SECONDS = 120.0
_SCHEMA = """
CREATE TABLE calls (
  id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, price REAL NOT NULL,
  owner TEXT NOT NULL, at TEXT NOT NULL, state TEXT NOT NULL
    CHECK (state IN ('sent', 'answered', 'refused', 'bad', 'unknown')), content BLOB);
CREATE UNIQUE INDEX once ON calls (key) WHERE state IN ('sent', 'answered', 'refused');
CREATE INDEX counted ON calls (state, price);
CREATE TABLE pace (one INTEGER PRIMARY KEY CHECK (one = 1), next REAL NOT NULL);
INSERT INTO pace VALUES (1, 0);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """The one call for a key that is not to be repeated.

    state: sent while its process waits for the answer. content: the body of an answer as it was
    received; of a refusal, its reason.
    """

    call: int
    state: Literal["sent", "answered", "refused"]
    content: bytes


class PaidCalls:
    """The store in `folder`, created if it is missing; one object per process, any threads."""

    def __init__(self, folder: Path, *, max_calls: int, max_cost: float) -> None:
        self._folder, self._file = folder, folder / "calls.sqlite"
        self._max_calls, self._max_cost = max_calls, max_cost
        self._owner = uuid.uuid4().hex
        try:
            (folder / "owners").mkdir(parents=True, exist_ok=True)
            # Held for the life of this object: others see by it that this owner is alive.
            self._alive = locked(folder / "owners" / self._owner, timeout=0)
            self._alive.__enter__()
        except OSError as error:
            raise InputError(
                f"generator.store: {folder} can't be written or locked ({error.strerror}); give a "
                "folder on a disk with working locks"
            ) from None
        with self._transaction() as database:
            if not database.execute("SELECT 1 FROM sqlite_schema").fetchone():
                for statement in _SCHEMA.split(";\n"):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {_VERSION}")
            if database.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
                raise InputError(f"generator.store: {folder} is of another version of pe_ray")

    def find(self, key: str) -> Stored | None:
        """Return what is stored for `key`; None if it has to be asked (again)."""
        with self._connected() as database:
            return self._find(database, key)

    def claim(self, key: str, price: float) -> int | None:
        """Enter a call for `key`, which counts from now on, and return its number.

        None if another is under way or answered. Raises InputError if a cap is reached; nothing is
        entered then.
        """
        with self._transaction() as database:
            if self._find(database, key) is not None:
                return None
            # What is still marked as sent was so by a process that died.
            database.execute(
                "UPDATE calls SET state = 'unknown' WHERE key = ? AND state = 'sent'", (key,)
            )
            self._require_room(database, price)
            entered = database.execute(
                "INSERT INTO calls (key, price, owner, at, state) VALUES (?, ?, ?, ?, 'sent')",
                (key, price, self._owner, datetime.now(UTC).isoformat(timespec="seconds")),
            )
            return entered.lastrowid

    def settle(self, call: int, outcome: Outcome, content: bytes | None = None) -> None:
        """Record durably what came of a call; a body stored before is kept."""
        with self._transaction() as database:
            if outcome == "free":
                database.execute("DELETE FROM calls WHERE id = ?", (call,))
            else:
                database.execute(
                    "UPDATE calls SET state = ?, content = coalesce(?, content) WHERE id = ?",
                    (outcome, content, call),
                )

    def spent(self) -> tuple[int, float]:
        """Return the number of calls that count, and their cost."""
        with self._connected() as database:
            return _spent(database)

    def take_turn(self, interval: float) -> float:
        """Return the seconds to wait before the next call.

        Calls of all processes are `interval` seconds apart, and none is made in the time of `hold`.
        """
        now = time.time()
        with self._transaction() as database:
            at = max(now, float(database.execute("SELECT next FROM pace").fetchone()[0]))
            database.execute("UPDATE pace SET next = ?", (at + interval,))
        return at - now

    def hold(self, seconds: float) -> None:
        """Let no process make a call for `seconds`."""
        with self._transaction() as database:
            until = time.time() + seconds
            database.execute("UPDATE pace SET next = max(next, ?)", (until,))

    def _find(self, database: sqlite3.Connection, key: str) -> Stored | None:
        row = database.execute(
            "SELECT id, state, content, owner FROM calls WHERE key = ? "
            "AND state IN ('sent', 'answered', 'refused')",
            (key,),
        ).fetchone()
        if row is None or (row[1] == "sent" and not self._is_alive(row[3])):
            return None
        return Stored(call=row[0], state=row[1], content=row[2] or b"")

    def _is_alive(self, owner: str) -> bool:
        """Return whether the process that entered a call still runs: it holds its lock."""
        return owner == self._owner or is_locked(self._folder / "owners" / owner)

    def _require_room(self, database: sqlite3.Connection, price: float) -> None:
        calls, cost = _spent(database)
        if calls + 1 > self._max_calls:
            name, held, limit = "max_calls", f"{calls:,} calls", f"{self._max_calls:,}"
        elif cost + price > self._max_cost * (1 + 1e-9):
            name, held, limit = "max_cost", f"cost {cost:,.2f}", f"{self._max_cost:,.2f}"
        else:
            return
        raise InputError(
            f"generator.{name}: {self._folder} holds {held} of at most {limit}; raise it and run "
            "the same command to go on (what was answered is kept)"
        )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connected() as database:
            database.execute("BEGIN IMMEDIATE")
            yield database
            database.execute("COMMIT")

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """Open a connection for this thread; closing it rolls back."""
        database = None
        try:
            database = sqlite3.connect(self._file, timeout=_BUSY_SECONDS, isolation_level=None)
            database.execute("PRAGMA synchronous = EXTRA")
            yield database
        except sqlite3.Error as error:
            raise InputError(f"generator.store: {self._file} can't be used ({error})") from None
        finally:
            if database is not None:
                database.close()


def _spent(database: sqlite3.Connection) -> tuple[int, float]:
    calls, cost = database.execute(
        "SELECT count(*), total(price) FROM calls WHERE state <> 'refused'"
    ).fetchone()
    return int(calls), float(cost)
