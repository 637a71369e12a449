"""The privacy ledger: a durable record of every release; refuses to overspend.

The noisy answer is stored in the same transaction that marks its release committed, so the
releases charged are the releases that exist, after any crash. A reservation is charged from the
moment it is made and reused by whoever asks for the same key again; a committed answer is the one
returned for ever. Times are for readers; nothing depends on them. A committed release's times are
both that of the commit: when it was asked for would tell how long the private records took to vote.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pe_ray.errors import BudgetError, InputError
from pe_ray.release import ledger_sql as file
from pe_ray.release.accounting import check, epsilon_of
from pe_ray.release.adaptive import adaptive_epsilon
from pe_ray.release.ledger_sql import Accounting, LedgerEntry
from pe_ray.release.selection import (
    Selection,
    selection_bounds,
)
from pe_ray.values import LATTICE, Budget, NoisyHistogram, NoisySums, Release


class Ledger:
    """One ledger file; any number of processes may use it at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with file.transaction(path, "DEFERRED") as database:
            made_for = file.budget(database)
            if made_for is None:
                raise InputError(f"{path}: holds no budget; restore it from a copy")
            self.budget, self.fingerprint = made_for
            self.accounting: Accounting = file.accounting(database)

    @classmethod
    def create(
        cls,
        path: Path,
        budget: Budget,
        fingerprint: str,
        accounting: Accounting = "fixed",
        *,
        renew: bool = False,
    ) -> Ledger:
        """Open the ledger at `path`, made for `budget` if there is none.

        InputError where one exists for another budget or configuration; with `renew`, one to which
        nothing was charged is made anew.
        """
        file.make(path, budget, fingerprint, accounting)
        if renew:
            with file.transaction(path) as database:
                if not file.charged(database):
                    file.remake(database, budget, fingerprint, accounting)
        ledger = cls(path)
        theirs = {**asdict(ledger.budget), "fingerprint": ledger.fingerprint}
        ours = {**asdict(budget), "fingerprint": fingerprint}
        theirs["accounting"], ours["accounting"] = ledger.accounting, accounting
        for name, value in theirs.items():
            if value != ours[name]:
                raise InputError(
                    f"{path}: belongs to another configuration or budget ({name} {value}, not "
                    f"{ours[name]}); restore the one in config.yaml, or give another output.path"
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
        with file.transaction(self.path) as database:
            self._require_same(database)
            entries = file.entries(database)
            for entry in entries:
                if entry.release.key == release.key:
                    if entry.release != release:
                        raise BudgetError(
                            f"ledger: {release.key} was charged with other parameters; "
                            "restore the configuration that it was charged for"
                        )
                    return
            charged = [*(e.release for e in entries), release, *file.kept(database, release.key)]
            selection, paid = file.selection(database), file.winner(database)
            self._require_room(release.key, charged, selection, paid)
            file.insert(database, release, file.now())

    def keep_room(self, prefix: str, releases: Sequence[Release]) -> None:
        """Refuse releases whose key starts with `prefix` where they leave no room for `releases`.

        Charges nothing: other keys may use the room.
        """
        with file.transaction(self.path) as database:
            file.keep(database, prefix, releases)

    def reserve_selection(self, selection: Selection) -> None:
        """Charge the best of K runs, once; the runs themselves are charged nowhere else.

        Guarantee: as `reserve`.
        """
        with file.transaction(self.path) as database:
            self._require_same(database)
            stored = file.selection(database)
            if stored is not None:
                if stored != selection:
                    raise BudgetError(
                        "ledger: a selection was charged with other parameters; "
                        "restore the configuration that it was charged for"
                    )
                return
            charged = [entry.release for entry in file.entries(database)]
            self._require_room("the selection", charged, selection, ())
            file.insert_selection(database, selection, file.now())

    def commit_selection(self, winner: Sequence[tuple[Release, NDArray[np.int64]]]) -> None:
        """Store the best run's releases, which the selection paid for; a second call does nothing.

        Guarantee: one run's releases are ever stored. All times in the ledger become this one's:
        how long the search took would tell how many runs there were, which nothing accounts for.
        """
        with file.transaction(self.path) as database:
            selection = file.selection(database)
            if selection is None:
                raise BudgetError("ledger: no selection was charged, so none can be released")
            if file.winner(database):
                return
            made = [replace(release, key="") for release, _ in winner]
            if not any([replace(r, key="") for r in plan] == made for plan in selection.plans):
                raise BudgetError("ledger: the best run made other releases than were charged")
            now = file.now()
            for release, noisy in winner:
                file.insert(database, release, now)
                file.store(database, release.key, noisy, now)
            file.store_winner(database, [release.key for release, _ in winner], now)

    def selection(self) -> Selection | None:
        """The selection that was charged, None without one."""
        with file.transaction(self.path, "DEFERRED") as database:
            return file.selection(database)

    def selection_done(self) -> bool:
        """Whether the best run's releases are stored."""
        with file.transaction(self.path, "DEFERRED") as database:
            return bool(file.winner(database))

    def paid_by_selection(self) -> tuple[str, ...]:
        """Keys of the releases that the selection paid for."""
        with file.transaction(self.path, "DEFERRED") as database:
            return file.winner(database)

    def bounds(self, delta: float | None = None) -> dict[str, float]:
        """Epsilon at `delta` (default: the budget's) by every accounting that holds for what was
        charged.
        """
        with file.transaction(self.path, "DEFERRED") as database:
            entries, selection = file.entries(database), file.selection(database)
            paid = file.winner(database)
        charged = [entry.release for entry in entries]
        return self._bounds(charged, selection, paid, self.budget.delta if delta is None else delta)

    def _require_same(self, database: sqlite3.Connection) -> None:
        """Refuse to charge a file that was made anew, for another budget, since it was opened."""
        if file.budget(database) != (self.budget, self.fingerprint):
            raise BudgetError(
                f"{self.path}: was made for another run meanwhile; nothing is charged"
            )

    def _require_room(
        self,
        key: str,
        charged: Sequence[Release],
        selection: Selection | None,
        paid: Sequence[str],
    ) -> None:
        total = min(self._bounds(charged, selection, paid, self.budget.delta).values())
        if total > self.budget.epsilon:
            raise BudgetError(
                f"privacy.epsilon: {key} would bring the total to {total:.6g}, over "
                f"the budget of {self.budget.epsilon:.6g}; raise the budget in a new run"
            )

    def _bounds(
        self,
        charged: Sequence[Release],
        selection: Selection | None,
        paid: Sequence[str],
        delta: float,
    ) -> dict[str, float]:
        """Epsilon of the selection and all `charged` releases but those that it paid for."""
        others = [release for release in charged if release.key not in paid]
        if selection is not None:
            return selection_bounds(selection, others, delta)
        total = epsilon_of if self.accounting == "fixed" else adaptive_epsilon
        return {self.accounting: total(others, delta)}

    def commit(self, key: str, noisy: NDArray[np.int64]) -> NDArray[np.int64]:
        """Store the release of `key`, unless one is stored already; returns the stored one.

        Guarantee: one answer per key is ever returned; a later draw is dropped unseen.
        """
        with file.transaction(self.path) as database:
            stored = file.stored(database, key)
            if stored is not None:
                return stored[1]
            file.store(database, key, noisy, file.now())
            stored = file.stored(database, key)
            assert stored is not None
            return stored[1]

    def stored(self, key: str) -> NDArray[np.int64] | None:
        """What was released under `key`, in votes or lattice steps; None where nothing was yet."""
        with file.transaction(self.path, "DEFERRED") as database:
            stored = file.stored(database, key)
        return None if stored is None else stored[1]

    def released(self, key: str) -> NoisyHistogram | None:
        """The histogram released under `key`, None where there is none yet."""
        with file.transaction(self.path, "DEFERRED") as database:
            stored = file.stored(database, key)
        return None if stored is None else NoisyHistogram(release=stored[0], noisy_votes=stored[1])

    def released_sums(self, key: str) -> NoisySums | None:
        """The sums released under `key`, None where there are none yet."""
        with file.transaction(self.path, "DEFERRED") as database:
            stored = file.stored(database, key)
        return None if stored is None else NoisySums(release=stored[0], sums=stored[1] / LATTICE)

    @property
    def charged(self) -> bool:
        """Whether anything was ever charged."""
        with file.transaction(self.path, "DEFERRED") as database:
            return file.charged(database)

    def entries(self) -> tuple[LedgerEntry, ...]:
        """All charged releases, in order."""
        with file.transaction(self.path, "DEFERRED") as database:
            return tuple(file.entries(database))

    def copied(self) -> bytes:
        """A ledger file with the same content, consistent whoever writes meanwhile."""
        return file.copied(self.path)

    def spent(self, delta: float | None = None) -> float:
        """Epsilon at `delta` (default: the budget's) of everything charged, reservations and a
        selection included.
        """
        return min(self.bounds(delta).values())
