"""Runs of one data set in one account, through any interleaving of starts, releases and crashes.

Each run is a ledger. It starts (which reserves), its workers charge releases whenever they like,
even after their driver died, and it is finished, closed or lost with its ledger. A crash is thrown
at any statement of either file. What is checked is what the runs' ledgers really charged, those
that are lost included.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from fuses import Crash, Fuse, fused_sqlite
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from pe_ray import Config
from pe_ray.errors import BudgetError
from pe_ray.release.account import Account, Policy
from pe_ray.release.adaptive import adaptive_epsilon, budget_mu, cost_of, with_mu
from pe_ray.release.ledger import Ledger
from pe_ray.release.ledger_sql import Accounting
from pe_ray.release.reservation import give_back, reserve, settle
from pe_ray.values import Budget, Release

SHAPE = [
    Release(key=f"votes/{t}", kind="votes", iteration=t, votes_per_unit=1, sigma=1.0)
    for t in (1, 2)
] + [Release(key="teacher", kind="sums", iteration=2, votes_per_unit=1, sigma=2.0)]
EPSILONS = (0.4, 0.7)
EPSILON, DELTA = 0.9, 3e-5
LIMITS = {"anna": 0.8, "ben": 0.75}
MOST_RUNS = 3  # at once

WHICH, CRASH = st.integers(0, MOST_RUNS - 1), st.none() | st.none() | st.integers(0, 250)


def tree(account: Path) -> dict[str, Any]:
    return {
        "private": {"data": "sklearn:digits", "labels": ["0", "1"]},
        "generator": {"kind": "rendered_text", "image_size": 12},
        "embedder": {"kind": "pixels", "size": 6},
        "schedule": {"iterations": 2, "num_samples": 4, "degrees": 0.5},
        "privacy": {
            "epsilon": 1.0,
            "delta": 1e-5,
            "unit": "record",
            "label_fractions": "uniform",
            "account": str(account),
        },
        "output": {"path": "unused"},
    }


@dataclass
class Run:
    """A ledger that exists or is lost: its budget, what it charged, epsilon held in the account."""

    path: Path
    budget: Budget
    accounting: Accounting
    releases: tuple[Release, ...]
    lost: bool = False
    charged: list[Release] = field(default_factory=list)
    held: float = 0.0


class Runs(RuleBasedStateMachine):
    composition: Literal["gaussian", "sum"] = "gaussian"

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
        self.account = self.folder / "account.sqlite"
        self.config = Config.from_dict(tree(self.account))
        self.runs: list[Run] = []

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize()
    def open(self) -> None:
        self.policy = Policy(
            epsilon=EPSILON,
            delta=DELTA,
            unit="record",
            composition=self.composition,
            spenders=LIMITS,
        )
        Account.create(self.account, self.policy)

    def config_of(self, run: Run, spender: str) -> Config:
        update = {"epsilon": run.budget.epsilon, "spender": spender}
        return self.config.model_copy(
            update={"privacy": self.config.privacy.model_copy(update=update)}
        )

    def live(self) -> list[Run]:
        return [run for run in self.runs if not run.lost]

    def started(self) -> list[Run]:
        """Those that have a ledger with an id, as a process that died later leaves it."""
        found = [run for run in self.live() if run.path.exists() and run.path.stat().st_size]
        return [run for run in found if Ledger.open(run.path).account_run is not None]

    @rule(
        which=WHICH,
        epsilon=st.sampled_from(EPSILONS),
        spender=st.sampled_from(sorted(LIMITS)),
        accounting=st.sampled_from(["fixed", "adaptive"]),
        keys=st.sets(st.integers(0, 2)),
        crash=CRASH,
    )
    def start(
        self,
        which: int,
        epsilon: float,
        spender: str,
        accounting: Accounting,
        keys: set[int],
        crash: int | None,
    ) -> None:
        """Start a new run, or one again; until it charged something, with other terms."""
        live = self.live()
        run = live[which] if which < len(live) else None
        former = dict(run.__dict__) if run else {}
        if run is None or not self.read(run):
            budget = Budget(epsilon=epsilon, delta=1e-5, unit="record")
            releases = with_mu(SHAPE, budget_mu(epsilon, 1e-5))
            path = run.path if run else self.folder / f"{len(self.runs)}.sqlite"
            started = Run(path=path, budget=budget, accounting=accounting, releases=releases)
            started.held = run.held if run else 0.0
            if run:
                run.__dict__.update(started.__dict__)
            else:
                run = started
                self.runs.append(run)
        before = self.held()
        print_of = f"{run.budget.epsilon} {run.accounting}"
        try:
            with fused_sqlite(Fuse(crash)):
                ledger = Ledger.create(
                    run.path, run.budget, print_of, run.accounting, renew=not self.read(run)
                )
                planned = run.releases if run.accounting == "fixed" else None
                reserve(self.config_of(run, spender), ledger, "run", planned)
        except Crash:
            written = run.path.exists() and run.path.stat().st_size
            if former and written and Ledger.open(run.path).fingerprint != print_of:
                run.__dict__.update(former)  # it died before the new terms were written
            # It died before the account had them, or after.
            run.held = self.read_held(run, {run.held, run.budget.epsilon})
            return
        except BudgetError:
            assert self.held() == before
            self.refused(run, spender)
            return
        if not self.is_finished(run):
            run.held = self.read_held(run, {run.budget.epsilon})
            for release in run.releases:
                assert self.would_fit(run, release), "what is reserved can be charged"
        for key in keys:
            Ledger.open(run.path).reserve(run.releases[key])

    def refused(self, run: Run, spender: str) -> None:
        """A refusal is right: even the releases alone, without reserves, would be too much."""
        account, ledger = Account(self.account), Ledger.open(run.path)
        others = [entry for entry in account.entries() if entry.run != ledger.account_run]
        own = [entry for entry in others if entry.spender == spender]
        if self.composition == "sum":
            total = sum(entry.epsilon for entry in others) + run.budget.epsilon
            of_one = sum(entry.epsilon for entry in own) + run.budget.epsilon
            deltas = sum(entry.delta for entry in others) + run.budget.delta
            assert total > EPSILON or of_one > LIMITS[spender] or deltas > DELTA
            return
        tight = 1 - 1e-4  # budget_mu and what is reserved for a search differ by hairs
        mu = sum(entry.cost.mu_squared for entry in others) + cost_of(run.releases).mu_squared
        alone = sum(entry.cost.mu_squared for entry in own) + cost_of(run.releases).mu_squared
        full, limit = budget_mu(EPSILON, DELTA) ** 2, budget_mu(LIMITS[spender], DELTA) ** 2
        assert mu > full * tight or alone > limit * tight

    def would_fit(self, run: Run, release: Release) -> bool:
        allowed = next(
            entry.cost
            for entry in Account(self.account).entries()
            if entry.run == Ledger.open(run.path).account_run
        )
        return allowed.covers(cost_of({r.key: r for r in [*self.read(run), release]}.values()))

    def read_held(self, run: Run, possible: set[float]) -> float:
        """Return the epsilon that the account holds for a run, one of those `possible`."""
        written = run.path.exists() and run.path.stat().st_size
        number = Ledger.open(run.path).account_run if written else None
        entry = Account(self.account).find(number) if number else None
        held = entry.epsilon if entry else 0.0
        assert held in possible
        return held

    def is_finished(self, run: Run) -> bool:
        known = Account(self.account).find(Ledger.open(run.path).account_run)
        return known is not None and known.state == "finished"

    @precondition(lambda self: self.started())
    @rule(which=WHICH, keys=st.sets(st.integers(0, 2), min_size=1), crash=CRASH)
    def charge(self, which: int, keys: set[int], crash: int | None) -> None:
        """What workers do, whether or not a driver still lives."""
        started = self.started()
        run = started[which % len(started)]
        with suppress(Crash, BudgetError), fused_sqlite(Fuse(crash)):
            for key in keys:
                Ledger.open(run.path).reserve(run.releases[key])

    @precondition(lambda self: self.started())
    @rule(which=WHICH, crash=CRASH)
    def end_one(self, which: int, crash: int | None) -> None:
        """A driver ends where nothing is left to charge. Else its run is closed by hand."""
        started = self.started()
        run = started[which % len(started)]
        if Account(self.account).find(Ledger.open(run.path).account_run) is not None:
            self.end(run, crash, finished=len(self.read(run)) == len(run.releases))

    def end(self, run: Run, crash: int | None, *, finished: bool) -> None:
        before = self.held()
        try:
            with fused_sqlite(Fuse(crash)):
                ledger = Ledger.open(run.path)
                if finished:
                    settle(self.config, ledger)
                else:
                    give_back(Account(self.account), ledger, "closed")
        except Crash:
            pass
        assert self.held() <= before
        run.held = self.read_held(run, {run.held} if self.read(run) else {run.held, 0.0})

    @precondition(lambda self: self.started())
    @rule(which=WHICH)
    def lose(self, which: int) -> None:
        """The ledger is deleted: what it charged was released all the same."""
        started = self.started()
        run = started[which % len(started)]
        run.charged, run.lost = self.read(run), True
        run.path.unlink()

    def read(self, run: Run) -> list[Release]:
        if run.lost:
            return run.charged
        if not run.path.exists() or not run.path.stat().st_size:
            return []
        return [entry.release for entry in Ledger.open(run.path).entries()]

    def held(self) -> float:
        return self.policy.epsilon_of(Account(self.account).entries())

    @invariant()
    def the_policy_holds(self) -> None:
        """Of what was really charged, by whatever ledger."""
        if not self.account.exists():
            return
        spent = [run for run in self.runs if self.read(run)]
        if self.composition == "sum":
            assert sum(run.budget.epsilon for run in spent) <= EPSILON * (1 + 1e-9)
            assert sum(run.budget.delta for run in spent) <= DELTA * (1 + 1e-9)
        else:
            charged = [release for run in spent for release in self.read(run)]
            assert adaptive_epsilon(charged, DELTA) <= EPSILON

    @invariant()
    def the_account_holds_what_is_charged(self) -> None:
        """Each run's entry covers its ledger; each spender's entries are within the limit."""
        if not self.account.exists():
            return
        account = Account(self.account)
        entries = account.entries()
        assert len(entries) <= len(self.runs), "a run reserves once"
        for name, limit in LIMITS.items():
            own = [entry for entry in entries if entry.spender == name]
            assert self.policy.epsilon_of(own) <= limit
        assert self.policy.epsilon_of(entries) <= EPSILON
        for run in self.runs:
            charged = self.read(run)
            if charged and not run.lost:
                entry = account.find(Ledger.open(run.path).account_run)
                assert entry is not None
                assert entry.cost.covers(cost_of(charged))
                assert entry.epsilon == run.held


class BySum(Runs):
    composition = "sum"


def of(max_examples: int) -> settings:
    return settings(
        max_examples=max_examples,
        stateful_step_count=20,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


TestRuns = Runs.TestCase
TestRuns.settings = of(8)
TestBySum = BySum.TestCase
TestBySum.settings = of(4)


@pytest.mark.slow
class TestMoreRuns(TestRuns):
    """The same, for longer."""

    settings = of(300)


@pytest.mark.slow
class TestMoreBySum(TestBySum):
    """The same, for longer."""

    settings = of(200)
