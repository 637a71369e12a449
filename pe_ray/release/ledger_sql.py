"""The SQL of a ledger: what its file holds, and how rows become values.

release.ledger decides, within transactions, what may be charged and what is answered.

The table `chain` has a SHA-256 for each release: of the digest before it, of the row, and of the
answer's own SHA-256. The first digest, at position 0, is of budget, fingerprint, accounting, kept
room, configuration and what an account allows. Each transaction begins with a check of the whole
chain. One that writes ends with a new chain, computed from the rows. An answer is checked when it
is read.

The former version had no chain. Its files can be read: of a damaged row only values that can't be,
or that contradict each other, are noticed there. The first transaction that writes adds the chain.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pe_ray.errors import BudgetError, InputError
from pe_ray.release.accounting import check
from pe_ray.release.adaptive import Cost
from pe_ray.release.sqlite_files import DamageError, connect
from pe_ray.values import Budget, Release, Unit

Accounting = Literal["fixed", "adaptive"]
"""How releases compose: `fixed` is exact and for releases listed before the first is made,
`adaptive` allows each to be chosen by those before it (see release.adaptive)."""

VERSION = 3
_VERSION_WITHOUT_CHAIN = 2
_MECHANISM = "discrete_gaussian"

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
_ACCOUNT_SCHEMA = """CREATE TABLE IF NOT EXISTS account (
  one INTEGER PRIMARY KEY CHECK (one = 1), run TEXT NOT NULL, allowance TEXT NOT NULL)"""
_CHAIN_SCHEMA = f"""
CREATE TABLE configuration (one INTEGER PRIMARY KEY CHECK (one = 1), sha256 TEXT NOT NULL);
CREATE TABLE chain (position INTEGER PRIMARY KEY, answer TEXT, digest TEXT NOT NULL);
{_ACCOUNT_SCHEMA};
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


_Link = tuple[int, str | None, str]
"""Position, SHA-256 of the answer, digest of the chain up to here."""


def create_file(path: Path, terms: Terms) -> None:
    """Create the file at `path` if there is none; one that is there stays as it is."""
    with connect(path, "rwc", "ledger") as database:
        database.execute("BEGIN IMMEDIATE")
        if not database.execute("SELECT 1 FROM sqlite_schema").fetchone():
            for statement in _SCHEMA.split(";\n"):
                database.execute(statement)
            write_terms(database, terms)
            _add_chain(database)
            _write_chain(database)
        _is_chained(database, path)
        database.execute("COMMIT")


def write_terms(database: sqlite3.Connection, terms: Terms) -> None:
    """Make the file one for `terms`, without room kept for releases."""
    budget = terms.budget
    row = (budget.epsilon, budget.delta, budget.unit, terms.fingerprint)
    database.execute("REPLACE INTO budget VALUES (1, ?, ?, ?, ?)", row)
    database.execute("REPLACE INTO accounting VALUES (1, ?)", (terms.accounting,))
    database.execute("DELETE FROM kept")


def write_config_digest(database: sqlite3.Connection, digest: str) -> None:
    """Record the digest of the run's config.yaml."""
    database.execute("REPLACE INTO configuration VALUES (1, ?)", (digest,))


def read_config_digest(database: sqlite3.Connection) -> str | None:
    """Return the recorded digest; None where there is none, as in a file without a chain."""
    if not _has_table(database, "configuration"):
        return None
    row = database.execute("SELECT sha256 FROM configuration").fetchone()
    return row and str(row[0])


def write_allowance(database: sqlite3.Connection, run: str, allowance: Cost) -> None:
    """Record the run's id in accounts, and what the releases in this file may cost in all."""
    database.execute(_ACCOUNT_SCHEMA)  # the first files with a chain have no such table
    row = (run, json.dumps(asdict(allowance)))
    database.execute("REPLACE INTO account VALUES (1, ?, ?)", row)


def read_allowance(database: sqlite3.Connection) -> tuple[str, Cost] | None:
    """Return what `write_allowance` recorded; None where the run was in no account."""
    if not _has_table(database, "account"):
        return None
    row = database.execute("SELECT run, allowance FROM account").fetchone()
    return row and (str(row[0]), Cost(**json.loads(row[1])))


def read_terms(database: sqlite3.Connection) -> Terms:
    """Return what the file was created for."""
    row = database.execute(
        "SELECT epsilon, delta, unit, fingerprint, rule FROM budget JOIN accounting"
    ).fetchone()
    if row is None:
        raise DamageError("the budget or the accounting rule")
    epsilon, delta, unit, fingerprint, rule = row
    known = unit in get_args(Unit) and rule in get_args(Accounting)
    if not known or {type(epsilon), type(delta), type(fingerprint)} != {float, str}:
        raise DamageError("the budget or the accounting rule")
    budget = Budget(epsilon=epsilon, delta=delta, unit=unit)
    return Terms(budget=budget, fingerprint=fingerprint, accounting=rule)


def has_charges(database: sqlite3.Connection) -> bool:
    """Tell whether anything was ever charged."""
    released = database.execute("SELECT 1 FROM releases NOT INDEXED").fetchone()
    return released is not None or has_selection(database)


def has_selection(database: sqlite3.Connection) -> bool:
    """Tell whether the former strategy `select` was charged, which no release in the file shows."""
    if not _has_table(database, "selection"):
        return False
    return database.execute("SELECT 1 FROM selection").fetchone() is not None


def _has_table(database: sqlite3.Connection, name: str) -> bool:
    # As SQLite reads names: a flipped bit may have changed a letter's case, or text to bytes.
    query = "SELECT 1 FROM sqlite_schema WHERE CAST(name AS TEXT) = ? COLLATE NOCASE"
    found = database.execute(query, (name,))
    return found.fetchone() is not None


@contextmanager
def begin(
    path: Path, kind: Literal["IMMEDIATE", "DEFERRED"] = "IMMEDIATE"
) -> Iterator[sqlite3.Connection]:
    """Run a transaction, all or nothing; a deferred one, for readers, needs no write access.

    Guarantee: what it sees is what the transactions before it wrote; InputError where the chain
    shows otherwise.
    """
    with connect(path, "rw", "ledger") as database:
        database.execute(f"BEGIN {kind}")
        if _is_chained(database, path):
            _require_chain(database)
        elif kind == "IMMEDIATE":
            _require_sound(database)
            _add_chain(database)
        yield database
        if kind == "IMMEDIATE":
            _write_chain(database)
        database.execute("COMMIT")


def list_unknown(path: Path) -> list[str]:
    """Return what a file holds besides the columns of a ledger: other tables, columns, triggers."""
    query = (
        "SELECT made.type || ' ' || made.name || coalesce('.' || held.name, '')"
        " FROM sqlite_schema AS made"
        " LEFT JOIN pragma_table_xinfo(made.name) AS held"
        " WHERE made.sql IS NOT NULL"
    )
    with connect(path, "rw", "ledger") as database, closing(sqlite3.connect(":memory:")) as own:
        own.executescript(_SCHEMA + _CHAIN_SCHEMA)
        known, held = (set(each.execute(query).fetchall()) for each in (own, database))
    return sorted(name for (name,) in held - known)


def copy_bytes(path: Path) -> bytes:
    """Return a file with the same content, consistent whoever writes meanwhile."""
    with connect(path, "rw", "ledger") as database, closing(sqlite3.connect(":memory:")) as copy:
        database.backup(copy)
        return copy.serialize()


def _is_chained(database: sqlite3.Connection, path: Path) -> bool:
    """Tell whether the file has a chain; InputError where it is of an unknown version."""
    chained = _has_table(database, "chain")
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version != (VERSION if chained else _VERSION_WITHOUT_CHAIN):
        raise InputError(f"{path}: isn't a ledger of this version of pe_ray; restore a copy")
    return chained


def _add_chain(database: sqlite3.Connection) -> None:
    """Make a file without a chain one of this version; `_write_chain` fills it."""
    for statement in _CHAIN_SCHEMA.split(";\n"):
        database.execute(statement)
    database.execute(f"PRAGMA user_version = {VERSION}")


def _require_sound(database: sqlite3.Connection) -> None:
    """Raise DamageError for what shows damage in a file without a chain."""
    read_terms(database)
    for row in _read_rows(database):
        if _read_entry(row).state == "committed":
            _read_noisy(database, row[0])


def _require_chain(database: sqlite3.Connection) -> None:
    """Raise DamageError unless the chain is that of the rows."""
    stored = _read_chain(database)
    computed = _compute_chain(database, {position: answer for position, answer, _ in stored})
    for given, link in zip(stored, computed, strict=False):
        if given != link:
            raise DamageError(f"release {given[0]}" if given[0] else "the budget")
    if len(stored) != len(computed):
        raise DamageError("the list of releases")


def _write_chain(database: sqlite3.Connection) -> None:
    """Bring the chain up to date with the rows."""
    stored = _read_chain(database)
    answers = {position: answer for position, answer, _ in stored}
    for row in _read_rows(database):
        position = row[0]
        if row[9] == "committed" and answers.get(position) is None:
            query = "SELECT sha256 FROM releases WHERE position = ?"
            answers[position] = database.execute(query, (position,)).fetchone()[0]
    wanted = _compute_chain(database, answers)
    for position in {link[0] for link in stored} - {link[0] for link in wanted}:
        database.execute("DELETE FROM chain WHERE position = ?", (position,))
    for link in set(wanted) - set(stored):
        database.execute("REPLACE INTO chain VALUES (?, ?, ?)", link)


def _read_chain(database: sqlite3.Connection) -> list[_Link]:
    query = "SELECT position, answer, digest FROM chain ORDER BY position"
    return database.execute(query).fetchall()


def _compute_chain(database: sqlite3.Connection, answers: Mapping[int, str | None]) -> list[_Link]:
    """Return the chain of the rows. answers: SHA-256 of each answer, by position."""
    tables = ["budget", "accounting", "kept", "configuration"]
    tables += ["account"] if _has_table(database, "account") else []
    terms = [
        sorted(database.execute(f"SELECT * FROM {table} NOT INDEXED").fetchall(), key=repr)
        for table in tables
    ]
    links: list[_Link] = []
    digest = ""
    for position, values in [(0, terms), *((row[0], row) for row in _read_rows(database))]:
        answer = answers.get(position)
        content = json.dumps([digest, values, answer], default=repr)
        digest = hashlib.sha256(content.encode()).hexdigest()
        links.append((position, answer, digest))
    return links


def insert_release(database: sqlite3.Connection, release: Release, now: str) -> None:
    """Insert `release` as reserved."""
    database.execute(
        "INSERT INTO releases (key, kind, iteration, mechanism, votes_per_unit,"
        " sensitivity, sigma, mu_squared, state, reserved_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'reserved', ?)",
        (
            release.key,
            release.kind,
            release.iteration,
            _MECHANISM,
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


_COLUMNS = (
    "position, key, kind, iteration, mechanism, votes_per_unit, sensitivity, sigma, mu_squared,"
    " state, reserved_at, committed_at"
)


def _read_rows(database: sqlite3.Connection) -> list[tuple[Any, ...]]:
    """Return the columns of all releases in order, without answers.

    By position, as an index on other columns may be damaged where the rows are sound.
    """
    return database.execute(f"SELECT {_COLUMNS} FROM releases ORDER BY position").fetchall()


def _read_entry(row: Sequence[Any]) -> LedgerEntry:
    """Return the values of a row; DamageError where they can't be or contradict each other."""
    _, key, kind, iteration, mechanism, ones, sensitivity, sigma, mu_squared, state, *times = row
    damage = DamageError(f"release {row[0]}")
    types = [type(value) for value in (key, kind, iteration, ones, sigma, times[0])]
    if types != [str, str, int, int, float, str]:
        raise damage
    release = Release(key=key, kind=kind, iteration=iteration, votes_per_unit=ones, sigma=sigma)
    try:
        check(release)  # nothing else was ever charged
    except InputError:
        raise damage from None
    given = [mechanism, state, type(times[1])]
    if given not in ([_MECHANISM, "reserved", type(None)], [_MECHANISM, "committed", str]):
        raise damage
    for stored, value in ((sensitivity, release.sensitivity), (mu_squared, release.mu_squared)):
        if stored != value and not (
            isinstance(stored, float) and value is not None and math.isclose(stored, value)
        ):
            raise damage
    return LedgerEntry(release=release, state=state, reserved_at=times[0], committed_at=times[1])


def read_entries(database: sqlite3.Connection) -> list[LedgerEntry]:
    """Return all charged releases in order; InputError where one is damaged."""
    return [_read_entry(row) for row in _read_rows(database)]


def read_answer(database: sqlite3.Connection, key: str) -> tuple[Release, NDArray[np.int64]] | None:
    """Return the committed release of `key` and its answer; InputError where they are damaged."""
    for row in _read_rows(database):
        entry = _read_entry(row)
        if entry.release.key == key and entry.state == "committed":
            return entry.release, _read_noisy(database, row[0])
    return None


def _read_noisy(database: sqlite3.Connection, position: int) -> NDArray[np.int64]:
    query = "SELECT noisy, sha256 FROM releases WHERE position = ?"
    blob, digest = database.execute(query, (position,)).fetchone() or (None, None)
    digests = {digest}
    if _has_table(database, "chain"):
        query = "SELECT answer FROM chain WHERE position = ?"
        digests |= set(database.execute(query, (position,)).fetchone() or (None,))
    if not isinstance(blob, bytes) or digests != {hashlib.sha256(blob).hexdigest()}:
        raise DamageError(f"the answer of release {position}")
    return np.frombuffer(zlib.decompress(blob), dtype="<i8").astype(np.int64)


def current_time() -> str:
    """Return the time to the second, for readers."""
    return datetime.now(UTC).isoformat(timespec="seconds")
