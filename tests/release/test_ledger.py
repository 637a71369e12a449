"""Nothing overspends, nothing is drawn twice, nothing is lost."""

from __future__ import annotations

import multiprocessing
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pe_ray.errors import BudgetError, InputError
from pe_ray.release.accounting import epsilon_of
from pe_ray.release.ledger import Ledger
from pe_ray.values import Budget, Release

BUDGET = Budget(epsilon=1.0, delta=1e-5, unit="record")


def votes(key: str, sigma: float = 12.0) -> Release:
    return Release(key=key, kind="votes", iteration=1, votes_per_unit=1, sigma=sigma)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "ledger.sqlite", BUDGET, "print")


def test_the_first_commit_is_the_one_returned_for_ever(ledger: Ledger, tmp_path: Path) -> None:
    ledger.reserve(votes("a"))
    assert ledger.released("a") is None
    first = ledger.commit("a", np.array([1, -2, 3]))
    second = ledger.commit("a", np.array([9, 9, 9]))
    again = Ledger.open(tmp_path / "ledger.sqlite").released("a")
    assert again is not None
    assert again.release == votes("a")
    for noisy in (first, second, again.noisy_votes, ledger.stored("a")):
        assert noisy is not None
        assert noisy.tolist() == [1, -2, 3]


def test_a_reservation_is_charged_once(ledger: Ledger) -> None:
    ledger.reserve(votes("a"))
    ledger.reserve(votes("a"))
    assert ledger.spent() == epsilon_of([votes("a")], BUDGET.delta)
    with pytest.raises(BudgetError, match="other parameters"):
        ledger.reserve(votes("a", sigma=13.0))


def test_a_committed_release_does_not_tell_when_it_was_asked_for(
    ledger: Ledger, tmp_path: Path
) -> None:
    """The time between would be that of the private records' votes."""
    ledger.reserve(votes("a"))
    reserved = ledger.entries()[0].reserved_at
    time.sleep(1.1)  # times have seconds
    ledger.commit("a", np.array([1]))
    (entry,) = ledger.entries()
    assert entry.committed_at is not None
    assert entry.reserved_at == entry.committed_at != reserved
    for content in ((tmp_path / "ledger.sqlite").read_bytes(), ledger.copied()):
        assert entry.committed_at.encode() in content
        assert reserved.encode() not in content


def test_overspending_is_refused_and_charges_nothing(ledger: Ledger) -> None:
    ledger.reserve(votes("a", sigma=4.0))
    before = ledger.spent()
    with pytest.raises(BudgetError, match="over the budget"):
        ledger.reserve(votes("b", sigma=4.0))
    assert ledger.spent() == before <= BUDGET.epsilon


def _reserve_many(path: Path, name: str) -> None:
    ledger = Ledger.open(path)
    for number in range(20):
        try:
            ledger.reserve(votes(f"{name}/{number}"))
        except BudgetError:
            return


def test_concurrent_processes_never_overspend(ledger: Ledger, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    path = tmp_path / "ledger.sqlite"
    processes = [context.Process(target=_reserve_many, args=(path, str(i))) for i in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    charged = [entry.release for entry in ledger.entries()]
    assert ledger.spent() <= BUDGET.epsilon
    assert epsilon_of([*charged, votes("more")], BUDGET.delta) > BUDGET.epsilon


def test_kill_between_reserve_and_commit(ledger: Ledger, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path;"
        "from pe_ray.release.ledger import Ledger; from pe_ray.values import Release;"
        "Ledger.open(Path(sys.argv[1])).reserve(Release(key='a', kind='votes', iteration=1,"
        " votes_per_unit=1, sigma=12.0)); os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / "ledger.sqlite"
    assert subprocess.run([sys.executable, "-c", script, str(path)]).returncode == -9
    assert [entry.state for entry in ledger.entries()] == ["reserved"]
    ledger.reserve(votes("a"))
    ledger.commit("a", np.array([5]))
    assert [entry.state for entry in ledger.entries()] == ["committed"]


def test_damage_and_mix_ups_are_named(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger.reserve(votes("a"))
    ledger.commit("a", np.arange(100))
    with sqlite3.connect(path) as database:
        database.execute("UPDATE releases SET noisy = x'00'")
    with pytest.raises(InputError, match="damaged"):
        ledger.released("a")
    with pytest.raises(InputError, match="another configuration"):
        Ledger.create(path, BUDGET, "other")
    with sqlite3.connect(path) as database:
        database.execute("DELETE FROM accounting")
    with pytest.raises(InputError, match="accounting rule is missing"):
        Ledger.open(path)
    (tmp_path / "torn").write_bytes(b"not a database at all, and long enough to be read as one")
    with pytest.raises(InputError, match="can't be used"):
        Ledger.open(tmp_path / "torn")
    with pytest.raises(InputError, match="no ledger"):
        Ledger.open(tmp_path / "absent")


def test_what_differs_is_named(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger.reserve(votes("a"))
    with pytest.raises(InputError, match=r"epsilon 1\.0, not 2\.0"):
        Ledger.create(path, Budget(epsilon=2.0, delta=1e-5, unit="record"), "print")
    assert Ledger.create(path, BUDGET, "print").budget == BUDGET


def test_until_something_is_charged_it_can_be_made_anew(ledger: Ledger) -> None:
    ledger.keep_room("trial/", [votes("final", sigma=10.0)])
    other = Budget(epsilon=2.0, delta=1e-6, unit="user")
    with pytest.raises(InputError, match="another configuration"):
        Ledger.create(ledger.path, other, "other", "adaptive")
    again = Ledger.create(ledger.path, other, "other", "adaptive", renew=True)
    assert (again.budget, again.fingerprint, again.accounting) == (other, "other", "adaptive")
    again.reserve(votes("trial/1", sigma=3.0))  # the room kept for the first's releases is gone
    with pytest.raises(InputError, match="another configuration"):
        Ledger.create(ledger.path, BUDGET, "print", renew=True)
    with pytest.raises(BudgetError, match="made for another run"):
        ledger.reserve(votes("a"))  # by whoever opened it before


def test_a_ledger_of_another_version_is_left_alone(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    for attempt in (lambda: Ledger.create(path, BUDGET, "print"), lambda: Ledger.open(path)):
        with pytest.raises(InputError, match="version"):
            attempt()
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (99,)


def test_impossible_releases_are_refused(ledger: Ledger) -> None:
    for sigma in (-12.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="outside"):
            ledger.reserve(votes("a", sigma=sigma))
    with pytest.raises(BudgetError, match="never charged"):
        ledger.commit("a", np.array([1]))
    assert ledger.entries() == ()


def test_readers_need_no_write_access(ledger: Ledger, tmp_path: Path) -> None:
    ledger.reserve(votes("a"))
    with sqlite3.connect(tmp_path / "ledger.sqlite") as writer:
        writer.execute("BEGIN IMMEDIATE")  # what a reserving process holds
        assert [entry.release.key for entry in ledger.entries()] == ["a"]
    writer.close()


def test_an_infinite_budget_holds_releases_without_noise(tmp_path: Path) -> None:
    budget = Budget(epsilon=float("inf"), delta=1e-5, unit="user")
    ledger = Ledger.create(tmp_path / "open.sqlite", budget, "print")
    ledger.reserve(votes("a", sigma=0.0))
    assert (ledger.budget, ledger.spent()) == (budget, float("inf"))


def test_the_budget_is_a_sharp_bound(tmp_path: Path) -> None:
    both = [votes("a"), votes("b")]
    whole = epsilon_of(both, 1e-5)
    for name, epsilon in (("enough", whole), ("short", whole * (1 - 1e-9))):
        budget = Budget(epsilon=epsilon, delta=1e-5, unit="record")
        ledger = Ledger.create(tmp_path / name, budget, "print")
        ledger.reserve(both[0])
        if name == "short":
            with pytest.raises(BudgetError, match="over the budget"):
                ledger.reserve(both[1])
        else:
            ledger.reserve(both[1])
            assert ledger.spent() == epsilon


def test_a_ledger_of_the_former_strategy_select_opens_and_claims_its_budget(
    ledger: Ledger, tmp_path: Path
) -> None:
    """Its releases alone would claim too little: the trials that lost were charged, too."""
    ledger.reserve(votes("a"))
    ledger.commit("a", np.array([1]))
    with sqlite3.connect(ledger.path) as database:
        database.execute("CREATE TABLE selection (one INTEGER PRIMARY KEY, plans TEXT)")
    before = Ledger.open(ledger.path)
    assert before.spent() < BUDGET.epsilon  # every search of that version had the table
    with sqlite3.connect(ledger.path) as database:
        database.execute("INSERT INTO selection VALUES (1, '[]')")
    again = Ledger.open(ledger.path)
    assert again.released("a") is not None
    assert again.spent() == again.spent(1e-4) == BUDGET.epsilon
    assert again.spent(1e-6) == float("inf")
    with pytest.raises(BudgetError):
        again.reserve(votes("b"))
