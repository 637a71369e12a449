"""Searches end to end: budgets hold, kills cost nothing, losers and canaries leave no trace."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from pe_ray import InputError, cli
from pe_ray.planning import planned_releases, run_shape
from pe_ray.release.adaptive import mu_of, with_mu
from pe_ray.release.ledger import Ledger
from pe_ray.report import write_report
from pe_ray.status import status
from pe_ray.synthetic.writer import manifest_of
from pe_ray.tuning.budget import final_mu
from pe_ray.tuning.config import search_of
from pe_ray.tuning.private_selection import secret_folder
from pe_ray.tuning.strategies import tune
from pe_ray.tuning.trial import Job, trial_config, trial_releases

STAND_IN = [str(digit) for digit in range(10)]


@pytest.fixture
def searched(tree: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Two settings, both cheap; every trial is scored by released votes."""
    tree["votes"] = {}
    tree["privacy"]["epsilon"] = 10.0
    tree["schedule"] |= {"iterations": 2, "num_samples": 20}
    tree["generator"]["image_size"] = 8
    tree["tuning"] = {
        "strategy": "compose",
        "space": {"votes.neighbors": [1, 2], "selection.denoise": ["threshold", "simplex"]},
        "objective": {"kind": "released"},
        "num_trials": 2,
    }
    return tree


def service(max_calls: int, folder: Path) -> dict[str, Any]:
    """A generator that calls out; nothing listens there."""
    return {
        "kind": "image_api",
        "base_url": "http://localhost:9/v1",
        "api_key_env": None,
        "store": str(folder / "store"),
        "image_size": 64,
        "prompt": "a digit",
        "random": {"model": "m", "size": 256},
        "vary": {"model": "m", "size": 256, "endpoint": "variations"},
        "on_refusal": "keep",
        "price": {"random": 0.0, "vary": 0.0},
        "max_calls": max_calls,
        "max_cost": 1.0,
        "concurrency": 1,
    }


def final(tree: dict[str, Any]) -> Path:
    return Path(tree["output"]["path"])


def test_compose_charges_trials_and_the_final_run_in_one_ledger(
    ray_session: None, searched: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    searched["tuning"] |= {
        "objective": {"kind": "score", "clip": 1.0},
        "scheduler": "asha",
        "num_trials": 2,
    }
    searched["teacher"] = {"features": 4, "epochs": 1}
    outcome = tune(search_of(searched))
    ledger = Ledger.open(outcome.path / "ledger.sqlite")
    assert ledger.accounting == "adaptive"
    keys = [entry.release.key for entry in ledger.entries()]
    assert keys[-3:] == ["votes/0001", "votes/0002", "teacher"]
    assert [key for key in keys if "teacher" in key] == ["teacher"]  # trials have none
    assert (outcome.path / "teacher" / "weights.npz").exists()
    assert sum(key.startswith("trial/") and "/score/" in key for key in keys) >= 2
    assert all(entry.state == "committed" for entry in ledger.entries())
    assert 9.9 < ledger.spent() <= 10.0
    assert manifest_of(outcome.path / "synthetic") is not None
    assert not (outcome.path / "tuning" / "tune").exists()  # it says how long votes took
    again = tune(search_of(searched))  # finds everything done
    assert again == outcome
    assert [entry.release.key for entry in ledger.entries()] == keys
    assert cli.main(["ledger", str(outcome.path)]) == 0
    assert "bounds      epsilon by adaptive" in capsys.readouterr().out
    searched["tuning"]["num_trials"] = 3
    with pytest.raises(InputError, match=r"tuning.num_trials: differs from the search"):
        tune(search_of(searched))


@pytest.mark.parametrize("strategy", ["public", "public, moments", "proxy"])
def test_free_trials_have_the_noise_of_the_final_runs_votes(
    searched: dict[str, Any], strategy: str, tmp_path: Path
) -> None:
    searched["teacher"] = {"share": 0.75, "features": 4}
    searched["tuning"] |= {
        "strategy": strategy.split(",")[0],
        "public_data": {"data": "/public", "labels": STAND_IN},
        "objective": {"kind": "moments" if "moments" in strategy else "released"},
    }
    search = search_of(searched)
    job = Job(search=search, folder=tmp_path, ledger=None)
    config = trial_config(job, {})
    trial = trial_releases(job, config, "")
    fixed = strategy == "public"
    final = planned_releases(search.config)
    if not fixed:
        final = with_mu(run_shape(search.config), final_mu(search))
    assert config.teacher is None
    assert [release.key for release in final] == ["votes/0001", "votes/0002", "teacher"]
    assert [release.key for release in trial] == ["votes/0001", "votes/0002"]
    assert [release.sigma for release in trial] == [release.sigma for release in final[:2]]
    assert mu_of(final[2:]) ** 2 == pytest.approx(0.75 * mu_of(final) ** 2, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("final_share", [0.0, 0.5])
def test_the_ledger_ends_a_search_that_would_overspend(
    ray_session: None, searched: dict[str, Any], final_share: float
) -> None:
    searched["tuning"] |= {"full_trials": 1, "final_share": final_share, "num_trials": 4}
    outcome = tune(search_of(searched))
    states = sorted(trial["state"] for trial in outcome.trials)
    assert states == ["complete", "refused"]
    refused = next(trial for trial in outcome.trials if trial["state"] == "refused")
    assert "over the budget" in refused["reason"]
    ledger = Ledger.open(outcome.path / "ledger.sqlite")
    assert 9.9 < ledger.spent() <= 10.0
    final_run = [e.release for e in ledger.entries() if not e.release.key.startswith("trial/")]
    assert len(final_run) == (2 if final_share else 0)  # the reserved share was left alone
    assert status(outcome.path).finished
    assert write_report(outcome.path).exists()
    assert manifest_of(outcome.path / "synthetic") is not None


@pytest.mark.slow
def test_proxy_pays_for_one_run_and_the_final_one(
    ray_session: None, searched: dict[str, Any]
) -> None:
    searched["tuning"] |= {"strategy": "proxy", "search": "optuna", "proxy_voters": 60}
    outcome = tune(search_of(searched))
    ledger = Ledger.open(outcome.path / "ledger.sqlite")
    keys = [entry.release.key for entry in ledger.entries()]
    assert keys == ["proxy/votes/0001", "proxy/votes/0002", "votes/0001", "votes/0002"]
    assert list((outcome.path / "tuning" / "tune").rglob("events.out.tfevents*"))
    assert 9.9 < ledger.spent() <= 10.0


def test_public_trials_never_open_the_private_records(
    ray_session: None, searched: dict[str, Any]
) -> None:
    """With no private data there at all, every trial runs; only the final run misses them."""
    searched["private"]["data"] = "/nowhere"
    searched["tuning"] |= {
        "strategy": "public",
        "public_data": {"data": "sklearn:digits", "labels": STAND_IN},
        "objective": {"kind": "public", "mode": "max", "metric": {"kind": "classifier"}},
    }
    with pytest.raises(InputError, match=r"private.data: /nowhere does not exist"):
        tune(search_of(searched))
    result = json.loads((final(searched) / "tuning" / "result.json").read_bytes())
    assert all(trial["state"] == "complete" for trial in result["trials"])
    assert Ledger.open(final(searched) / "ledger.sqlite").entries() == ()
    searched["private"]["data"] = "sklearn:digits"
    with pytest.raises(InputError, match="these are the private records"):
        search_of(searched)
    for private, public in (("/data", "/data/./train"), ("/data/all.parquet", "/data")):
        searched["private"]["data"] = private
        searched["tuning"]["public_data"]["data"] = public
        with pytest.raises(InputError, match="these are the private records"):
            search_of(searched)


def test_select_lets_one_run_out_and_destroys_the_rest(
    ray_session: None,
    searched: dict[str, Any],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pe_ray.release.selection import Repetitions
    from pe_ray.tuning import private_selection

    monkeypatch.setattr(Repetitions, "draw", lambda self: 3)
    searched["tuning"] |= {"strategy": "select", "repetitions": {"mean": 3.0}}
    search = search_of(searched)
    secret = secret_folder(search)
    kept: list[dict[str, Any]] = []
    best = private_selection._best

    def watched(*arguments: Any) -> str:
        name = best(*arguments)
        kept.extend(json.loads(f.read_bytes()) for f in sorted(secret.glob("*/trial.json")))
        assert secret.stat().st_mode & 0o077 == 0
        assert len(kept) == 3
        return name

    monkeypatch.setattr(private_selection, "_best", watched)
    outcome = tune(search)
    assert not secret.exists()
    assert len(outcome.trials) == 1
    ledger = Ledger.open(outcome.path / "ledger.sqlite")
    assert ledger.paid_by_selection() == ("votes/0001", "votes/0002")
    assert ledger.spent() <= 10.0
    assert ledger.spent() == min(ledger.bounds().values())
    assert manifest_of(outcome.path / "synthetic") is not None
    losers = {
        str(score)
        for record in kept
        for score in record["scores"].values()
        if score != outcome.score
    }
    written = [path.read_bytes() for path in outcome.path.rglob("*") if path.is_file()]
    out, err = capfd.readouterr()
    for text in (*written, out.encode(), err.encode()):
        assert not any(loser.encode() in text for loser in losers)
    assert not (outcome.path / "tuning" / "tune").exists()
    assert tune(search) == outcome


def test_a_selection_whose_runs_are_lost_is_refused(
    ray_session: None, searched: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from pe_ray.tuning import private_selection

    searched["tuning"] |= {"strategy": "select", "repetitions": {"mean": 2.0}}
    search = search_of(searched)

    def dies(*arguments: Any) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(private_selection, "_best", dies)
        with pytest.raises(KeyboardInterrupt):
            tune(search)
    shutil.rmtree(secret_folder(search))
    with pytest.raises(InputError, match="with its runs is gone"):
        tune(search)


@pytest.mark.parametrize("strategy", ["compose", "select"])
def test_a_bad_record_ends_a_search_before_anything_is_spent(
    ray_session: None, searched: dict[str, Any], tmp_path: Path, strategy: str
) -> None:
    file = tmp_path / "data.parquet"
    pq.write_table(pa.table({"image": [b"none"], "label": ["3"]}), file)
    searched["private"] |= {"data": str(file), "cache": str(tmp_path / "cache")}
    searched["tuning"]["strategy"] = strategy
    with pytest.raises(InputError, match="shard 0, row 0"):
        tune(search_of(searched))
    assert Ledger.open(final(searched) / "ledger.sqlite").spent() == 0.0
    for path in final(searched).rglob("*"):
        assert path.is_dir() or b"row 0" not in path.read_bytes()


def test_why_private_records_cannot_be_used_is_not_kept(
    searched: dict[str, Any], tmp_path: Path
) -> None:
    from pe_ray.tuning.search import _note, records

    for ledger, kept in ((tmp_path / "ledger.sqlite", False), (None, True)):
        job = Job(search=search_of(searched), folder=tmp_path / str(kept), ledger=ledger)
        _note(job, {"votes.neighbors": 1}, {"failed": "private.data: shard 3, row 17: no image"})
        _note(job, {"votes.neighbors": 2}, {"failed": "embedder.weights: no such file"})
        reasons = {record["reason"] for record in records(job.folder)}
        assert ("private.data: shard 3, row 17: no image" in reasons) == kept
        assert "embedder.weights: no such file" in reasons


def test_a_score_that_is_no_number_is_the_worst(
    ray_session: None, searched: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best of a selection must not depend on the order in which its runs end."""
    from pe_ray.tuning import objectives
    from pe_ray.tuning.trial import run_trial

    monkeypatch.setattr(objectives, "crowding", lambda votes: float("nan"))
    tuned = search_of(searched)
    job = Job(search=tuned, folder=final(searched) / "trials", ledger=None)
    (report,) = run_trial(job, {"votes.neighbors": 1})
    assert report["score"] == float("inf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"votes.neighbours": [1]}}, "votes.neighbours: there is no such key"),
        ({"space": {"privacy.unit": ["user"]}}, "tuning.space.privacy.unit: can't be searched"),
        ({"space": {"private.user_column": ["who"]}}, "private.user_column: can't be searched"),
        ({"space": {"votes.neighbors": [0]}}, "votes.neighbors"),
        ({"space": {}}, "tuning.space"),
        ({"strategy": "public"}, "public_data: needed"),
        ({"strategy": "select", "search": "optuna"}, "independent of each other"),
        ({"strategy": "select", "scheduler": "asha"}, "independent of each other"),
        ({"strategy": "proxy", "objective": {"kind": "score", "clip": 1.0}}, "must not"),
        (
            {"objective": {"kind": "public", "mode": "max", "metric": {"kind": "classifier"}}},
            "objective.reference: needed",
        ),
        ({"objective": {"kind": "moments", "share": 0.9}, "strategy": "proxy"}, "proxy_share"),
        ({"strategy": "select", "repetitions": {"mean": 3.0}}, "too small for a selection"),
        ({"full_trials": 2}, "too small for one trial"),
        ({"trials": 3}, "tuning.trials: there is no such key"),
        ({"space": {"teacher.share": [0.5]}}, "teacher.share: can't be searched: trials have none"),
        ({"strategy": "select", "teacher": {}}, "teacher: it is released in a final run"),
        ({"final_share": 0, "teacher": {}}, "teacher: it is released in a final run"),
        ({"strategy": "select", "generator": 50_000}, "image_api hands samples to a service"),
        ({"generator": 1}, "allows 1 calls"),
    ],
)
def test_bad_input_is_refused_before_anything_is_spent(
    searched: dict[str, Any], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    if changes.get("strategy") == "proxy" and "moments" in str(changes):
        searched["tuning"]["proxy_share"] = 0.5
    if "too small" in message:  # less than the sampler's finite randomness can promise
        searched["privacy"]["delta"] = 1e-36
    if "generator" in changes:
        searched["generator"] = service(changes["generator"], tmp_path)
    if "teacher" in changes:
        searched["teacher"] = changes["teacher"]
    apart = ("generator", "teacher")
    searched["tuning"] |= {key: value for key, value in changes.items() if key not in apart}
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        tune(search_of(searched))
    assert not final(searched).exists()


def test_the_plan_shows_all_strategies(
    searched: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    searched["tuning"]["public_data"] = {"data": "/public", "labels": STAND_IN}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(searched))
    assert cli.main(["plan", str(file), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    found = {cost["strategy"]: cost for cost in shown["strategies"]}
    assert shown["recommended"] == "public"
    assert found["public"]["noise"] == 1.0
    assert found["proxy"]["search_share"] == pytest.approx(0.2, abs=0.01)
    assert found["compose"]["search_share"] == pytest.approx(0.5, abs=0.01)
    assert max(found["select"]["bounds"].values()) > 0
    assert not final(searched).exists()


@pytest.mark.slow
def test_killed_it_is_restored_without_paying_twice(
    searched: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(searched))
    command = [sys.executable, "-m", "pe_ray", "tune", str(file)]
    seen: dict[str, list[int]] = {}

    def watch() -> int:
        path = final(searched) / "ledger.sqlite"
        if not path.exists():
            return 0
        try:
            ledger = Ledger.open(path)
        except InputError:  # just being made
            return 0
        assert ledger.spent() <= 10.0
        for entry in ledger.entries():
            stored = ledger.stored(entry.release.key)
            if stored is not None:
                assert seen.setdefault(entry.release.key, stored.tolist()) == stored.tolist()
        return len(seen)

    for wanted in (1, 3):  # in the first trial, then in the second
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        while watch() < wanted and process.poll() is None:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    watch()
    trials = {key.split("/")[1] for key in seen if key.startswith("trial/")}
    result = json.loads((final(searched) / "tuning" / "result.json").read_bytes())
    assert len(trials) == len(result["trials"])  # no trial was charged for nothing
    assert all(trial["state"] == "complete" for trial in result["trials"])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["compose", "select"])
def test_a_canary_record_leaves_no_trace(
    ray_session: None,
    searched: dict[str, Any],
    tmp_path: Path,
    strategy: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    canary = "CANARY-77f0c1"
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, size=(40, 8, 8), dtype=np.uint8)
    images = []
    for some in pixels:
        sink = io.BytesIO()
        Image.fromarray(some).save(sink, format="PNG")
        images.append(sink.getvalue())
    users = [canary if number == 7 else f"user {number % 9}" for number in range(40)]
    data = tmp_path / "data.parquet"
    labels = [str(number % 10) for number in range(40)]
    pq.write_table(pa.table({"image": images, "label": labels, "who": users}), data)
    searched["private"] |= {
        "data": str(data),
        "user_column": "who",
        "cache": str(tmp_path / "cache"),
    }
    searched["privacy"]["unit"] = "user"
    searched["tuning"] |= {
        "strategy": strategy,
        "space": {"votes.max_votes_per_user": [1, 2]},
        "objective": {"kind": "moments", "dim": 2},
        "num_trials": 2,
        "repetitions": {"mean": 1.5},
    }
    outcome = tune(search_of(searched))
    out, err = capfd.readouterr()
    written = [path.read_bytes() for path in outcome.path.rglob("*") if path.is_file()]
    assert len(written) > 10
    for text in (*written, out.encode(), err.encode()):
        assert canary.encode() not in text
        assert pixels[7].tobytes() not in text
        assert images[7] not in text
