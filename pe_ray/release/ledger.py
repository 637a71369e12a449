"""The privacy ledger: a durable record of every release; refuses to overspend.

The noisy answer is stored in the same transaction that marks its release committed, so the
releases charged are the releases that exist, after any crash. A reservation is charged from the
moment it is made and reused by whoever asks for the same key again; a committed answer is the one
returned for ever. Times are for readers; nothing depends on them.
"""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pe_ray.errors import BudgetError, InputError
from pe_ray.release.accounting import check, epsilon_of
from pe_ray.values import LATTICE, Budget, NoisyHistogram, NoisySums, Release

VERSION = 2
BUSY_SECONDS = 120.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS budget (
  one INTEGER PRIMARY KEY CHECK (one = 1), epsilon REAL NOT NULL, delta REAL NOT NULL,
  unit TEXT NOT NULL, fingerprint TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS releases (
  position INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, kind TEXT NOT NULL,
  iteration INTEGER NOT NULL, mechanism TEXT NOT NULL, votes_per_unit INTEGER NOT NULL,
  sensitivity REAL NOT NULL, sigma REAL NOT NULL, mu_squared REAL,
  state TEXT NOT NULL CHECK (state IN ('reserved', 'committed')),
  reserved_at TEXT NOT NULL, committed_at TEXT, noisy BLOB, sha256 TEXT);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One charged release. mu_squared: votes_per_unit / sigma^2, None without noise."""

    release: Release
    state: Literal["reserved", "committed"]
    reserved_at: str
    committed_at: str | None
    mu_squared: float | None


class Ledger:
    """One ledger file; any number of processes may use it at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._transaction("DEFERRED") as database:
            row = database.execute(
                "SELECT epsilon, delta, unit, fingerprint FROM budget"
            ).fetchone()
        if row is None:
            raise InputError(f"{path}: holds no budget; restore it from a copy")
        self.budget = Budget(epsilon=row[0], delta=row[1], unit=row[2])
        self.fingerprint: str = row[3]

    @classmethod
    def create(cls, path: Path, budget: Budget, fingerprint: str) -> Ledger:
        """Open the ledger at `path`, made for `budget` if there is none.

        Raises InputError where one exists for another budget or configuration.
        """
        with _connect(path, "rwc") as database:
            database.execute("BEGIN IMMEDIATE")
            if not database.execute("SELECT 1 FROM sqlite_schema").fetchone():
                for statement in _SCHEMA.split(";\n"):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {VERSION}")
            _check_version(database, path)
            database.execute(
                "INSERT OR IGNORE INTO budget VALUES (1, ?, ?, ?, ?)",
                (budget.epsilon, budget.delta, budget.unit, fingerprint),
            )
            database.execute("COMMIT")
        ledger = cls(path)
        theirs = {**asdict(ledger.budget), "fingerprint": ledger.fingerprint}
        ours = {**asdict(budget), "fingerprint": fingerprint}
        for name, value in theirs.items():
            if value != ours[name]:
                raise InputError(
                    f"{path}: belongs to another configuration or budget ({name} {value}, not "
                    f"{ours[name]}); give another output.path"
                )
        return ledger

    @classmethod
    def open(cls, path: Path) -> Ledger:
        """Open an existing ledger."""
        if not path.exists():
            raise InputError(f"{path}: there is no ledger here")
        return cls(path)

    def reserve(self, release: Release) -> None:
        """Charge `release`; a second call with the same release changes nothing.

        Guarantee: in any interleaving of processes, all releases ever charged together stay
        within the budget; BudgetError otherwise, and then nothing is charged.
        """
        check(release)
        with self._transaction() as database:
            entries = _entries(database)
            for entry in entries:
                if entry.release.key == release.key:
                    if entry.release != release:
                        raise BudgetError(
                            f"ledger: {release.key} was charged with other parameters; "
                            "restore the configuration that it was charged for"
                        )
                    return
            total = epsilon_of([*(e.release for e in entries), release], self.budget.delta)
            if total > self.budget.epsilon:
                raise BudgetError(
                    f"privacy.epsilon: {release.key} would bring the total to {total:.6g}, over "
                    f"the budget of {self.budget.epsilon:.6g}; raise the budget in a new run"
                )
            database.execute(
                "INSERT INTO releases (key, kind, iteration, mechanism, votes_per_unit,"
                " sensitivity, sigma, mu_squared, state, reserved_at)"
                " VALUES (?, ?, ?, 'discrete_gaussian', ?, ?, ?, ?, 'reserved', ?)",
                (
                    release.key,
                    release.kind,
                    release.iteration,
                    release.votes_per_unit,
                    release.sensitivity,
                    release.sigma,
                    release.votes_per_unit / release.sigma**2 if release.sigma else None,
                    _now(),
                ),
            )

    def commit(self, key: str, noisy: NDArray[np.int64]) -> NDArray[np.int64]:
        """Store the release of `key`, unless one is stored already; returns the stored one.

        Guarantee: one answer per key is ever returned; a later draw is dropped unseen.
        """
        with self._transaction() as database:
            stored = _stored(database, key)
            if stored is not None:
                return stored[1]
            blob = zlib.compress(np.ascontiguousarray(noisy, dtype="<i8").tobytes(), 1)
            changed = database.execute(
                "UPDATE releases SET state = 'committed', committed_at = ?, noisy = ?,"
                " sha256 = ? WHERE key = ? AND state = 'reserved'",
                (_now(), blob, hashlib.sha256(blob).hexdigest(), key),
            ).rowcount
            if changed != 1:
                raise BudgetError(f"ledger: {key} was never charged, so it can't be released")
            stored = _stored(database, key)
            assert stored is not None
            return stored[1]

    def stored(self, key: str) -> NDArray[np.int64] | None:
        """What was released under `key`, in votes or lattice steps; None where nothing was yet."""
        with self._transaction("DEFERRED") as database:
            stored = _stored(database, key)
        return None if stored is None else stored[1]

    def released(self, key: str) -> NoisyHistogram | None:
        """The histogram released under `key`, None where there is none yet."""
        with self._transaction("DEFERRED") as database:
            stored = _stored(database, key)
        return None if stored is None else NoisyHistogram(release=stored[0], noisy_votes=stored[1])

    def released_sums(self, key: str) -> NoisySums | None:
        """The sums released under `key`, None where there are none yet."""
        with self._transaction("DEFERRED") as database:
            stored = _stored(database, key)
        return None if stored is None else NoisySums(release=stored[0], sums=stored[1] / LATTICE)

    def entries(self) -> tuple[LedgerEntry, ...]:
        """All charged releases, in order."""
        with self._transaction("DEFERRED") as database:
            return tuple(_entries(database))

    def copied(self) -> bytes:
        """A ledger file with the same content, consistent whoever writes meanwhile."""
        with _connect(self._path, "rw") as database, closing(sqlite3.connect(":memory:")) as copy:
            database.backup(copy)
            return copy.serialize()

    def spent(self) -> float:
        """Epsilon at the budget's delta of everything charged, reservations included."""
        return epsilon_of([entry.release for entry in self.entries()], self.budget.delta)

    @contextmanager
    def _transaction(
        self, kind: Literal["IMMEDIATE", "DEFERRED"] = "IMMEDIATE"
    ) -> Iterator[sqlite3.Connection]:
        """All or nothing; deferred for readers, which then need no write access."""
        with _connect(self._path, "rw") as database:
            database.execute(f"BEGIN {kind}")
            _check_version(database, self._path)
            yield database
            database.execute("COMMIT")


@contextmanager
def _connect(path: Path, mode: Literal["rw", "rwc"]) -> Iterator[sqlite3.Connection]:
    """A connection of its own, since they must not survive a fork; closing rolls back."""
    database = None
    try:
        uri = f"{path.resolve().as_uri()}?mode={mode}"
        database = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
        database.execute("PRAGMA synchronous = EXTRA")  # syncs the folder as well
        yield database
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise InputError(
                f"{path}: no space left on the ledger's disk; free some, then the same command "
                "continues"
            ) from None
        raise InputError(f"{path}: the ledger can't be used ({error}); restore a copy") from error
    finally:
        if database is not None:
            database.close()


def _check_version(database: sqlite3.Connection, path: Path) -> None:
    if database.execute("PRAGMA user_version").fetchone()[0] != VERSION:
        raise InputError(f"{path}: isn't a ledger of this version of pe_ray; restore a copy")


_COLUMNS = "key, kind, iteration, votes_per_unit, sigma"


def _release(row: Sequence[Any]) -> Release:
    return Release(key=row[0], kind=row[1], iteration=row[2], votes_per_unit=row[3], sigma=row[4])


def _entries(database: sqlite3.Connection) -> list[LedgerEntry]:
    rows = database.execute(
        f"SELECT {_COLUMNS}, state, reserved_at, committed_at, mu_squared"
        " FROM releases ORDER BY position"
    ).fetchall()
    return [
        LedgerEntry(
            release=_release(row),
            state=row[5],
            reserved_at=row[6],
            committed_at=row[7],
            mu_squared=row[8],
        )
        for row in rows
    ]


def _stored(database: sqlite3.Connection, key: str) -> tuple[Release, NDArray[np.int64]] | None:
    row = database.execute(
        f"SELECT {_COLUMNS}, noisy, sha256 FROM releases WHERE key = ? AND state = 'committed'",
        (key,),
    ).fetchone()
    if row is None:
        return None
    if hashlib.sha256(row[5]).hexdigest() != row[6]:
        raise InputError(f"ledger: the stored release {key} is damaged; restore a copy")
    noisy = np.frombuffer(zlib.decompress(row[5]), dtype="<i8").astype(np.int64)
    return _release(row), noisy


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
