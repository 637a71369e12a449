"""Strategy select: one run is let out, and nothing is left of the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_search import final

from pe_ray import InputError
from pe_ray.files.parts import manifest_of
from pe_ray.release.ledger import Ledger
from pe_ray.tuning.private_selection import secret_folder
from pe_ray.tuning.search_config import search_of
from pe_ray.tuning.strategies import tune
from pe_ray.tuning.trial import Job


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
