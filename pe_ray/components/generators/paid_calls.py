"""A store of calls that are paid for: which were made, what they cost, and what was answered.

One SQLite file, which any number of processes may use at once; on several machines it has to lie on
a file system with working locks. A call is entered before it is made and counts from then on, so
the caps hold in any interleaving, and an answer is stored in the transaction that marks it
answered. Of one key, one call is under way or answered (a unique index), so nobody pays twice for
an answer that is there. What a process that died was waiting for is unknown: it stays counted, and
the call is made again.
"""

from __future__ import annotations

import fcntl
import os
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

Outcome = Literal["answered", "refused", "bad", "unknown"]
"""answered: kept for ever. refused: kept, free. bad: paid, unusable, asked again. unknown: counted,
asked again."""

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
class Answer:
    """What is stored for a key. content: the body as it was received; of a refusal, its reason."""

    call: int
    state: Literal["answered", "refused"]
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Calls that count, and their cost: answered, unusable or of unknown fate."""

    calls: int
    cost: float


class PaidCalls:
    """The store in `folder`, made if there is none; one object per process, any threads."""

    def __init__(self, folder: Path, *, max_calls: int, max_cost: float) -> None:
        self._folder, self._file = folder, folder / "calls.sqlite"
        self._max_calls, self._max_cost = max_calls, max_cost
        self._owner = uuid.uuid4().hex
        try:
            (folder / "owners").mkdir(parents=True, exist_ok=True)
            # Held for the life of this object: whoever can lock it knows that the owner is gone.
            self._lock = self._alive(self._owner).open("wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
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

    def answer(self, key: str) -> Answer | None:
        """What is stored for `key`."""
        with self._connected() as database:
            row = database.execute(
                "SELECT id, state, content FROM calls WHERE key = ? "
                "AND state IN ('answered', 'refused')",
                (key,),
            ).fetchone()
        return None if row is None else Answer(call=row[0], state=row[1], content=row[2])

    def under_way(self, key: str) -> bool:
        """Whether a process that lives waits for the answer to `key`."""
        with self._connected() as database:
            row = database.execute(
                "SELECT owner FROM calls WHERE key = ? AND state = 'sent'", (key,)
            ).fetchone()
        return row is not None and self._lives(row[0])

    def claim(self, key: str, price: float) -> int | None:
        """Enter a call for `key`, which counts from now on; returns its number.

        None where another is under way or answered. Raises InputError where a cap is reached, and
        then nothing is entered.
        """
        with self._transaction() as database:
            row = database.execute(
                "SELECT id, owner, state FROM calls WHERE key = ? "
                "AND state IN ('sent', 'answered', 'refused')",
                (key,),
            ).fetchone()
            if row is not None:
                if row[2] != "sent" or self._lives(row[1]):
                    return None
                database.execute("UPDATE calls SET state = 'unknown' WHERE id = ?", (row[0],))
            self._require_room(_spent(database), price)
            made = database.execute(
                "INSERT INTO calls (key, price, owner, at, state) VALUES (?, ?, ?, ?, 'sent')",
                (key, price, self._owner, datetime.now(UTC).isoformat(timespec="seconds")),
            )
            return made.lastrowid

    def settle(self, call: int, outcome: Outcome, content: bytes | None = None) -> None:
        """Say what came of a call, durably."""
        with self._transaction() as database:
            database.execute(
                "UPDATE calls SET state = ?, content = ? WHERE id = ?", (outcome, content, call)
            )

    def reject(self, call: int) -> None:
        """An answer turned out to be unusable: it stays counted, its body kept for a look."""
        with self._transaction() as database:
            database.execute("UPDATE calls SET state = 'bad' WHERE id = ?", (call,))

    def withdraw(self, call: int) -> None:
        """A call that the service turned down, or that never reached it: it doesn't count."""
        with self._transaction() as database:
            database.execute("DELETE FROM calls WHERE id = ?", (call,))

    def spent(self) -> Spent:
        """What counts so far."""
        with self._connected() as database:
            return _spent(database)

    def turn(self, interval: float) -> float:
        """Seconds to wait before the next call, so that calls of all processes are `interval`
        seconds apart, and none is made before the time that `hold` set."""
        now = time.time()
        with self._transaction() as database:
            at = max(now, float(database.execute("SELECT next FROM pace").fetchone()[0]))
            database.execute("UPDATE pace SET next = ?", (at + interval,))
        return at - now

    def hold(self, seconds: float) -> None:
        """No process makes a call for `seconds`."""
        with self._transaction() as database:
            until = time.time() + seconds
            database.execute("UPDATE pace SET next = max(next, ?)", (until,))

    def _require_room(self, spent: Spent, price: float) -> None:
        if spent.calls + 1 > self._max_calls:
            name, held, limit = "max_calls", f"{spent.calls:,} calls", f"{self._max_calls:,}"
        elif spent.cost + price > self._max_cost * (1 + 1e-9):
            name, held, limit = "max_cost", f"cost {spent.cost:,.2f}", f"{self._max_cost:,.2f}"
        else:
            return
        raise InputError(
            f"generator.{name}: {self._folder} holds {held} of at most {limit}; raise it and run "
            "the same command to go on (what was answered is kept)"
        )

    def _alive(self, owner: str) -> Path:
        return self._folder / "owners" / owner

    def _lives(self, owner: str) -> bool:
        """Whether the process that entered a call still runs: it holds its lock until it ends."""
        if owner == self._owner:
            return True
        try:
            handle = os.open(self._alive(owner), os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connected() as database:
            database.execute("BEGIN IMMEDIATE")
            yield database
            database.execute("COMMIT")

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own, as threads can't share one; closing rolls back."""
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


def _spent(database: sqlite3.Connection) -> Spent:
    calls, cost = database.execute(
        "SELECT count(*), total(price) FROM calls WHERE state <> 'refused'"
    ).fetchone()
    return Spent(calls=int(calls), cost=float(cost))
