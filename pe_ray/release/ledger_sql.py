"""The SQL of a ledger: what its file holds, and how rows become values.

release.ledger decides, within transactions, what may be charged and what is answered.
"""

from __future__ import annotations

import hashlib
import json
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
from pe_ray.release.accounting import check
from pe_ray.values import Budget, Release

Accounting = Literal["fixed", "adaptive"]
"""How releases compose: `fixed` is exact and for releases listed before the first is made,
`adaptive` allows each to be chosen by those before it (see release.adaptive)."""

VERSION = 2
BUSY_SECONDS = 120.0

_SCHEMA = """
CREATE TABLE budget (
  one INTEGER PRIMARY KEY CHECK (one = 1), epsilon REAL NOT NULL, delta REAL NOT NULL,
  unit TEXT NOT NULL, fingerprint TEXT NOT NULL);
CREATE TABLE releases (
  position INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, kind TEXT NOT NULL,
  iteration INTEGER NOT NULL, mechanism TEXT NOT NULL, votes_per_unit INTEGER NOT NULL,
  sensitivity REAL NOT NULL, sigma REAL NOT NULL, mu_squared REAL,
  state TEXT NOT NULL CHECK (state IN ('reserved', 'committed')),
  reserved_at TEXT NOT NULL, committed_at TEXT, noisy BLOB, sha256 TEXT);
CREATE TABLE accounting (one INTEGER PRIMARY KEY CHECK (one = 1), rule TEXT NOT NULL);
CREATE TABLE kept (prefix TEXT PRIMARY KEY, releases TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a ledger was created for. fingerprint: of the configuration."""

    budget: Budget
    fingerprint: str
    accounting: Accounting


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One charged release. reserved_at: of a committed release, the time of the commit."""

    release: Release
    state: Literal["reserved", "committed"]
    reserved_at: str
    committed_at: str | None


def create_file(path: Path, terms: Terms) -> None:
    """Create the file at `path` if there is none; one that is there stays as it is."""
    with _connect(path, "rwc") as database:
        database.execute("BEGIN IMMEDIATE")
        if not database.execute("SELECT 1 FROM sqlite_schema").fetchone():
            for statement in _SCHEMA.split(";\n"):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {VERSION}")
            write_terms(database, terms)
        _check_version(database, path)
        database.execute("COMMIT")


def write_terms(database: sqlite3.Connection, terms: Terms) -> None:
    """Make the file one for `terms`, without room kept for releases."""
    budget = terms.budget
    row = (budget.epsilon, budget.delta, budget.unit, terms.fingerprint)
    database.execute("REPLACE INTO budget VALUES (1, ?, ?, ?, ?)", row)
    database.execute("REPLACE INTO accounting VALUES (1, ?)", (terms.accounting,))
    database.execute("DELETE FROM kept")


def read_terms(database: sqlite3.Connection) -> Terms:
    """Return what the file was created for."""
    row = database.execute(
        "SELECT epsilon, delta, unit, fingerprint, rule FROM budget JOIN accounting"
    ).fetchone()
    if row is None:
        raise InputError("ledger: its budget or its accounting rule is missing; restore a copy")
    budget = Budget(epsilon=row[0], delta=row[1], unit=row[2])
    return Terms(budget=budget, fingerprint=row[3], accounting=row[4])


def has_charges(database: sqlite3.Connection) -> bool:
    """Tell whether anything was ever charged."""
    released = database.execute("SELECT 1 FROM releases").fetchone()
    return released is not None or has_selection(database)


def has_selection(database: sqlite3.Connection) -> bool:
    """Tell whether the former strategy `select` was charged, which no release in the file shows."""
    table = database.execute("SELECT 1 FROM sqlite_schema WHERE name = 'selection'").fetchone()
    return bool(table) and database.execute("SELECT 1 FROM selection").fetchone() is not None


@contextmanager
def begin(
    path: Path, kind: Literal["IMMEDIATE", "DEFERRED"] = "IMMEDIATE"
) -> Iterator[sqlite3.Connection]:
    """Run a transaction, all or nothing; a deferred one, for readers, needs no write access."""
    with _connect(path, "rw") as database:
        database.execute(f"BEGIN {kind}")
        _check_version(database, path)
        yield database
        database.execute("COMMIT")


def copy_bytes(path: Path) -> bytes:
    """Return a file with the same content, consistent whoever writes meanwhile."""
    with _connect(path, "rw") as database, closing(sqlite3.connect(":memory:")) as copy:
        database.backup(copy)
        return copy.serialize()


@contextmanager
def _connect(path: Path, mode: Literal["rw", "rwc"]) -> Iterator[sqlite3.Connection]:
    """Open a connection, used once since none survives a fork; closing it rolls back."""
    database = None
    try:
        uri = f"{path.resolve().as_uri()}?mode={mode}"
        database = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
        database.execute("PRAGMA synchronous = EXTRA")  # syncs the folder as well
        database.execute("PRAGMA secure_delete = ON")  # replaced times leave no bytes
        yield database
    except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter where a schema is damaged
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


def insert_release(database: sqlite3.Connection, release: Release, now: str) -> None:
    """Insert `release` as reserved."""
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
            release.mu_squared,
            now,
        ),
    )


def store_answer(
    database: sqlite3.Connection, key: str, noisy: NDArray[np.int64], now: str
) -> None:
    """Commit the release of `key` with its answer; BudgetError where it isn't reserved."""
    blob = zlib.compress(np.ascontiguousarray(noisy, dtype="<i8").tobytes(), 1)
    changed = database.execute(
        "UPDATE releases SET state = 'committed', reserved_at = ?, committed_at = ?, noisy = ?,"
        " sha256 = ? WHERE key = ? AND state = 'reserved'",
        (now, now, blob, hashlib.sha256(blob).hexdigest(), key),
    ).rowcount
    if changed != 1:
        raise BudgetError(f"ledger: {key} was never charged, so it can't be released")


def keep_room(database: sqlite3.Connection, prefix: str, releases: Sequence[Release]) -> None:
    """Let keys that start with `prefix` leave room for `releases`; the first call counts."""
    rows = json.dumps([asdict(release) for release in releases])
    database.execute("INSERT OR IGNORE INTO kept VALUES (?, ?)", (prefix, rows))


def read_kept(database: sqlite3.Connection, key: str) -> list[Release]:
    """Return what must still be affordable after `key` is charged."""
    rows = database.execute("SELECT prefix, releases FROM kept").fetchall()
    texts = [text for prefix, text in rows if key.startswith(prefix)]
    return [Release(**release) for text in texts for release in json.loads(text)]


_COLUMNS = "key, kind, iteration, votes_per_unit, sigma"


def _release(row: Sequence[Any]) -> Release:
    key, kind, iteration, ones, sigma = row[:5]
    types = [type(value) for value in (key, kind, iteration, ones, sigma)]
    damaged = InputError("ledger: a release's parameters are damaged; restore a copy")
    if types != [str, str, int, int, float]:
        raise damaged
    release = Release(key=key, kind=kind, iteration=iteration, votes_per_unit=ones, sigma=sigma)
    try:
        check(release)  # nothing else was ever charged
    except InputError:
        raise damaged from None
    return release


def read_entries(database: sqlite3.Connection) -> list[LedgerEntry]:
    """Return all charged releases in order; InputError where one is damaged."""
    rows = database.execute(
        f"SELECT {_COLUMNS}, state, reserved_at, committed_at FROM releases ORDER BY position"
    ).fetchall()
    return [
        LedgerEntry(release=_release(row), state=row[5], reserved_at=row[6], committed_at=row[7])
        for row in rows
    ]


def read_answer(database: sqlite3.Connection, key: str) -> tuple[Release, NDArray[np.int64]] | None:
    """Return the committed release of `key` and its answer; InputError where they are damaged."""
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


def current_time() -> str:
    """Return the time to the second, for readers."""
    return datetime.now(UTC).isoformat(timespec="seconds")
