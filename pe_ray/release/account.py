"""The account of a data set: who may spend how much of its privacy budget, over all runs.

A run reserves here what all its releases may cost, before it charges its ledger. Its ledger then
refuses any release beyond that (`Ledger.allow`). So what all ledgers charge together stays within
what is reserved here, and that within the policy. A policy composes runs in one of two ways:

*gaussian.* Each release is mu_i-GDP. Whoever chose it, with whatever results at hand, all of them
together are B-GDP while sum(mu_i^2) never exceeds B^2 (see release.adaptive). Only releases that
are made count. So what a run reserved and didn't charge is given back.

*sum.* The epsilons and the deltas of the runs' budgets add up. That holds for budgets that are
chosen with earlier results at hand (Rogers, Roth, Ullman, Vadhan 2016, arXiv 1605.08294). A run's
budget covers it as a whole, so once it has charged anything, it is spent. Giving back a part would
depend on what was released.

Runs that go on at the same time interleave their releases. Both rules are privacy filters, which
hold then as well (Haney et al. 2023, arXiv 2309.05901).

The file can be read and written by its owner only (mode 0600). It holds digests of the private
data's files. A digest of all rows finds accidents. Names of spenders keep honest people apart: they
are no login.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from pe_ray.config.kinds import Block
from pe_ray.config.yaml_tree import name_faults, read_tree
from pe_ray.errors import BudgetError, InputError
from pe_ray.release.accounting import MIN_DELTA, gaussian_epsilon, gaussian_mu
from pe_ray.release.adaptive import Cost, add_costs
from pe_ray.release.ledger_sql import current_time
from pe_ray.release.sqlite_files import DamageError, connect
from pe_ray.values import Unit

VERSION = 1
_SCHEMA = f"""
CREATE TABLE policies (position INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT, policy TEXT);
CREATE TABLE entries (position INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT UNIQUE, entry TEXT);
CREATE TABLE data (digest TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE seal (one INTEGER PRIMARY KEY CHECK (one = 1), digest TEXT);
PRAGMA user_version = {VERSION}"""


class Policy(Block):
    """Who may spend how much of a data set's privacy, and how runs compose."""

    epsilon: float = Field(gt=0)
    """Of everything that is ever released from the data."""
    delta: float = Field(ge=MIN_DELTA, lt=1)
    """Of everything that is ever released from the data."""
    unit: Unit
    """Of every run: record or user."""
    composition: Literal["gaussian", "sum"] = "gaussian"
    """How runs compose (see pe_ray.release.account)."""
    spenders: dict[str, Annotated[float, Field(gt=0)]] = Field(min_length=1)
    """Person or project -> epsilon of all of its runs together, at the policy's delta."""

    def epsilon_of(self, entries: Sequence[Entry]) -> float:
        """Return epsilon at the policy's delta of all `entries` together; inf where it has none."""
        if self.composition == "gaussian":
            return add_costs(entry.cost for entry in entries).epsilon(self.delta)
        delta = _add_decimals(entry.delta for entry in entries)
        return _add_decimals(e.epsilon for e in entries) if delta <= self.delta else math.inf

    def left_of(self, limit: float, entries: Sequence[Entry]) -> float:
        """Return about the epsilon that one more run may have under a `limit` for all of them."""
        if self.composition == "sum":
            return max(0.0, limit - self.epsilon_of(entries))
        spent = add_costs(entry.cost for entry in entries).mu_squared
        rest = gaussian_mu(limit, self.delta) ** 2 - spent
        return gaussian_epsilon(math.sqrt(rest), self.delta) if rest > 0 else 0.0


def _add_decimals(values: Iterable[float]) -> float:
    """Return the sum of numbers as they are written, so that ten times 0.1 are 1."""
    return float(sum(Decimal(repr(value)) for value in values))


def read_policy(path: str) -> Policy:
    """Read a policy from a YAML file; InputError names all wrong keys."""
    tree = read_tree(path)
    try:
        return Policy.model_validate(tree)
    except ValidationError as error:
        raise name_faults(error, tree, "config: policy.") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one run holds of the account.

    run: id in its ledger, which lies at `ledger`. epsilon, delta: of its budget, 0 where it gave
    all back. cost: of what it reserved, or charged once it is finished or closed. releases: how
    many were charged when the ledger was last looked at.
    """

    run: str
    spender: str
    kind: Literal["run", "search"]
    ledger: str
    epsilon: float
    delta: float
    unit: Unit
    cost: Cost
    releases: int
    state: Literal["reserved", "finished", "closed"]
    reserved_at: str
    settled_at: str | None = None


class Account:
    """One account file; any number of processes may use it at once."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        if not self.path.exists():
            raise InputError(
                f"privacy.account: {path} does not exist; `pe-ray account {path} --policy FILE` "
                "makes it"
            )
        if self.path.stat().st_mode & 0o077:
            raise InputError(f"privacy.account: others can use {path}; chmod 600 it")

    @classmethod
    def create(cls, path: str | Path, policy: Policy) -> Account:
        """Create the account, or give it a new policy for what is reserved from now on."""
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise InputError(f"privacy.account: {path} can't be made ({error.strerror})") from None
        account = cls(path)
        with connect(account.path, "rw", "account") as database:
            database.execute("BEGIN IMMEDIATE")
            if not database.execute("SELECT 1 FROM sqlite_schema").fetchone():
                for statement in _SCHEMA.split(";\n"):
                    database.execute(statement)
                _seal(database)
            account._require_sound(database)
            entries = _read_entries(database)
            if any(entry.unit != policy.unit for entry in entries):
                raise InputError("policy.unit: other than that of the account's runs; restore it")
            held = policy.epsilon_of(entries)
            if held > policy.epsilon:
                raise InputError(
                    f"policy.epsilon: its runs hold epsilon {held:.6g} at this delta already, and "
                    "what was released stays so; give at least that"
                )
            row = (current_time(), policy.model_dump_json())
            database.execute("INSERT INTO policies (time, policy) VALUES (?, ?)", row)
            _seal(database)
            database.execute("COMMIT")
        return account

    def policies(self) -> list[tuple[str, Policy]]:
        """Return the policies with the times when they were given; the last one holds."""
        with self._begin("DEFERRED") as database:
            return _read_policies(database)

    def entries(self) -> list[Entry]:
        """Return what every run holds, in the order in which they came."""
        with self._begin("DEFERRED") as database:
            return _read_entries(database)

    def find(self, run: str | None) -> Entry | None:
        """Return what a run holds; None where it never reserved."""
        return next((entry for entry in self.entries() if entry.run == run), None)

    def check(self, entry: Entry, data: set[str]) -> None:
        """Raise what `reserve` would, and reserve nothing."""
        with self._begin("DEFERRED") as database:
            self._require_room(database, entry, data)

    def reserve(self, entry: Entry, data: set[str]) -> None:
        """Reserve what `entry` says, instead of what its run held before.

        data: digests of the data set's files; the first run's become the account's.

        Guarantee: in any interleaving of processes, all that is held together stays within the
        policy, and so does what each spender holds; BudgetError otherwise, and nothing changes.
        """
        with self._begin() as database:
            self._require_room(database, entry, data)
            _write_data(database, _find_new(database, data))  # none but the first run's
            _write_entry(database, entry)

    def settle(self, entry: Entry) -> None:
        """Let a run hold what `entry` says, which is no more than before.

        Guarantee: sound only where its ledger charges nothing beyond that (see `Ledger.hold`).
        """
        with self._begin() as database:
            _write_entry(database, entry)

    def accept(self, data: set[str]) -> int:
        """Take files with these digests for the data set's as well; return how many are new.

        Guarantee: sound for any data, since all of it is charged for every run.
        """
        with self._begin() as database:
            new = _find_new(database, data)
            _write_data(database, new)
        return len(new)

    def _require_room(self, database: sqlite3.Connection, entry: Entry, data: set[str]) -> None:
        policy = _read_policies(database)[-1][1]
        limit = policy.spenders.get(entry.spender)
        if limit is None:
            raise InputError(
                f"privacy.spender: {entry.spender!r} is not in the policy of {self.path}, which "
                f"has {', '.join(policy.spenders)}; give one of them"
            )
        if entry.unit != policy.unit:
            raise InputError(
                f"privacy.unit: is {entry.unit}, but {self.path} is an account for "
                f"{policy.unit}; give {policy.unit}, or another account"
            )
        new = _find_new(database, data)
        if new and database.execute("SELECT 1 FROM data").fetchone():
            raise InputError(
                "private.data: has files that are not those of the data set that "
                f"{self.path} is for (content, or private.user_column); give the account of "
                f"theirs, or let `pe-ray account {self.path} --data CONFIG` count them in"
            )
        others = [other for other in _read_entries(database) if other.run != entry.run]
        own = [other for other in others if other.spender == entry.spender]
        for whose, most, held in (
            ("all runs", policy.epsilon, others),
            (entry.spender, limit, own),
        ):
            epsilon = policy.epsilon_of([*held, entry])
            if epsilon > most:
                raise BudgetError(
                    f"privacy.account: {self.path}: would bring {whose} to epsilon {epsilon:.6g} "
                    f"at delta {policy.delta:g}, over the {most:.6g} of the policy; lower "
                    f"privacy.epsilon (about {policy.left_of(most, held):.3g} is left)"
                )

    @contextmanager
    def _begin(
        self, kind: Literal["IMMEDIATE", "DEFERRED"] = "IMMEDIATE"
    ) -> Iterator[sqlite3.Connection]:
        """Run a transaction, all or nothing, on rows that are as they were written."""
        with connect(self.path, "rw", "account") as database:
            database.execute(f"BEGIN {kind}")
            self._require_sound(database)
            yield database
            if kind == "IMMEDIATE":
                _seal(database)
            database.execute("COMMIT")

    def _require_sound(self, database: sqlite3.Connection) -> None:
        """Raise InputError unless the rows are those that were written."""
        version = database.execute("PRAGMA user_version").fetchone()[0]
        tables = database.execute("SELECT name FROM sqlite_schema").fetchall()
        if version != VERSION or ("seal",) not in tables:
            raise InputError(f"{self.path}: isn't an account of this version of pe_ray")
        if database.execute("SELECT digest FROM seal").fetchone() != (_digest(database),):
            raise DamageError("a policy or a run")


def _digest(database: sqlite3.Connection) -> str:
    """Return a digest of policies and entries. Changed data is refused, whatever changed."""
    rows = [
        database.execute(f"SELECT * FROM {table} ORDER BY position").fetchall()
        for table in ("policies", "entries")
    ]
    return hashlib.sha256(json.dumps(rows, default=repr).encode()).hexdigest()


def _seal(database: sqlite3.Connection) -> None:
    database.execute("REPLACE INTO seal VALUES (1, ?)", (_digest(database),))


def _read_policies(database: sqlite3.Connection) -> list[tuple[str, Policy]]:
    rows = database.execute("SELECT time, policy FROM policies ORDER BY position").fetchall()
    return [(time, Policy.model_validate_json(text)) for time, text in rows]


def _read_entries(database: sqlite3.Connection) -> list[Entry]:
    rows = database.execute("SELECT entry FROM entries ORDER BY position").fetchall()
    trees = [json.loads(text) for (text,) in rows]
    return [Entry(**{**tree, "cost": Cost(**tree["cost"])}) for tree in trees]


def _write_entry(database: sqlite3.Connection, entry: Entry) -> None:
    database.execute(
        "INSERT INTO entries (run, entry) VALUES (?, ?)"
        " ON CONFLICT (run) DO UPDATE SET entry = excluded.entry",
        (entry.run, json.dumps(asdict(entry))),
    )


def _find_new(database: sqlite3.Connection, data: set[str]) -> set[str]:
    """Return the digests that the account doesn't have."""
    query = "SELECT 1 FROM data WHERE digest = ?"
    return {digest for digest in data if not database.execute(query, (digest,)).fetchone()}


def _write_data(database: sqlite3.Connection, data: Iterable[str]) -> None:
    database.executemany("INSERT INTO data VALUES (?)", [(digest,) for digest in data])


def describe(account: Account) -> dict[str, Any]:
    """Return what was spent, what is left, by whom and when, as plain values.

    epsilon, delta: of all that is held. left: of one more run. guarantee: what holds for all runs
    together, whatever results they were chosen by.
    """
    policies, entries = account.policies(), account.entries()
    policy = policies[-1][1]
    by_sum = policy.composition == "sum"
    delta = _add_decimals(entry.delta for entry in entries)
    left = policy.left_of(policy.epsilon, entries)
    spenders = []
    for name in dict.fromkeys([*policy.spenders, *(entry.spender for entry in entries)]):
        own = [entry for entry in entries if entry.spender == name]
        limit = policy.spenders.get(name, 0.0)
        spenders.append(
            {
                "name": name,
                "limit": limit,
                "epsilon": policy.epsilon_of(own),
                "left": min(left, policy.left_of(limit, own)) if limit else 0.0,
            }
        )
    return {
        "epsilon": policy.epsilon_of(entries),
        "delta": delta if by_sum else policy.delta,
        "unit": policy.unit,
        "composition": policy.composition,
        "guarantee": {"epsilon": policy.epsilon, "delta": policy.delta, "unit": policy.unit},
        "left": {
            "epsilon": left,
            "delta": _add_decimals([policy.delta, -delta]) if by_sum else policy.delta,
        },
        "spenders": spenders,
        "runs": [{**asdict(entry), "held": policy.epsilon_of([entry])} for entry in entries],
        "policies": [{"time": time, **policy.model_dump()} for time, policy in policies],
    }
