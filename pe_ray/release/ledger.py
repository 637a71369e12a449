"""The privacy ledger: a durable record of every release, which refuses to overspend.

The noisy answer is stored in the transaction that commits its release. So the releases charged are
the releases that exist, after any crash. A reservation is charged from the moment it is made, and
whoever asks for the same key again uses it. An answer that was committed is the only one ever
returned.

Times are for readers; nothing depends on them. A committed release has the time of the commit
alone: when it was asked for would tell how long the private records took to vote.
"""

from __future__ import annotations

import math
import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_ray.errors import BudgetError, InputError
from pe_ray.release import ledger_sql as sql
from pe_ray.release.accounting import check, epsilon_of
from pe_ray.release.adaptive import Cost, adaptive_epsilon, cost_of
from pe_ray.release.epsilon_cache import recall_epsilon
from pe_ray.release.ledger_sql import Accounting, LedgerEntry, Terms
from pe_ray.release.releases import kind_of
from pe_ray.values import Budget, Release


class Ledger:
    """One ledger file; any number of processes may use it at once."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise InputError(f"{path}: there is no ledger here")
        self.path = path
        with sql.begin(path, "DEFERRED") as database:
            self._terms = sql.read_terms(database)
        self.budget, self.fingerprint = self._terms.budget, self._terms.fingerprint
        self.accounting: Accounting = self._terms.accounting

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
        """Open the ledger at `path`; create it for `budget` if there is none.

        renew: whether to reset one to which nothing was charged. InputError where there is one for
        another budget or configuration.
        """
        terms = Terms(budget=budget, fingerprint=fingerprint, accounting=accounting)
        sql.create_file(path, terms)
        if renew:
            with sql.begin(path) as database:
                if not sql.has_charges(database):
                    sql.write_terms(database, terms)
        ledger = cls(path)
        ledger.require_terms(budget, fingerprint, accounting)
        return ledger

    @classmethod
    def open(cls, path: Path) -> Ledger:
        """Open an existing ledger."""
        return cls(path)

    def require_terms(
        self, budget: Budget, fingerprint: str, accounting: Accounting = "fixed"
    ) -> None:
        """Raise InputError unless the ledger was created for these."""
        ours = _flatten(Terms(budget=budget, fingerprint=fingerprint, accounting=accounting))
        for name, value in _flatten(self._terms).items():
            if value != ours[name]:
                raise InputError(
                    f"{self.path}: belongs to another configuration or budget ({name} {value}, "
                    f"not {ours[name]}); restore the one in config.yaml, or give another "
                    "output.path"
                )

    def reserve(self, release: Release) -> None:
        """Charge `release`; a second call with the same release changes nothing.

        Guarantee: in any interleaving of processes, all releases ever charged together stay
        within the budget; BudgetError otherwise, and then nothing is charged.
        """
        check(release)
        with sql.begin(self.path) as database:
            self._require_terms(database)
            charged = {entry.release.key: entry.release for entry in sql.read_entries(database)}
            if release.key in charged:
                if charged[release.key] != release:
                    raise BudgetError(
                        f"ledger: {release.key} was charged with other parameters; "
                        "restore the configuration that it was charged for"
                    )
                return
            kept = sql.read_kept(database, release.key)
            total = self._compose([*charged.values(), release, *kept], self.budget.delta)
            if total > self.budget.epsilon:
                raise BudgetError(
                    f"privacy.epsilon: {release.key} would bring the total to {total:.6g}, over "
                    f"the budget of {self.budget.epsilon:.6g}; raise the budget in a new run"
                )
            _, allowance = sql.read_allowance(database) or (None, None)
            if allowance and not allowance.covers(cost_of([*charged.values(), release])):
                raise BudgetError(
                    f"privacy.account: {release.key} was given back to the account, or never "
                    "reserved there; repeat the command with privacy.account in place"
                )
            sql.insert_release(database, release, sql.current_time())

    def keep_room(self, prefix: str, releases: Sequence[Release]) -> None:
        """Refuse releases whose key starts with `prefix` where they leave no room for `releases`.

        Charges nothing: other keys may use the room.
        """
        with sql.begin(self.path) as database:
            sql.keep_room(database, prefix, releases)

    def hold(self) -> tuple[str, list[Release]]:
        """Refuse further releases until `allow`; return the run's id in accounts and the charged.

        Guarantee: after it nothing else is ever charged, in any interleaving of processes, without
        a later `allow`.
        """
        with sql.begin(self.path) as database:
            self._require_terms(database)
            charged = [entry.release for entry in sql.read_entries(database)]
            run, _ = sql.read_allowance(database) or (secrets.token_hex(16), None)
            sql.write_allowance(database, run, cost_of(charged))
        return run, charged

    def allow(self, cost: Cost) -> None:
        """Let all releases together cost `cost`, which the run's account holds for it."""
        with sql.begin(self.path) as database:
            self._require_terms(database)
            held = sql.read_allowance(database)
            assert held is not None, "hold gives the run its id"
            sql.write_allowance(database, held[0], cost)

    @property
    def account_run(self) -> str | None:
        """The run's id in accounts; None where it never was in one."""
        with sql.begin(self.path, "DEFERRED") as database:
            held = sql.read_allowance(database)
        return held and held[0]

    def commit(self, key: str, noisy: NDArray[np.int64]) -> NDArray[np.int64]:
        """Store the answer to `key`, unless one is stored already; return the stored one.

        Guarantee: one answer per key is ever returned; a later draw is dropped unseen.
        """
        with sql.begin(self.path) as database:
            stored = sql.read_answer(database, key)
            if stored is not None:
                return stored[1]
            sql.store_answer(database, key, noisy, sql.current_time())
        return noisy

    def stored(self, key: str) -> NDArray[np.int64] | None:
        """Return what was released under `key`, in votes or lattice steps; None before that."""
        with sql.begin(self.path, "DEFERRED") as database:
            stored = sql.read_answer(database, key)
        return None if stored is None else stored[1]

    def released(self, key: str) -> Any:
        """Return what was released under `key` as its kind answers; None before that."""
        with sql.begin(self.path, "DEFERRED") as database:
            stored = sql.read_answer(database, key)
        return None if stored is None else kind_of(stored[0]).answer(*stored)

    @property
    def charged(self) -> bool:
        """Whether anything was ever charged."""
        with sql.begin(self.path, "DEFERRED") as database:
            return sql.has_charges(database)

    def entries(self) -> tuple[LedgerEntry, ...]:
        """Return all charged releases in order."""
        with sql.begin(self.path, "DEFERRED") as database:
            return tuple(sql.read_entries(database))

    @property
    def config_digest(self) -> str | None:
        """The digest that `bind_config` recorded; None before that and in a former version."""
        with sql.begin(self.path, "DEFERRED") as database:
            return sql.read_config_digest(database)

    def bind_config(self, digest: str) -> None:
        """Record the digest of the run's config.yaml, before that file is written."""
        if self.config_digest != digest:
            with sql.begin(self.path) as database:
                sql.write_config_digest(database, digest)

    def copied(self) -> bytes:
        """Return a ledger file with the same content, consistent whoever writes meanwhile."""
        return sql.copy_bytes(self.path)

    def spent(self, delta: float | None = None, *, recall: bool = False) -> float:
        """Return epsilon at `delta` (default: the budget's) of everything charged.

        recall: take what was computed for the same entries before (release.epsilon_cache).
        Reservations count. Of a search by the former strategy `select` only its budget is known,
        which it kept.
        """
        delta = self.budget.delta if delta is None else delta
        with sql.begin(self.path, "DEFERRED") as database:
            entries, selection = sql.read_entries(database), sql.has_selection(database)
        if selection:
            return self.budget.epsilon if delta >= self.budget.delta else math.inf
        releases = [entry.release for entry in entries]
        compute = partial(self._compose, releases, delta)
        if not recall:
            return compute()
        return recall_epsilon(self.accounting, releases, delta, compute)

    def _compose(self, releases: Sequence[Release], delta: float) -> float:
        total = epsilon_of if self.accounting == "fixed" else adaptive_epsilon
        return total(releases, delta)

    def _require_terms(self, database: sqlite3.Connection) -> None:
        """Refuse to charge a file that was made for another run since it was opened."""
        if sql.read_terms(database) != self._terms:
            raise BudgetError(
                f"{self.path}: was made for another run meanwhile; nothing is charged"
            )
        if sql.has_selection(database):
            raise BudgetError(
                f"{self.path}: is of a search by `select`, which is gone; give another output.path"
            )


def describe_ledger(ledger: Ledger) -> dict[str, Any]:
    """Return what `pe-ray ledger --json` prints: all that was charged, and its epsilon."""
    budget = ledger.budget
    return {
        "epsilon": ledger.spent(recall=True),
        "delta": budget.delta,
        "unit": budget.unit,
        "budget_epsilon": budget.epsilon,
        "accounting": ledger.accounting,
        "releases": [
            {
                **entry.release.as_tree(),
                "state": entry.state,
                "reserved_at": entry.reserved_at,
                "committed_at": entry.committed_at,
            }
            for entry in ledger.entries()
        ],
    }


def _flatten(terms: Terms) -> dict[str, Any]:
    values = asdict(terms)
    return {**values.pop("budget"), **values}
