"""The privacy ledger: a durable record of every release; refuses to overspend.

The noisy answer is stored in the same transaction that marks its release committed, so the
releases charged are the releases that exist, after any crash. A reservation is charged from the
moment it is made and reused by whoever asks for the same key again; a committed answer is the one
returned for ever. Times are for readers; nothing depends on them. A committed release's times are
both that of the commit: when it was asked for would tell how long the private records took to vote.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_ray.errors import BudgetError, InputError
from pe_ray.release import ledger_sql as file
from pe_ray.release.accounting import check, epsilon_of
from pe_ray.release.adaptive import adaptive_epsilon
from pe_ray.release.ledger_sql import Accounting, LedgerEntry
from pe_ray.release.releases import kind_of
from pe_ray.values import Budget, Release


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
            kept = file.kept(database, release.key)
            charged = [*(entry.release for entry in entries), release, *kept]
            total = self._epsilon(charged, self.budget.delta)
            if total > self.budget.epsilon:
                raise BudgetError(
                    f"privacy.epsilon: {release.key} would bring the total to {total:.6g}, over "
                    f"the budget of {self.budget.epsilon:.6g}; raise the budget in a new run"
                )
            file.insert(database, release, file.now())

    def keep_room(self, prefix: str, releases: Sequence[Release]) -> None:
        """Refuse releases whose key starts with `prefix` where they leave no room for `releases`.

        Charges nothing: other keys may use the room.
        """
        with file.transaction(self.path) as database:
            file.keep(database, prefix, releases)

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

    def released(self, key: str) -> Any:
        """Return what was released under `key` as its kind answers; None where nothing was yet."""
        with file.transaction(self.path, "DEFERRED") as database:
            stored = file.stored(database, key)
        return None if stored is None else kind_of(stored[0]).answer(*stored)

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
        """Epsilon at `delta` (default: the budget's) of everything charged, reservations included.

        Of a search by the former strategy `select` only its budget is known, which it kept.
        """
        delta = self.budget.delta if delta is None else delta
        with file.transaction(self.path, "DEFERRED") as database:
            entries, selected = file.entries(database), file.selected(database)
        if selected:
            return self.budget.epsilon if delta >= self.budget.delta else math.inf
        return self._epsilon([entry.release for entry in entries], delta)

    def _epsilon(self, releases: Sequence[Release], delta: float) -> float:
        total = epsilon_of if self.accounting == "fixed" else adaptive_epsilon
        return total(releases, delta)

    def _require_same(self, database: sqlite3.Connection) -> None:
        """Refuse to charge a file that was made for another run since it was opened."""
        if file.budget(database) != (self.budget, self.fingerprint):
            raise BudgetError(
                f"{self.path}: was made for another run meanwhile; nothing is charged"
            )
        if file.selected(database):
            raise BudgetError(
                f"{self.path}: is of a search by `select`, which is gone; give another output.path"
            )
