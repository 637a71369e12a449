"""Runs and searches in one account, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from pe_ray import cli
from pe_ray.release.account import Account
from pe_ray.release.adaptive import cost_of
from pe_ray.release.ledger import Ledger

SPENDER = "the-team-of-anna"


@pytest.fixture
def account(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    policy = tmp_path / "policy.yaml"
    limits = {"epsilon": 1.3, "delta": 1e-4, "unit": "record", "spenders": {SPENDER: 1.3}}
    policy.write_text(yaml.safe_dump(limits))
    file = str(tmp_path / "secret-account.sqlite")
    assert cli.main(["account", file, "--policy", str(policy)]) == 0
    assert "epsilon 1.3" in capsys.readouterr().out
    return file


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for label in (0, 1):
        folder = tmp_path / "data" / str(label)
        folder.mkdir(parents=True)
        Image.fromarray(np.full((12, 12), label, np.uint8)).save(folder / "a.png")
    return tmp_path / "data"


@pytest.fixture
def accounted(short: dict[str, Any], account: str, data: Path) -> dict[str, Any]:
    short["private"] |= {"data": str(data), "labels": ["0", "1"]}
    short["schedule"]["num_samples"] = 10
    short["votes"] = {}
    short["privacy"] |= {"account": account, "spender": SPENDER}
    return short


def write(tree: dict[str, Any], folder: Path) -> str:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(tree))
    return str(file)


def test_runs_spend_from_one_budget_and_say_nothing_of_it(
    ray_session: None,
    accounted: dict[str, Any],
    account: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, run = write(accounted, tmp_path), Path(accounted["output"]["path"])
    assert cli.main(["run", file]) == 0
    ledger = Ledger.open(run / "ledger.sqlite")
    (held,) = Account(account).entries()
    assert (held.state, held.kind, held.spender) == ("finished", "run", SPENDER)
    assert held.cost == cost_of(entry.release for entry in ledger.entries())
    capsys.readouterr()
    assert cli.main(["account", account, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert ledger.spent() <= told["epsilon"] <= 1.05
    assert told["runs"][0]["ledger"] == str(ledger.path)
    published = [path.read_bytes() for path in run.rglob("*") if path.is_file()]
    assert published
    for secret in (account, SPENDER):
        assert not any(secret.encode() in content for content in published)
    # Again, and another run: the first is over, the second would be too much.
    assert cli.main(["run", file]) == 0
    other = f"output.path={tmp_path / 'other'}"
    for verb in ("check", "run"):
        capsys.readouterr()
        assert cli.main([verb, file, "--set", other]) == 2
        outcome = capsys.readouterr()
        assert "privacy.account: " in outcome.out + outcome.err
        assert len(outcome.err.splitlines()) <= 2 + (verb == "check")
    assert not Ledger.open(tmp_path / "other" / "ledger.sqlite").charged
    assert Account(account).entries() == [held]


def test_an_abandoned_run_gives_back_and_other_data_are_refused(
    ray_session: None,
    accounted: dict[str, Any],
    account: str,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (data / "1" / "b.png").write_bytes(b"no image")
    file, run = write(accounted, tmp_path), accounted["output"]["path"]
    assert cli.main(["run", file]) == 2
    assert "shard" in capsys.readouterr().err
    assert [entry.state for entry in Account(account).entries()] == ["reserved"]
    assert cli.main(["account", account, "--close", run]) == 0
    (held,) = Account(account).entries()
    assert (held.state, held.cost, held.epsilon) == ("closed", cost_of([]), 0.0)
    with Image.open(data / "1" / "a.png") as image:
        image.point(lambda value: value + 9).save(data / "1" / "b.png")
    capsys.readouterr()
    assert cli.main(["run", file]) == 2
    assert "pe-ray: private.data: " in capsys.readouterr().err
    assert cli.main(["account", account, "--data", file]) == 0
    assert cli.main(["run", file]) == 0
    assert [entry.state for entry in Account(account).entries()] == ["finished"]


@pytest.mark.slow
def test_a_search_reserves_its_budget_and_gives_back_the_rest(
    ray_session: None, accounted: dict[str, Any], account: str, tmp_path: Path
) -> None:
    accounted["privacy"]["epsilon"] = 1.2
    accounted["generator"]["image_size"] = 8
    accounted["schedule"]["num_samples"] = 20
    accounted["tuning"] = {
        "strategy": "compose",
        "space": {"selection.denoise": ["threshold", "simplex"]},
        "objective": {"kind": "moments", "dim": 1},
        "num_trials": 2,
    }
    file = write(accounted, tmp_path)
    assert cli.main(["tune", file]) == 0
    (held,) = Account(account).entries()
    ledger = Ledger.open(Path(accounted["output"]["path"], "ledger.sqlite"))
    assert (held.kind, held.state) == ("search", "finished")
    assert held.cost == cost_of(entry.release for entry in ledger.entries())
    assert cli.main(["tune", file]) == 0  # again: nothing further
    assert Account(account).entries() == [held]
