"""A store of calls that are paid for: which were made, what they cost, and what was answered.

One SQLite file that any number of processes may use at once. On several machines it must lie on a
file system with working locks. A call is entered before it is made and counts from then on, so the
caps hold in any interleaving. An answer is stored in the transaction that marks it answered. Who
asks holds the lock on its key, so nobody pays twice for an answer that is there. If a process dies
while it waits for an answer, nobody knows whether the call was paid for: it stays counted, and the
call is made again.
"""

from __future__ import annotations

import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pe_ray.errors import InputError
from pe_ray.files.locks import locked
from pe_ray.files.storage import io_errors_as_input_errors

Outcome = Literal["answered", "refused", "bad", "unknown", "free"]
"""answered: kept. refused: kept, not counted. bad: counted, unusable, so asked again. unknown:
counted, asked again. free: forgotten, as if it had not been made."""

_BUSY_SECONDS = 120.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
  id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, price REAL NOT NULL,
  owner TEXT NOT NULL, at TEXT NOT NULL, state TEXT NOT NULL
    CHECK (state IN ('sent', 'answered', 'refused', 'bad', 'unknown')), content BLOB);
CREATE UNIQUE INDEX IF NOT EXISTS once ON calls (key)
  WHERE state IN ('sent', 'answered', 'refused');
CREATE INDEX IF NOT EXISTS counted ON calls (state, price);
CREATE TABLE IF NOT EXISTS pace (one INTEGER PRIMARY KEY CHECK (one = 1), next REAL NOT NULL);
INSERT OR IGNORE INTO pace VALUES (1, 0);
PRAGMA user_version = 1;
"""


class PaidCalls:
    """The store in `folder`, created if it is missing; any threads may share it.

    field: of the configuration, where `store` and the caps stand.
    """

    def __init__(
        self, folder: Path, *, max_calls: int, max_cost: float, field: str = "generator"
    ) -> None:
        self._field = field
        self._folder, self._locks = folder, folder / "locks"
        self._max_calls, self._max_cost = max_calls, max_cost
        with io_errors_as_input_errors(f"{self._field}.store", folder):
            self._locks.mkdir(parents=True, exist_ok=True)
        with self._connected() as database:
            database.executescript(_SCHEMA)

    @contextmanager
    def claim(self, key: str) -> Iterator[None]:
        """Hold `key`, so that others who want its answer wait for it; a dead process holds none."""
        file = self._locks / key
        with ExitStack() as held:
            with io_errors_as_input_errors(f"{self._field}.store", file):
                held.enter_context(locked(file))
            yield
            file.unlink(missing_ok=True)  # who waits on it finds the answer then

    def find(self, key: str) -> tuple[Outcome, bytes] | None:
        """Return the answer, or the reason of a refusal; None if `key` has to be asked (again)."""
        with self._connected() as database:
            found: tuple[Outcome, bytes] | None = database.execute(
                "SELECT state, content FROM calls WHERE key = ? "
                "AND state IN ('answered', 'refused')",
                (key,),
            ).fetchone()
        return found

    def enter(self, key: str, price: float) -> None:
        """Enter a call for `key`, which counts from now on; only for who holds the key.

        Raises InputError if a cap is reached; nothing is entered then.
        """
        with self._connected() as database:
            database.execute("BEGIN IMMEDIATE")
            # What is still marked as sent was so by a process that died.
            database.execute(
                "UPDATE calls SET state = 'unknown' WHERE key = ? AND state = 'sent'", (key,)
            )
            self._require_room(database, price)
            at = datetime.now(UTC).isoformat(timespec="seconds")
            database.execute(
                "INSERT INTO calls (key, price, owner, at, state) VALUES (?, ?, ?, ?, 'sent')",
                (key, price, socket.gethostname(), at),
            )
            database.execute("COMMIT")

    def settle(self, key: str, outcome: Outcome, content: bytes | None = None) -> None:
        """Record durably what came of the call for `key`; a body stored before is kept."""
        with self._connected() as database:
            if outcome == "free":
                database.execute("DELETE FROM calls WHERE key = ? AND state = 'sent'", (key,))
            else:
                database.execute(
                    "UPDATE calls SET state = ?, content = coalesce(?, content) "
                    "WHERE key = ? AND state IN ('sent', 'answered')",
                    (outcome, content, key),
                )

    def take_turn(self, interval: float) -> float:
        """Return the seconds to wait before the next call.

        Calls of all processes are `interval` seconds apart, and none is made in the time of `hold`.
        """
        now = time.time()
        with self._connected() as database:
            ((after,),) = database.execute(
                "UPDATE pace SET next = max(next, ?) + ? RETURNING next", (now, interval)
            ).fetchall()
        return max(0.0, float(after) - interval - now)

    def hold(self, seconds: float) -> None:
        """Let no process make a call for `seconds`."""
        with self._connected() as database:
            until = time.time() + seconds
            database.execute("UPDATE pace SET next = max(next, ?)", (until,))

    def _require_room(self, database: sqlite3.Connection, price: float) -> None:
        calls, cost = database.execute(
            "SELECT count(*), total(price) FROM calls WHERE state <> 'refused'"
        ).fetchone()
        if calls + 1 > self._max_calls:
            name, held, limit = "max_calls", f"{calls:,} calls", f"{self._max_calls:,}"
        elif cost + price > self._max_cost * (1 + 1e-9):
            name, held, limit = "max_cost", f"cost {cost:,.2f}", f"{self._max_cost:,.2f}"
        else:
            return
        raise InputError(
            f"{self._field}.{name}: {self._folder} holds {held} of at most {limit}; raise it and "
            "run the same command to go on (what was answered is kept)"
        )

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """Open a connection, in autocommit mode, for this thread; closing it rolls back."""
        file = self._folder / "calls.sqlite"
        try:
            with closing(
                sqlite3.connect(file, timeout=_BUSY_SECONDS, isolation_level=None)
            ) as database:
                database.execute("PRAGMA synchronous = EXTRA")
                yield database
        except sqlite3.Error as error:
            raise InputError(f"{self._field}.store: {file} can't be used ({error})") from None
