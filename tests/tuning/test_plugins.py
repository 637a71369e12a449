"""A strategy and an objective from outside the package, each one class in a module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_public import save_parquet
from tiny_search import STAND_IN, final

from pe_ray import InputError, cli
from pe_ray.release.ledger import Ledger
from pe_ray.tuning.search import Search
from pe_ray.tuning.trial import Job, run_trial
from pe_ray.tuning.tune import tune


@pytest.fixture
def added(searched: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    folder = save_parquet(tmp_path / "public", STAND_IN)
    searched["tuning"] |= {
        "strategy": {"kind": "tiny_tuning:Folder", "folder": str(folder)},
        "objective": {"kind": "tiny_tuning:NoNumber"},
    }
    return searched


@pytest.mark.slow
def test_they_are_planned_and_run(
    ray_session: None, added: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    added["schedule"] |= {"iterations": 1, "degrees": 0.5}
    added["tuning"] |= {"num_trials": 1, "objective": {"kind": "tiny_tuning:Ink", "share": 0.5}}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(added))
    assert cli.main(["plan", str(file), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["strategy"] == "tiny_tuning:Folder"
    assert plan["search_share"] == pytest.approx(0.5, abs=0.01)
    outcome = tune(Search.from_dict(added))
    entries = Ledger.open(outcome.path / "ledger.sqlite").entries()
    assert [entry.release.kind for entry in entries] == ["sums", "votes"]
    assert len(outcome.trials) == 1
    assert 1700 < outcome.score < 1900  # 1,797 records, with noise, less at most 20 samples


def test_a_score_that_is_no_number_is_the_worst(ray_session: None, added: dict[str, Any]) -> None:
    """The best trial must not depend on the order in which trials end."""
    job = Job(search=Search.from_dict(added), folder=final(added) / "trials")
    (report,) = run_trial(job, {"votes.neighbors": 1})
    assert report["score"] == float("inf")


def test_free_trials_never_vote_with_the_private_records(
    ray_session: None, added: dict[str, Any]
) -> None:
    added["tuning"]["strategy"] = "tiny_tuning:Careless"
    job = Job(search=Search.from_dict(added), folder=final(added) / "trials")
    with pytest.raises(InputError, match=r"tuning\.strategy: these are the private records"):
        next(run_trial(job, {"votes.neighbors": 1}))


def test_options_belong_to_the_strategy(added: dict[str, Any]) -> None:
    strategy = added["tuning"]["strategy"]
    for key, value, field in (
        ("folder", "elsewhere", r"tuning\.folder"),
        ("strategy", strategy | {"folders": 1}, r"tuning\.strategy\.folders"),
        ("strategy", strategy | {"proxy_share": 0.5}, r"tuning\.strategy\.proxy_share"),
        ("strategy", strategy | {"folder": 1}, r"tuning\.strategy\.folder"),
        ("objective", {"kind": "tiny_tuning:Ink", "ink": 1}, r"tuning\.objective\.ink"),
        ("objective", {"kind": "tiny_tuning:Oil"}, r"tuning\.objective"),
        ("strategy", "tiny_tuning:Oil", r"tuning\.strategy"),
    ):
        with pytest.raises(InputError, match=field):
            Search.from_dict(added | {"tuning": added["tuning"] | {key: value}})
