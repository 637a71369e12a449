"""Searches end to end: budgets hold, kills cost nothing, canaries leave no trace."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from tiny_search import STAND_IN, final
from verified import differing

from pe_ray import InputError, cli
from pe_ray.config.yaml_tree import dump_tree
from pe_ray.files.parts import read_manifest
from pe_ray.files.storage import atomic_write
from pe_ray.planning import plan_releases
from pe_ray.release.adaptive import mu_of, with_mu
from pe_ray.release.ledger import Ledger
from pe_ray.report import write_report
from pe_ray.report.run_status import read_status
from pe_ray.tuning import trial
from pe_ray.tuning.budget import accounting_of, final_shape
from pe_ray.tuning.outcomes import note_trial
from pe_ray.tuning.search import Search
from pe_ray.tuning.trial import Job, TrialActor, trial_config
from pe_ray.tuning.tune import tune


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._file,)


@pytest.mark.slow
def test_compose_charges_trials_and_the_final_run_in_one_ledger(
    ray_session: None,
    searched: dict[str, Any],
    tmp_path: Path,
    private_cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    searched["tuning"] |= {
        "scheduler": "asha",
        "num_trials": 2,
    }
    searched["teacher"] = {"features": 4, "epochs": 1}
    outcome = tune(Search.from_dict(searched))
    ledger = Ledger.open(outcome.path / "ledger.sqlite")
    assert ledger.accounting == "adaptive"
    keys = [entry.release.key for entry in ledger.entries()]
    assert keys[-3:] == ["votes/0001", "votes/0002", "teacher"]
    assert [key for key in keys if "teacher" in key] == ["teacher"]  # trials have none
    assert (outcome.path / "teacher" / "weights.npz").exists()
    assert sum(key.startswith("trial/") for key in keys) >= 3
    assert keys[0] == "moments"
    assert all(entry.state == "committed" for entry in ledger.entries())
    assert 9.9 < ledger.spent() <= 10.0
    assert read_manifest(outcome.path / "synthetic") is not None
    assert not (outcome.path / "tuning" / "tune").exists()  # it says how long votes took
    kept = (outcome.path / "tuning" / "trials").glob("*/trial.json")
    noted = {json.dumps(t["settings"]): t["scores"] for t in map(_read_json, kept)}
    assert noted == {json.dumps(t["settings"]): t["scores"] for t in outcome.trials}
    capsys.readouterr()
    assert cli.main(["status", str(outcome.path), "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["state"] == seen["search"]["state"] == "finished"
    assert seen["search"]["best"]["settings"] == outcome.settings
    again = tune(Search.from_dict(searched))  # finds everything done
    assert again == outcome
    assert [entry.release.key for entry in ledger.entries()] == keys
    (outcome.path / "tuning" / "result.json").unlink()  # as where Ray Tune's state is lost
    marker, planted = tmp_path / "unpickled", outcome.path / "tuning" / "tune" / "trials"
    planted.mkdir(parents=True)
    for name in ("tuner.pkl", "trainable.pkl", "experiment_state-1.json"):
        (planted / name).write_bytes(pickle.dumps(Touch(marker)))
    assert tune(Search.from_dict(searched)) == outcome
    assert [entry.release.key for entry in ledger.entries()] == keys
    assert not marker.exists()
    assert not list((private_cache.parent / "tune").iterdir())
    assert cli.main(["ledger", str(outcome.path)]) == 0
    assert "accounting  adaptive" in capsys.readouterr().out
    searched["tuning"]["num_trials"] = 3
    with pytest.raises(InputError, match=r"tuning.num_trials: differs"):
        tune(Search.from_dict(searched))


@pytest.mark.parametrize("unit", ["record", "user"])
@pytest.mark.parametrize("strategy", ["public", "public, moments", "proxy"])
def test_free_trials_have_the_noise_of_the_final_runs_votes(
    searched: dict[str, Any], strategy: str, unit: str, tmp_path: Path
) -> None:
    """Though a stand-in has no users."""
    searched["private"] |= {"data": "/private", "user_column": "who"}
    searched["privacy"]["unit"] = unit
    searched["votes"]["max_votes_per_user"] = 9 if unit == "user" else 1
    searched["teacher"] = {"share": 0.75, "features": 4}
    searched["tuning"] |= {
        "strategy": strategy.split(",")[0],
        "public_data": {"data": "/public", "labels": STAND_IN},
    }
    if strategy == "public":
        metric = {"kind": "frechet", "embedder": {"kind": "pixels"}}
        objective = {"kind": "public", "mode": "min", "metric": metric}
        reference = searched["tuning"]["public_data"]
        searched["tuning"]["objective"] = objective | {"reference": reference}
    search = Search.from_dict(searched)
    job = Job(search=search, folder=tmp_path, ledger=None)
    config = trial_config(job, {})
    free = search.strategy.trial_releases(search, config, "")
    fixed = strategy == "public"
    final = plan_releases(search.config)
    if not fixed:
        final = with_mu(final_shape(search.config), search.strategy.result_mu(search))
    assert config.teacher is None
    assert [release.key for release in final] == ["votes/0001", "votes/0002", "teacher"]
    assert [release.key for release in free] == ["votes/0001", "votes/0002"]
    assert [release.sigma for release in free] == [release.sigma for release in final[:2]]
    assert mu_of(final[2:]) ** 2 == pytest.approx(0.75 * mu_of(final) ** 2, rel=0.02)


@pytest.mark.slow
def test_the_ledger_ends_a_search_that_would_overspend(
    ray_session: None, searched: dict[str, Any]
) -> None:
    searched["tuning"] |= {"strategy": {"kind": "compose", "full_trials": 1}, "num_trials": 4}
    outcome = tune(Search.from_dict(searched))
    states = sorted(trial["state"] for trial in outcome.trials)
    assert states == ["complete", "refused"]
    refused = next(trial for trial in outcome.trials if trial["state"] == "refused")
    assert "over the budget" in refused["reason"]
    ledger = Ledger.open(outcome.path / "ledger.sqlite")
    assert 9.9 < ledger.spent() <= 10.0
    final_run = [e.release for e in ledger.entries() if not e.release.key.startswith("trial/")]
    assert len(final_run) == 3  # the reserved share was left alone
    assert read_status(outcome.path)["state"] == "finished"
    write_report(outcome.path)
    rows = (outcome.path / "metrics.jsonl").read_text().splitlines()
    assert all("survivors" in json.loads(row) for row in rows)
    assert read_manifest(outcome.path / "synthetic") is not None


@pytest.mark.slow
def test_proxy_pays_for_one_run_and_the_final_one(
    ray_session: None, searched: dict[str, Any]
) -> None:
    searched["tuning"] |= {
        "strategy": {"kind": "proxy", "proxy_voters": 60},
        "search": "optuna",
    }
    outcome = tune(Search.from_dict(searched))
    ledger = Ledger.open(outcome.path / "ledger.sqlite")
    keys = [entry.release.key for entry in ledger.entries()]
    assert keys == ["moments", "proxy/votes/0001", "proxy/votes/0002", "votes/0001", "votes/0002"]
    assert not (outcome.path / "tuning" / "tune").exists()  # it names machines
    assert 9.9 < ledger.spent() <= 10.0
    assert differing(outcome.path) == set()


def test_public_trials_never_open_the_private_records(
    ray_session: None, searched: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """With no private data there at all, every trial runs; only the final run misses them."""
    searched["private"]["data"] = "/nowhere"
    searched["schedule"] |= {"iterations": 1, "degrees": 0.5}
    public = {"data": "sklearn:digits", "labels": STAND_IN}
    objective = {"kind": "public", "mode": "max", "metric": {"kind": "classifier"}}
    searched["tuning"] |= {
        "strategy": "public",
        "public_data": public,
        "objective": objective | {"reference": public},
        "num_trials": 1,
    }
    with pytest.raises(InputError, match=r"private.data: /nowhere does not exist"):
        tune(Search.from_dict(searched))
    assert not capsys.readouterr().out  # where `tune --json` prints JSON alone
    result = json.loads((final(searched) / "tuning" / "result.json").read_bytes())
    assert all(trial["state"] == "complete" for trial in result["trials"])
    assert Ledger.open(final(searched) / "ledger.sqlite").entries() == ()
    searched["private"]["data"] = "sklearn:digits"
    with pytest.raises(InputError, match="these are the private records"):
        Search.from_dict(searched)
    for private, public in (("/data", "/data/./train"), ("/data/all.parquet", "/data")):
        searched["private"]["data"] = private
        searched["tuning"]["public_data"]["data"] = public
        with pytest.raises(InputError, match="these are the private records"):
            Search.from_dict(searched)


def test_why_private_records_cannot_be_used_is_not_kept(
    searched: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = "private.data: shard 3, row 17: no image"
    withheld = "the private records can't be used with these settings"
    for fault, charged, reason in (
        (kept, True, withheld),
        (kept, False, kept),
        ("embedder.weights: no such file", True, "embedder.weights: no such file"),
    ):

        def fail(*_: Any, fault: str = fault) -> Iterator[dict[str, Any]]:
            raise InputError(fault)
            yield {}

        monkeypatch.setattr(trial, "run_trial", fail)
        ledger = tmp_path / "ledger.sqlite" if charged else None
        job = Job(search=Search.from_dict(searched), folder=tmp_path, ledger=ledger)
        report = TrialActor(job, {"votes.neighbors": 1}).step()
        assert (report["state"], report["reason"]) == ("failed", reason)


@pytest.mark.slow
@pytest.mark.parametrize("blow", ["all are killed", "Ctrl-C", "the trial is killed"])
def test_stopped_it_is_restored_without_paying_twice(
    searched: dict[str, Any], tmp_path: Path, blow: str
) -> None:
    searched["schedule"] |= {"iterations": 6, "degrees": 0.3}  # long enough to be hit midway
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

    for wanted in (2, 9):  # in the first trial, then in the second
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        while watch() < wanted and process.poll() is None:
            time.sleep(0.1)
        if blow == "all are killed":
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            continue
        if blow == "Ctrl-C":
            process.send_signal(signal.SIGINT)
        else:
            for child in psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):  # it has ended by itself
                    if "TrialActor" in " ".join(child.cmdline()):
                        child.kill()
        assert process.wait() in (0, 1)  # 0: the blow came too late to be felt
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    watch()
    trials = {key.split("/")[1] for key in seen if key.startswith("trial/")}
    result = json.loads((final(searched) / "tuning" / "result.json").read_bytes())
    assert len(trials) == len(result["trials"]) == 2  # none was dropped, or charged for nothing
    assert all(trial["state"] == "complete" for trial in result["trials"])


@pytest.mark.slow
def test_a_canary_record_leaves_no_trace(
    ray_session: None,
    searched: dict[str, Any],
    tmp_path: Path,
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
        "space": {"votes.max_votes_per_user": [1, 2]},
        "objective": {"kind": "moments", "dim": 2},
        "num_trials": 2,
    }
    outcome = tune(Search.from_dict(searched))
    out, err = capfd.readouterr()
    written = [path.read_bytes() for path in outcome.path.rglob("*") if path.is_file()]
    assert len(written) > 10
    for text in (*written, out.encode(), err.encode()):
        assert canary.encode() not in text
        assert pixels[7].tobytes() not in text
        assert images[7] not in text


def _read_json(file: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(file.read_bytes())
    return read


def test_a_search_that_was_stopped_shows_its_trials_and_the_best(
    searched: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    searched["tuning"]["objective"] = {
        "kind": "public",
        "metric": "classifier",
        "mode": "max",
        "reference": {"data": "/public", "labels": searched["private"]["labels"]},
    }
    search, output = Search.from_dict(searched), final(searched)
    assert cli.main(["status", str(output)]) == 2
    folder = output / "tuning"
    budget, accounting = search.config.privacy.budget, accounting_of(search)
    output.mkdir()
    Ledger.create(output / "ledger.sqlite", budget, search.fingerprint, accounting)
    atomic_write(folder / "config.yaml", dump_tree(search.values()).encode())
    for number, (state, scores) in enumerate(
        [("complete", {"2": 0.5}), ("complete", {"2": 0.75}), ("begun", {})]
    ):
        report = {"settings": {"votes.neighbors": number}, "state": state, "scores": scores}
        note_trial(folder / "trials" / str(number), report)
    capsys.readouterr()
    assert cli.main(["status", str(output), "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)["search"]
    assert seen["better"] == "higher"
    assert [trial["state"] for trial in seen["trials"]] == ["complete", "complete", "stopped"]
    assert seen["best"]["settings"] == {"votes.neighbors": 1}
    assert seen["spent"]["epsilon"] == 0
    assert cli.main(["status", str(output)]) == 0
    assert "higher is better" in capsys.readouterr().out
