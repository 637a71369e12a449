"""Nobody spends more of a data set than its policy says, and no other data set is taken for it."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pe_ray import Config
from pe_ray.errors import BudgetError, InputError
from pe_ray.release.account import Account, Entry, Policy, describe, read_policy
from pe_ray.release.adaptive import adaptive_epsilon, cost_of, largest_cost
from pe_ray.release.ledger import Ledger
from pe_ray.release.reservation import check_reservation, give_back, reserve, settle
from pe_ray.values import Budget, Release

POLICY: dict[str, Any] = {
    "epsilon": 2.0,
    "delta": 1e-5,
    "unit": "record",
    "spenders": {"anna": 1.5, "ben": 2.0},
}


def votes(key: str, sigma: float = 8.0) -> Release:
    return Release(key=key, kind="votes", iteration=1, votes_per_unit=1, sigma=sigma)


def entry(run: str, spender: str = "ben", sigma: float = 8.0, epsilon: float = 0.6) -> Entry:
    return Entry(
        run=run,
        spender=spender,
        kind="run",
        ledger=f"/runs/{run}/ledger.sqlite",
        epsilon=epsilon,
        delta=1e-6,
        unit="record",
        cost=cost_of([votes("a", sigma)]),
        releases=0,
        state="reserved",
        reserved_at="2026-01-01T00:00:00+00:00",
    )


@pytest.fixture
def account(tmp_path: Path) -> Account:
    return Account.create(tmp_path / "account.sqlite", Policy(**POLICY))


@pytest.fixture
def config(account: Account, short: dict[str, Any]) -> Config:
    short["privacy"] |= {"account": str(account.path), "spender": "ben"}
    return Config.from_dict(short)


def ledger_of(config: Config, folder: Path) -> Ledger:
    folder.mkdir(exist_ok=True)
    return Ledger.create(folder / "ledger.sqlite", config.privacy.budget, "print")


def test_runs_compose_as_their_releases_would_in_one_ledger(account: Account) -> None:
    for name in "abc":
        account.reserve(entry(name), {"x"})
    told = describe(account)
    assert told["epsilon"] == adaptive_epsilon([votes("a")] * 3, 1e-5)
    assert told["spenders"][1] == {
        "name": "ben",
        "limit": 2.0,
        "epsilon": told["epsilon"],
        "left": told["left"]["epsilon"],
    }
    assert told["guarantee"] == {"epsilon": 2.0, "delta": 1e-5, "unit": "record"}
    left = told["left"]["epsilon"]
    for name, share, fits in (("d", 1.001, False), ("d", 0.999, True)):
        budget = Budget(epsilon=share * left, delta=1e-5, unit="record")
        more = replace(entry(name), cost=largest_cost(budget))
        if fits:
            account.reserve(more, {"x"})
        else:
            with pytest.raises(BudgetError, match=r"^privacy\.account: .*all runs"):
                account.reserve(more, {"x"})
    assert [held.run for held in account.entries()] == ["a", "b", "c", "d"]


def test_a_spender_has_a_limit_and_others_have_none_of_the_budget(account: Account) -> None:
    account.reserve(entry("a", "anna", sigma=3.0), {"x"})
    with pytest.raises(BudgetError, match=r"^privacy\.account: .*anna"):
        account.reserve(entry("b", "anna", sigma=3.0), {"x"})
    account.reserve(entry("b", "ben", sigma=3.0), {"x"})
    with pytest.raises(InputError, match=r"^privacy\.spender"):
        account.reserve(entry("c", "eve"), {"x"})
    with pytest.raises(InputError, match=r"^privacy\.unit"):
        account.reserve(replace(entry("c"), unit="user"), {"x"})
    assert [held.run for held in account.entries()] == ["a", "b"]


def test_epsilons_and_deltas_add_up_as_they_are_written(tmp_path: Path) -> None:
    limits = {"epsilon": 1.0, "delta": 1e-5, "composition": "sum", "spenders": {"ben": 5.0}}
    account = Account.create(tmp_path / "sum.sqlite", Policy(**POLICY | limits))
    for number in range(10):
        account.reserve(entry(str(number), epsilon=0.1), {"x"})
    told = describe(account)
    assert (told["epsilon"], told["delta"]) == (1.0, 1e-5)
    assert told["left"] == {"epsilon": 0.0, "delta": 0.0}
    for more in (replace(entry("e"), delta=0.0), replace(entry("d"), epsilon=0.0)):
        with pytest.raises(BudgetError):
            account.reserve(more, {"x"})


def _reserve_many(path: Path, name: str) -> None:
    account = Account(path)
    for number in range(20):
        try:
            account.reserve(entry(f"{name}/{number}"), {"x"})
        except BudgetError:
            return


def test_concurrent_processes_never_overspend(account: Account) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_reserve_many, args=(account.path, str(i))) for i in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    held = [votes("a")] * len(account.entries())
    assert adaptive_epsilon(held, 1e-5) <= 2.0 < adaptive_epsilon([*held, votes("a")], 1e-5)


def test_only_the_data_set_of_the_first_run_and_what_was_accepted_may_be_used(
    account: Account,
) -> None:
    account.reserve(entry("a"), {"one", "two"})
    account.reserve(entry("b"), {"two"})
    for attempt in (account.reserve, account.check):
        with pytest.raises(InputError, match=r"^private\.data: "):
            attempt(entry("c"), {"two", "three"})
    assert account.accept({"two", "three"}) == 1
    account.reserve(entry("c"), {"two", "three"})


def test_nobody_else_can_read_it_and_nothing_else_is_taken_for_it(
    account: Account, tmp_path: Path, short: dict[str, Any]
) -> None:
    assert account.path.stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(account.path) as database:  # the journal has the file's mode
        database.execute("BEGIN IMMEDIATE")
        database.execute("DELETE FROM data")
        journal = Path(f"{account.path}-journal")
        assert journal.stat().st_mode & 0o077 == 0
        database.rollback()
    database.close()
    account.path.chmod(0o640)
    for attempt in (Account, lambda path: Account.create(path, Policy(**POLICY))):
        with pytest.raises(InputError, match=r"^privacy\.account: .*chmod 600"):
            attempt(account.path)
    with pytest.raises(InputError, match=r"^privacy\.account: .*does not exist"):
        Account(tmp_path / "absent")
    budget = Budget(epsilon=1.0, delta=1e-5, unit="record")
    ledger = Ledger.create(tmp_path / "ledger.sqlite", budget, "print")
    ledger.path.chmod(0o600)
    for attempt in (
        lambda path: Account(path).entries(),
        lambda path: Account.create(path, Policy(**POLICY)),
    ):
        with pytest.raises(InputError, match="isn't an account"):
            attempt(ledger.path)
    assert ledger.spent() == 0
    short["privacy"]["account"] = f"{short['output']['path']}/account.sqlite"
    with pytest.raises(InputError, match=r"privacy\.account: must lie outside output\.path"):
        Config.from_dict(short)


def test_a_policy_holds_from_then_on_and_never_below_what_is_held(
    account: Account, tmp_path: Path
) -> None:
    account.reserve(entry("a", sigma=3.0), {"x"})
    for change in ({"epsilon": 0.5}, {"delta": 1e-12}, {"unit": "user"}):
        with pytest.raises(InputError, match=r"^policy\."):
            Account.create(account.path, Policy(**POLICY | change))
    Account.create(account.path, Policy(**POLICY | {"epsilon": 3.0, "spenders": {"anna": 1.0}}))
    assert [policy.epsilon for _, policy in account.policies()] == [2.0, 3.0]
    with pytest.raises(InputError, match=r"^privacy\.spender"):
        account.reserve(entry("b"), {"x"})
    assert [spender["limit"] for spender in describe(account)["spenders"]] == [1.0, 0.0]
    file = tmp_path / "policy.yaml"
    for change, key in (
        ({"epsilon": -1}, "epsilon"),
        ({"spenders": {}}, "spenders"),
        ({"spenders": {"anna": 0}}, r"spenders\.anna"),
        ({"names": ["anna"]}, "names"),
        ({"composition": "advanced"}, "composition"),
    ):
        file.write_text(yaml.safe_dump(POLICY | change))
        with pytest.raises(InputError, match=rf"policy\.{key}"):
            read_policy(str(file))


def test_a_run_reserves_once_gives_back_what_it_did_not_use_and_charges_no_more(
    account: Account, config: Config, tmp_path: Path
) -> None:
    ledger = ledger_of(config, tmp_path / "run")
    planned = [votes("votes/1", 5.0), votes("votes/2", 5.0)]
    for _ in range(2):
        reserve(config, ledger, "run", planned)
    (held,) = account.entries()
    assert (held.spender, held.state, held.cost) == ("ben", "reserved", cost_of(planned))
    ledger.reserve(planned[0])
    with pytest.raises(BudgetError, match=r"^privacy\.account: votes/3"):
        ledger.reserve(votes("votes/3", 4.5))
    assert give_back(account, ledger, "closed").cost == cost_of(planned[:1])
    with pytest.raises(BudgetError, match=r"^privacy\.account: votes/2"):
        ledger.reserve(planned[1])  # by a worker that still lives
    reserve(config, ledger, "run", planned)  # the same command again
    ledger.reserve(planned[1])
    settle(config, ledger)
    (held,) = account.entries()
    assert (held.state, held.cost, held.releases) == ("finished", cost_of(planned), 2)
    before = account.entries()
    for _ in range(2):  # a finished run needs nothing, and whatever is asked for gives nothing
        reserve(config, ledger, "run", [*planned, votes("votes/3")])
        settle(config, ledger)
    assert account.entries() == before


def test_a_run_that_charged_nothing_gives_back_all_and_by_sum_only_then(
    tmp_path: Path, config: Config
) -> None:
    path = config.privacy.account
    by_sum = Account.create(str(path), Policy(**POLICY | {"delta": 1e-3, "composition": "sum"}))
    ledger = ledger_of(config, tmp_path / "run")
    reserve(config, ledger, "run", [votes("a"), votes("b")])
    assert describe(by_sum)["epsilon"] == 1.0
    give_back(by_sum, ledger, "closed")
    assert describe(by_sum)["epsilon"] == 0.0
    reserve(config, ledger, "run", [votes("a"), votes("b")])
    ledger.reserve(votes("a"))
    give_back(by_sum, ledger, "closed")
    assert describe(by_sum)["epsilon"] == 1.0


def test_a_refused_run_is_charged_nothing(account: Account, config: Config, tmp_path: Path) -> None:
    account.reserve(entry("a", sigma=2.2), {"sklearn:digits"})
    ledger = ledger_of(config, tmp_path / "run")
    planned = [votes("a", 3.5)]
    before = account.path.read_bytes()
    with pytest.raises(BudgetError, match=r"^privacy\.account"):
        check_reservation(config, tmp_path / "absent", "run", planned)
    with pytest.raises(BudgetError, match=r"^privacy\.account"):
        reserve(config, ledger, "run", planned)
    assert account.path.read_bytes() == before
    with pytest.raises(BudgetError, match=r"^privacy\.account"):
        ledger.reserve(planned[0])  # as without the key in the configuration
    assert not ledger.charged


def test_a_second_or_older_ledger_of_a_run_is_refused(
    account: Account, config: Config, tmp_path: Path
) -> None:
    ledger = ledger_of(config, tmp_path / "run")
    planned = [votes("a"), votes("b")]
    reserve(config, ledger, "run", planned)
    ledger.reserve(planned[0])
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    copy = Ledger.open(tmp_path / "copy" / "ledger.sqlite")
    with pytest.raises(InputError, match=r"^output\.path: .* is a copy of"):
        reserve(config, copy, "run", planned)
    with pytest.raises(InputError, match=r"^output\.path: .* is a copy of"):
        give_back(account, copy, "closed")
    old = ledger.path.read_bytes()
    ledger.reserve(planned[1])
    settle(config, ledger)
    ledger.path.write_bytes(old)
    with pytest.raises(InputError, match=r"^output\.path: .*give the newer"):
        reserve(config, ledger, "run", planned)
    shutil.rmtree(tmp_path / "run")  # what was there is unknown, so nothing comes back
    assert describe(account)["epsilon"] == pytest.approx(adaptive_epsilon(planned, 1e-5))


def test_no_flip_lets_more_be_spent(account: Account, tmp_path: Path) -> None:
    account.reserve(entry("a"), {"x"})
    account.reserve(entry("b", "anna"), {"x"})
    with sqlite3.connect(account.path) as database:
        database.execute("PRAGMA page_size = 512")
        database.execute("VACUUM")
    database.close()
    content, before, rng = account.path.read_bytes(), describe(account), random.Random(1)
    used = [place for place, value in enumerate(content) if value]
    damaged, told = tmp_path / "damaged.sqlite", list[str]()
    damaged.touch(0o600)
    for place in rng.sample(used, 300):
        flipped = bytes([content[place] ^ 1 << rng.randrange(8)])
        damaged.write_bytes(content[:place] + flipped + content[place + 1 :])
        try:
            found = describe(Account(damaged))
        except InputError as error:
            told.append(str(error))
        else:
            assert found == before
        Path(f"{damaged}-journal").unlink(missing_ok=True)
    assert len(told) > 100
    assert all(text.startswith(f"{damaged}: ") for text in told)
