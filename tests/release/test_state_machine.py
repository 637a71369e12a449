"""Ledger and aggregator through any interleaving of crashes, retries, clients, torn files, clocks.

Two clients drive one ledger as two runs would; a crash is an exception that nothing may catch,
thrown at any call into sqlite, at the draw of the noise, or while partial votes are fetched (where
a killed process would stop: sqlite then rolls back, as it does after SIGKILL).
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from fuses import Crash, Fuse, fused_sqlite
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pe_ray.errors import BudgetError, InputError
from pe_ray.private.votes import RawVotes
from pe_ray.release import aggregator
from pe_ray.release import ledger_sql as ledger_file
from pe_ray.release.accounting import epsilon_of
from pe_ray.release.aggregator import Aggregator
from pe_ray.release.ledger import Ledger
from pe_ray.values import Budget, NoisyHistogram, Release

BINS = 4
BUDGET = Budget(epsilon=1.0, delta=1e-5, unit="record")
SIGMAS = (6.0, 9.0)  # the budget of 1 holds two or three of them
KEYS = [f"votes/{number:04d}" for number in range(1, 5)]

CLIENT, KEY, SIGMA = st.integers(0, 1), st.sampled_from(KEYS), st.sampled_from(SIGMAS)
VOTES = st.lists(st.lists(st.integers(0, BINS - 1), max_size=6), max_size=3)


@contextmanager
def fused(left: int | None) -> Iterator[None]:
    """sqlite and fetching of the code under test, dying after `left` steps."""
    fuse = Fuse(left)

    def fetched(partial: RawVotes) -> RawVotes:
        fuse()
        return partial

    with fused_sqlite(fuse), mock.patch.object(aggregator.ray, "get", fetched):
        yield


def released_by(key: str, sigma: float) -> Release:
    return Release(key=key, kind="votes", iteration=1, votes_per_unit=1, sigma=sigma)


def raw(bins: list[int]) -> RawVotes:
    counted = np.bincount(np.array(bins, dtype=np.int64), minlength=BINS)
    ids = np.flatnonzero(counted)
    return RawVotes(ids=ids, counts=counted[ids].astype(np.int64), votes_per_unit=1)


class Releases(RuleBasedStateMachine):
    """The model: what was answered, and which keys were ever charged with which sigma."""

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")  # syncing a disk is what takes the time
        self.folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
        self.path = self.folder / "ledger.sqlite"
        self.draws = 0
        self.answered: dict[str, list[int]] = {}
        self.maybe: dict[str, float] = {}
        self.clock = "2026-01-01T00:00:00+00:00"
        self.clients: list[Aggregator] = []
        patch = mock.patch.object(ledger_file, "current_time", side_effect=lambda: self.clock)
        patch.start()
        self.stop: Callable[[], None] = patch.stop

    def teardown(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    @initialize()
    def start(self) -> None:
        Ledger.create(self.path, BUDGET, "print")
        self.clients = [self.client(), self.client()]

    def client(self) -> Aggregator:
        return Aggregator(self.path, entropy=self.entropy)

    def entropy(self, size: int) -> bytes:
        self.draws += 1
        return os.urandom(size)

    # What clients do.

    @rule(who=CLIENT, key=KEY, sigma=SIGMA, votes=VOTES)
    def release_undisturbed(self, who: int, key: str, sigma: float, votes: list[list[int]]) -> None:
        self.release(who, key, sigma, votes, None)

    @rule(who=CLIENT, key=KEY, sigma=SIGMA, votes=VOTES, crash=st.integers(0, 160))
    def release_and_crash(
        self, who: int, key: str, sigma: float, votes: list[list[int]], crash: int
    ) -> None:
        self.release(who, key, sigma, votes, crash)

    def release(
        self, who: int, key: str, sigma: float, votes: list[list[int]], crash: int | None
    ) -> None:
        before, draws = self.charged(), self.draws
        was_stored = key in self.stored
        partials: Any = [raw(bins) for bins in votes]
        self.maybe.setdefault(key, sigma)
        try:
            with fused(crash):
                answer = self.clients[who].release(released_by(key, sigma), BINS, partials)
        except Crash:
            self.clients[who] = self.client()  # Ray starts it again
            return
        except BudgetError:
            assert self.charged() == before
            total = [*before.values(), released_by(key, sigma)]
            other = key in before and before[key].sigma != sigma
            assert other or epsilon_of(total, BUDGET.delta) > BUDGET.epsilon
            return
        self.check_answer(answer, sigma)
        if was_stored:
            assert self.draws == draws, "a stored release needs no noise"

    @rule(key=KEY, sigma=SIGMA, crash=st.none() | st.integers(0, 70))
    def reserve(self, key: str, sigma: float, crash: int | None) -> None:
        """The first half of a release, as left by a process that died right after it."""
        self.maybe.setdefault(key, sigma)
        try:
            with fused(crash):
                Ledger.open(self.path).reserve(released_by(key, sigma))
        except (Crash, BudgetError):
            return
        assert self.charged()[key].sigma == sigma

    @rule(key=KEY, crash=st.none() | st.integers(0, 70))
    def late_commit(self, key: str, crash: int | None) -> None:
        """A second client that drew for the same key and comes too late, or was never charged."""
        charged = key in self.charged()
        try:
            with fused(crash):
                noisy = Ledger.open(self.path).commit(key, np.arange(BINS) * 1000)
        except Crash:
            return
        except BudgetError:
            assert not charged
            return
        assert charged
        release = self.charged()[key]
        self.check_answer(NoisyHistogram(release=release, noisy_votes=noisy), release.sigma)

    @rule(crash=st.integers(0, 40))
    def resume(self, crash: int) -> None:
        """The same command again: creates nothing, changes nothing."""
        try:
            with fused(crash):
                Ledger.create(self.path, BUDGET, "print")
        except Crash:
            return
        assert Ledger.open(self.path).budget == BUDGET

    @rule()
    def another_configuration(self) -> None:
        charged = bool(self.charged())
        try:
            Ledger.create(self.path, BUDGET, "another", renew=True)
        except InputError:
            assert charged, "nothing was spent for the first configuration"
        else:
            assert not charged, "a charged ledger took a second configuration"
            Ledger.create(self.path, BUDGET, "print", renew=True)

    # What happens to the machine.

    @rule(clock=st.sampled_from(["1970-01-01T00:00:00+00:00", "2038-01-19T03:14:08+00:00", ""]))
    def set_clock(self, clock: str) -> None:
        self.clock = clock

    @rule(part=st.floats(0, 1), garbage=st.binary(max_size=30))
    def torn_file(self, part: float, garbage: bytes) -> None:
        """The file is cut off or scribbled over: refused or right, never another answer; restored.

        A whole copy put back is the remedy that the errors name.
        """
        content = self.path.read_bytes()
        self.path.write_bytes(content[: int(part * len(content))] + garbage)
        for key in KEYS:
            try:
                found = Ledger.open(self.path).stored(key)
            except InputError:
                continue
            if found is not None:
                assert found.tolist() == self.answered.get(key, found.tolist())
        self.path.write_bytes(content)
        Path(f"{self.path}-journal").unlink(missing_ok=True)

    @precondition(lambda self: self.answered)
    @rule(data=st.data())
    def damaged_release(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.answered)))
        with sqlite3.connect(self.path) as database:
            row = database.execute("SELECT noisy FROM releases WHERE key = ?", (key,))
            blob = row.fetchone()[0]
            flipped = bytes([blob[0] ^ 1]) + blob[1:]
            database.execute("UPDATE releases SET noisy = ? WHERE key = ?", (flipped, key))
        database.close()
        sigma = self.charged()[key].sigma
        try:
            self.clients[0].release(released_by(key, sigma), BINS, [])
        except InputError:
            pass
        else:
            raise AssertionError("a damaged release was returned")
        with sqlite3.connect(self.path) as database:
            database.execute("UPDATE releases SET noisy = ? WHERE key = ?", (blob, key))
        database.close()

    # What holds at every step.

    def charged(self) -> dict[str, Release]:
        entries = Ledger.open(self.path).entries()
        self.stored = {e.release.key for e in entries if e.state == "committed"}
        return {entry.release.key: entry.release for entry in entries}

    def check_answer(self, answer: NoisyHistogram, sigma: float) -> None:
        votes = answer.noisy_votes.tolist()
        assert self.answered.setdefault(answer.release.key, votes) == votes
        assert answer.release.sigma == sigma == self.charged()[answer.release.key].sigma

    @invariant()
    def the_budget_holds(self) -> None:
        if self.path.exists():
            assert Ledger.open(self.path).spent() <= BUDGET.epsilon

    @invariant()
    def charged_is_what_exists(self) -> None:
        """Every charge is a reservation or a stored release; every answer is stored, unchanged."""
        if not self.path.exists():
            return
        opened = Ledger.open(self.path)
        entries = opened.entries()
        assert len({entry.release.key for entry in entries}) == len(entries)
        for entry in entries:
            key = entry.release.key
            found = opened.stored(key)
            assert (found is not None) == (entry.state == "committed")
            assert key in self.maybe, "nobody asked for it"
            if found is not None:
                votes = found.tolist()
                # A crash after the commit leaves a release that nobody saw yet: it counts now.
                assert self.answered.setdefault(key, votes) == votes
        assert set(self.answered) <= {entry.release.key for entry in entries}


def of(max_examples: int) -> settings:
    return settings(
        max_examples=max_examples,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


TestReleases = Releases.TestCase
TestReleases.settings = of(25)


@pytest.mark.slow
class TestMoreReleases(TestReleases):
    """The same, for longer."""

    settings = of(300)
