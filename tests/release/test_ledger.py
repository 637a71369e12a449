"""Nothing overspends, nothing is drawn twice, nothing is lost."""

from __future__ import annotations

import multiprocessing
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pe_ray.errors import BudgetError, FaultError, InputError
from pe_ray.release import sqlite_files
from pe_ray.release.accounting import epsilon_of
from pe_ray.release.ledger import Ledger
from pe_ray.release.ledger_sql import Accounting
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
    with pytest.raises(InputError, match="damaged"):
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


def read_all(path: Path) -> list[Any]:
    ledger = Ledger.open(path)
    entries = ledger.entries()
    answers = [
        None
        if (found := ledger.released(entry.release.key)) is None
        else found.noisy_votes.tolist()
        for entry in entries
    ]
    terms = [ledger.budget, ledger.fingerprint, ledger.accounting, ledger.config_digest]
    return [*terms, ledger.charged, entries, answers, ledger.spent(), ledger.spent(1e-7)]


def small_ledger(path: Path, accounting: Accounting = "adaptive") -> Ledger:
    """A ledger in pages of 512 bytes, with a release of each state and an answer over pages."""
    ledger = Ledger.create(path, BUDGET, "print", accounting)
    ledger.bind_config("digest")
    ledger.keep_room("trial/", [votes("final", sigma=50.0)])
    for number, size in enumerate((8, 500)):
        ledger.reserve(votes(f"votes/{number}", sigma=13.0 + number))
        noisy = np.random.default_rng(number).integers(-9, 9, size)
        ledger.commit(f"votes/{number}", noisy.astype(np.int64))
    ledger.reserve(votes("votes/2", sigma=16.0))
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA page_size = 512")
        database.execute("VACUUM")
    database.close()
    return ledger


def silent_flips(path: Path, folder: Path, flips: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those (byte, mask) after which something else is read, and no error says so."""
    content, before = path.read_bytes(), read_all(path)
    damaged, silent, told = folder / "damaged.sqlite", [], []
    for place, mask in flips:
        damaged.write_bytes(content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :])
        try:
            if read_all(damaged) != before:
                silent.append((place, mask))
        except InputError as error:
            told.append(str(error))
        for left in folder.glob("damaged.sqlite-*"):
            left.unlink()
    assert told
    assert all(text.startswith(f"{damaged}: ") for text in told)
    return silent


def test_no_flip_goes_unnoticed(tmp_path: Path, memory: Path) -> None:
    path = small_ledger(tmp_path / "ledger.sqlite").path
    content, rng = path.read_bytes(), random.Random(1)
    used = [place for place, value in enumerate(content) if value]
    flips = [(place, 1 << rng.randrange(8)) for place in rng.sample(used, 800)]
    flips += [(place, 0xFF) for place in range(100)]  # the header
    flips += [(place, 1 << bit) for place in range(60, 64) for bit in range(8)]  # version
    name = content.index(b"configurationconfiguration")  # in the schema; 32 changes the case
    flips += [(place, 32) for place in range(name, name + 26)]
    flips += [(place, 1) for place in range(name - 12, name)]  # types of its columns
    assert not silent_flips(path, memory, flips)


@pytest.mark.slow
def test_no_flip_of_any_bit_goes_unnoticed(tmp_path: Path, memory: Path) -> None:
    path = small_ledger(tmp_path / "ledger.sqlite").path
    size = len(path.read_bytes())
    assert not silent_flips(
        path, memory, [(place, 1 << bit) for place in range(size) for bit in range(8)]
    )


@pytest.fixture
def memory(tmp_path: Path) -> Any:
    """A folder in memory, where there is one, as syncing a disk is what takes the time."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else tmp_path) as folder:
        yield Path(folder)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE releases SET sigma = 2 * sigma, mu_squared = mu_squared / 4",
        "UPDATE releases SET state = 'reserved', committed_at = NULL WHERE position = 1",
        "UPDATE releases SET committed_at = '2000' WHERE position = 1",
        "DELETE FROM releases WHERE position = 2",
        "DELETE FROM releases WHERE position = 3",
        "DELETE FROM chain WHERE position = 3",
        "UPDATE budget SET epsilon = 8.0",
        "DELETE FROM kept",
        "UPDATE configuration SET sha256 = 'other'",
        "UPDATE accounting SET rule = 'fixed'",
    ],
)
def test_a_changed_row_is_refused_by_readers_and_writers(tmp_path: Path, change: str) -> None:
    ledger = small_ledger(tmp_path / "ledger.sqlite")
    with sqlite3.connect(ledger.path) as database:
        database.execute(change)
    database.close()
    changed = ledger.path.read_bytes()
    for attempt in (
        ledger.spent,
        ledger.entries,
        lambda: ledger.stored("votes/0"),
        lambda: ledger.released("votes/0"),
        lambda: ledger.reserve(votes("votes/3", sigma=20.0)),
        lambda: ledger.commit("votes/2", np.array([1])),
    ):
        with pytest.raises(InputError, match=f"^{ledger.path}: .*restore a copy"):
            attempt()
    assert ledger.path.read_bytes() == changed


def test_an_answer_of_another_release_is_refused(tmp_path: Path) -> None:
    """Its own checksum is right there, but not the chain's."""
    ledger = small_ledger(tmp_path / "ledger.sqlite")
    with sqlite3.connect(ledger.path) as database:
        database.execute(
            "UPDATE releases SET (noisy, sha256) = (SELECT noisy, sha256 FROM releases"
            " WHERE position = 2) WHERE position = 1"
        )
    database.close()
    with pytest.raises(InputError, match="damaged"):
        ledger.stored("votes/0")


def without_chain(path: Path) -> bytes:
    """Make the file what the former version wrote; return its bytes."""
    with sqlite3.connect(path) as database:
        for statement in ("DROP TABLE chain", "DROP TABLE configuration"):
            database.execute(statement)
        database.execute("PRAGMA user_version = 2")
    database.close()
    return path.read_bytes()


def test_a_ledger_of_the_former_version_is_read_as_it_is_and_written_with_a_chain(
    tmp_path: Path,
) -> None:
    ledger = small_ledger(tmp_path / "ledger.sqlite", "fixed")
    before = read_all(ledger.path)
    content = without_chain(ledger.path)
    again = Ledger.create(ledger.path, BUDGET, "print")
    assert again.config_digest is None
    before[3] = None
    assert read_all(ledger.path) == before
    assert ledger.path.read_bytes() == content
    with pytest.raises(BudgetError):
        again.reserve(votes("votes/3", sigma=1.0))
    assert ledger.path.read_bytes() == content
    again.commit("votes/2", np.array([7]))
    with sqlite3.connect(ledger.path) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (3,)
        assert database.execute("SELECT count(*) FROM chain").fetchone() == (4,)
        database.execute("UPDATE releases SET committed_at = '2000'")
    database.close()
    with pytest.raises(InputError, match="damaged"):
        Ledger.open(ledger.path)


@pytest.mark.parametrize(
    "change",
    [
        "sigma = 2 * sigma",
        "votes_per_unit = 2",
        "sensitivity = 2.0",
        "mu_squared = NULL",
        "mechanism = 'gaussian'",
        "committed_at = NULL",
        "sha256 = 'x'",
    ],
)
def test_columns_that_contradict_each_other_are_noticed_without_a_chain(
    tmp_path: Path, change: str
) -> None:
    ledger = small_ledger(tmp_path / "ledger.sqlite")
    without_chain(ledger.path)
    with sqlite3.connect(ledger.path) as database:
        database.execute(f"UPDATE releases SET {change} WHERE position = 1")
    database.close()
    changed = ledger.path.read_bytes()
    for attempt in (lambda: ledger.released("votes/0"), lambda: ledger.bind_config("other")):
        with pytest.raises(InputError, match="damaged"):
            attempt()
    assert ledger.path.read_bytes() == changed


HOLDER = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.readline()
"""


def test_a_ledger_that_another_process_holds_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = small_ledger(tmp_path / "ledger.sqlite")
    monkeypatch.setattr(sqlite_files, "_PATIENCE", 0.1)
    command = [sys.executable, "-c", HOLDER, str(ledger.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdout.readline()
        monkeypatch.setattr(sqlite_files, "BUSY_SECONDS", 0.5)
        for use in (ledger.spent, lambda: ledger.reserve(votes("x")), ledger.copied):
            caplog.clear()
            with pytest.raises(FaultError, match=f"held by process {holder.pid} "):
                use()
            assert f"waiting for process {holder.pid}," in caplog.text
        monkeypatch.setattr(sqlite_files, "BUSY_SECONDS", 60.0)
        with ThreadPoolExecutor() as pool:
            spent = pool.submit(ledger.spent)
            while len(caplog.messages) < 2:
                time.sleep(0.01)
            holder.stdin.close()
            assert spent.result(60) == ledger.spent()
