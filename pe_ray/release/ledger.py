"""The privacy ledger: a durable record of every release; refuses to overspend.

The noisy answer is stored in the same transaction that marks its release committed, so the
releases charged are the releases that exist, after any crash. A reservation is charged from the
moment it is made and reused by whoever asks for the same key again; a committed answer is the one
returned for ever. Times are for readers; nothing depends on them. A committed release's times are
both that of the commit: when it was asked for would tell how long the private records took to vote.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pe_ray.errors import BudgetError, InputError
from pe_ray.release.accounting import check, epsilon_of
from pe_ray.release.adaptive import adaptive_epsilon
from pe_ray.release.selection import (
    Repetitions,
    Selection,
    profile_epsilon,
    renyi_epsilon,
    selection_epsilon,
)
from pe_ray.values import LATTICE, Budget, NoisyHistogram, NoisySums, Release

Accounting = Literal["fixed", "adaptive"]
"""How releases compose: `fixed` is exact and for releases listed before the first is made,
`adaptive` allows each to be chosen by those before it (see release.adaptive)."""

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
_SEARCH_SCHEMA = """
CREATE TABLE IF NOT EXISTS accounting (one INTEGER PRIMARY KEY CHECK (one = 1), rule TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS selection (
  one INTEGER PRIMARY KEY CHECK (one = 1), mechanism TEXT NOT NULL, mean REAL NOT NULL,
  shape TEXT NOT NULL, plans TEXT NOT NULL, winner TEXT, time TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS kept (prefix TEXT PRIMARY KEY, releases TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One charged release. reserved_at: of a committed one the time of the commit; mu_squared:
    votes_per_unit / sigma^2, None without noise.
    """

    release: Release
    state: Literal["reserved", "committed"]
    reserved_at: str
    committed_at: str | None
    mu_squared: float | None


class Ledger:
    """One ledger file; any number of processes may use it at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._transaction("DEFERRED") as database:
            row = database.execute(
                "SELECT epsilon, delta, unit, fingerprint FROM budget"
            ).fetchone()
        if row is None:
            raise InputError(f"{path}: holds no budget; restore it from a copy")
        self.budget = Budget(epsilon=row[0], delta=row[1], unit=row[2])
        self.fingerprint: str = row[3]
        with self._transaction("DEFERRED") as database:
            self.accounting: Accounting = _accounting(database)

    @classmethod
    def create(
        cls, path: Path, budget: Budget, fingerprint: str, accounting: Accounting = "fixed"
    ) -> Ledger:
        """Open the ledger at `path`, made for `budget` if there is none.

        Raises InputError where one exists for another budget or configuration.
        """
        with _connect(path, "rwc") as database:
            database.execute("BEGIN IMMEDIATE")
            if not database.execute("SELECT 1 FROM sqlite_schema").fetchone():
                for statement in (_SCHEMA + _SEARCH_SCHEMA).split(";\n"):
                    database.execute(statement)
                database.execute("INSERT INTO accounting VALUES (1, ?)", (accounting,))
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
        theirs["accounting"], ours["accounting"] = ledger.accounting, accounting
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
            charged = [*(e.release for e in entries), release, *_kept(database, release.key)]
            self._require_room(release.key, charged, _selection(database), _winner(database))
            _insert(database, release, _now())

    def keep_room(self, prefix: str, releases: Sequence[Release]) -> None:
        """Refuse releases whose key starts with `prefix` where they leave no room for `releases`.

        Charges nothing: other keys may use the room.
        """
        rows = json.dumps([asdict(release) for release in releases])
        with self._transaction() as database:
            database.execute("INSERT OR IGNORE INTO kept VALUES (?, ?)", (prefix, rows))

    def reserve_selection(self, selection: Selection) -> None:
        """Charge the best of K runs, once; the runs themselves are charged nowhere else.

        Guarantee: as `reserve`.
        """
        with self._transaction() as database:
            stored = _selection(database)
            if stored is not None:
                if stored != selection:
                    raise BudgetError(
                        "ledger: a selection was charged with other parameters; "
                        "restore the configuration that it was charged for"
                    )
                return
            charged = [entry.release for entry in _entries(database)]
            self._require_room("the selection", charged, selection, ())
            plans = [[asdict(release) for release in plan] for plan in selection.plans]
            repetitions = selection.repetitions
            database.execute(
                "INSERT INTO selection VALUES (1, 'repeat_and_select', ?, ?, ?, NULL, ?)",
                (repetitions.mean, str(repetitions.shape), json.dumps(plans), _now()),
            )

    def commit_selection(self, winner: Sequence[tuple[Release, NDArray[np.int64]]]) -> None:
        """Store the best run's releases, which the selection paid for; a second call does nothing.

        Guarantee: one run's releases are ever stored. All times in the ledger become this one's:
        how long the search took would tell how many runs there were, which nothing accounts for.
        """
        with self._transaction() as database:
            selection = _selection(database)
            if selection is None:
                raise BudgetError("ledger: no selection was charged, so none can be released")
            if _winner(database):
                return
            made = [replace(release, key="") for release, _ in winner]
            if not any([replace(r, key="") for r in plan] == made for plan in selection.plans):
                raise BudgetError("ledger: the best run made other releases than were charged")
            now = _now()
            for release, noisy in winner:
                _insert(database, release, now)
                _store(database, release.key, noisy, now)
            keys = json.dumps([release.key for release, _ in winner])
            database.execute("UPDATE selection SET winner = ?, time = ?", (keys, now))
            database.execute("UPDATE releases SET reserved_at = ?, committed_at = ?", (now, now))

    def selection(self) -> Selection | None:
        """The selection that was charged, None without one."""
        with self._transaction("DEFERRED") as database:
            return _selection(database)

    def selection_done(self) -> bool:
        """Whether the best run's releases are stored."""
        with self._transaction("DEFERRED") as database:
            return bool(_winner(database))

    def paid_by_selection(self) -> tuple[str, ...]:
        """Keys of the releases that the selection paid for."""
        with self._transaction("DEFERRED") as database:
            return _winner(database)

    def bounds(self, delta: float | None = None) -> dict[str, float]:
        """Epsilon at `delta` (default: the budget's) by every accounting that holds for what was
        charged.
        """
        with self._transaction("DEFERRED") as database:
            entries, selection = _entries(database), _selection(database)
            paid = _winner(database)
        others = [entry.release for entry in entries if entry.release.key not in paid]
        delta = self.budget.delta if delta is None else delta
        if selection is None:
            total = epsilon_of if self.accounting == "fixed" else adaptive_epsilon
            return {self.accounting: total(others, delta)}
        found = {"renyi": renyi_epsilon(selection, others, delta)}
        if not others:
            found["privacy_profile"] = profile_epsilon(selection, delta)
        return found

    def _require_room(
        self,
        key: str,
        charged: Sequence[Release],
        selection: Selection | None,
        paid: Sequence[str],
    ) -> None:
        total = self._total(charged, selection, paid)
        if total > self.budget.epsilon:
            raise BudgetError(
                f"privacy.epsilon: {key} would bring the total to {total:.6g}, over "
                f"the budget of {self.budget.epsilon:.6g}; raise the budget in a new run"
            )

    def _total(
        self, charged: Sequence[Release], selection: Selection | None, paid: Sequence[str]
    ) -> float:
        """Epsilon of the selection and all `charged` releases but those that it paid for."""
        others = [release for release in charged if release.key not in paid]
        if selection is not None:
            return selection_epsilon(selection, others, self.budget.delta)
        total = epsilon_of if self.accounting == "fixed" else adaptive_epsilon
        return total(others, self.budget.delta)

    def commit(self, key: str, noisy: NDArray[np.int64]) -> NDArray[np.int64]:
        """Store the release of `key`, unless one is stored already; returns the stored one.

        Guarantee: one answer per key is ever returned; a later draw is dropped unseen.
        """
        with self._transaction() as database:
            stored = _stored(database, key)
            if stored is not None:
                return stored[1]
            _store(database, key, noisy, _now())
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
        with _connect(self.path, "rw") as database, closing(sqlite3.connect(":memory:")) as copy:
            database.backup(copy)
            return copy.serialize()

    def spent(self, delta: float | None = None) -> float:
        """Epsilon at `delta` (default: the budget's) of everything charged, reservations and a
        selection included.
        """
        return min(self.bounds(delta).values())

    @contextmanager
    def _transaction(
        self, kind: Literal["IMMEDIATE", "DEFERRED"] = "IMMEDIATE"
    ) -> Iterator[sqlite3.Connection]:
        """All or nothing; deferred for readers, which then need no write access."""
        with _connect(self.path, "rw") as database:
            database.execute(f"BEGIN {kind}")
            _check_version(database, self.path)
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
        database.execute("PRAGMA secure_delete = ON")  # times that were replaced leave no bytes
        yield database
    except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter: of a damaged schema
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


def _insert(database: sqlite3.Connection, release: Release, now: str) -> None:
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
            now,
        ),
    )


def _store(database: sqlite3.Connection, key: str, noisy: NDArray[np.int64], now: str) -> None:
    blob = zlib.compress(np.ascontiguousarray(noisy, dtype="<i8").tobytes(), 1)
    changed = database.execute(
        "UPDATE releases SET state = 'committed', reserved_at = ?, committed_at = ?, noisy = ?,"
        " sha256 = ? WHERE key = ? AND state = 'reserved'",
        (now, now, blob, hashlib.sha256(blob).hexdigest(), key),
    ).rowcount
    if changed != 1:
        raise BudgetError(f"ledger: {key} was never charged, so it can't be released")


def _has(database: sqlite3.Connection, table: str) -> bool:
    """Ledgers made before there was a search lack its tables."""
    found = database.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
    return found is not None


def _accounting(database: sqlite3.Connection) -> Accounting:
    if not _has(database, "accounting"):
        return "fixed"
    rule: Accounting = database.execute("SELECT rule FROM accounting").fetchone()[0]
    return rule


def _selection(database: sqlite3.Connection) -> Selection | None:
    if not _has(database, "selection"):
        return None
    row = database.execute("SELECT mean, shape, plans FROM selection").fetchone()
    if row is None:
        return None
    plans = tuple(tuple(Release(**release) for release in plan) for plan in json.loads(row[2]))
    return Selection(repetitions=Repetitions(mean=row[0], shape=float(row[1])), plans=plans)


def _kept(database: sqlite3.Connection, key: str) -> list[Release]:
    """What must still be affordable after `key` is charged."""
    if not _has(database, "kept"):
        return []
    rows = database.execute("SELECT prefix, releases FROM kept").fetchall()
    texts = [text for prefix, text in rows if key.startswith(prefix)]
    return [Release(**release) for text in texts for release in json.loads(text)]


def _winner(database: sqlite3.Connection) -> tuple[str, ...]:
    """Keys of the releases that the selection paid for; none before it is committed."""
    if not _has(database, "selection"):
        return ()
    row = database.execute("SELECT winner FROM selection").fetchone()
    return tuple(json.loads(row[0])) if row is not None and row[0] else ()


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
