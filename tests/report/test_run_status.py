"""`pe-ray status` of a run that is in progress, stopped and finished."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pe_ray import Config, InputError, Run, cli
from pe_ray.evolution import evolve
from pe_ray.files.parts import MANIFEST
from pe_ray.release.ledger_sql import begin
from pe_ray.report.run_status import read_status
from pe_ray.runtime.run_directory import claim_directory


def read(run: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert cli.main(["status", run, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_run_that_is_finished_stopped_and_running(
    ray_session: None, tree: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config.from_dict(tree)
    run = evolve(config)
    seen = read(str(run), capsys)
    assert seen["state"] == "finished"
    assert {stage["state"] for stage in seen["stages"]} == {"done"}
    assert seen["left"] == {"rows": 0, "releases": 0}
    assert 0.9 < seen["spent"]["epsilon"] <= seen["budget_epsilon"] == 1.0
    # As after a kill in the middle of S_2: votes released, some parts made.
    shutil.rmtree(run / "synthetic")
    (run / "populations" / "iter=0002" / MANIFEST).unlink()
    parts = sorted((run / "populations" / "iter=0002").glob("part-*"))
    parts[-1].unlink()
    seen = read(str(run), capsys)
    assert seen["state"] == "stopped"
    now = [stage for stage in seen["stages"] if stage["state"] == "stopped"]
    assert now == [
        {"stage": "population", "iteration": 2, "state": "stopped", "rows": 40, "rows_done": 34}
    ]
    assert seen["left"] == {"rows": 6 + 40, "releases": 0}
    assert cli.main(["status", str(run)]) == 0
    text = capsys.readouterr().out
    assert "stopped     population 2 34 of 40 rows" in text
    assert "continue" in text
    with claim_directory(config):
        assert read_status(run)["state"] == "running"
    # As before the second release: status says only that the votes come next.
    with begin(run / "ledger.sqlite") as database:
        database.execute("DELETE FROM releases WHERE key = 'votes/0002'")
    seen = read(str(run), capsys)
    assert seen["left"]["releases"] == 1
    assert seen["spent"]["epsilon"] < 0.9
    assert [(s["stage"], s["iteration"]) for s in seen["stages"] if s["state"] == "stopped"] == [
        ("votes", 2)
    ]
    (votes,) = [s for s in seen["stages"] if s["stage"] == "votes" and s["iteration"] == 2]
    assert votes["rows"] is votes["rows_done"] is None


def test_a_teachers_release_is_a_stage_and_the_final_set_has_what_it_keeps(
    ray_session: None, short: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    whitened = {"kind": "pixels", "size": 4, "whiten": {"data": "population"}}
    short["teacher"] = {"share": 0.5, "features": 4, "embedder": whitened, "keep": 20}
    config = Config.from_dict(short)
    run = evolve(config)
    seen = read(str(run), capsys)
    assert seen["state"] == "finished"
    assert [s["state"] for s in seen["stages"] if s["stage"] == "teacher"] == ["done"]
    num_final = len(Run.open(run).synthetic.to_numpy()[1])
    assert num_final <= 20
    assert seen["stages"][-1] == {
        "stage": "final_set",
        "iteration": None,
        "state": "done",
        "rows": num_final,
        "rows_done": num_final,
    }
    with begin(run / "ledger.sqlite") as database:
        database.execute("DELETE FROM releases WHERE key = 'teacher'")
    seen = read(str(run), capsys)
    assert seen["left"]["releases"] == 1
    assert seen["state"] == "stopped"
    shutil.rmtree(run / "synthetic")
    assert read(str(run), capsys)["left"]["rows"] == 20


def test_status_never_makes_a_start_fail(
    ray_session: None, tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`status` holds the lock for a moment; a start waits for it, but not for another run."""
    import fcntl
    import os
    import threading
    import time

    config = Config.from_dict(tree)
    run = Path(config.output.path)
    run.mkdir()
    lock = os.open(run / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_SH)
    threading.Timer(0.2, os.close, [lock]).start()
    with claim_directory(config):
        started = time.monotonic()
        with pytest.raises(InputError, match=r"^output.path: "), claim_directory(config):
            pass
        assert time.monotonic() - started < 10


def test_no_run_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", str(tmp_path)]) == 2
    assert f"run {tmp_path}: " in capsys.readouterr().err
