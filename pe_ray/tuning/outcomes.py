"""How trials ended: the best of them, and how far a search is.

Needs no Ray. Everything here is settings and scores by public or released values, which are part
of what a search publishes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pe_ray.config.yaml_tree import read_stored
from pe_ray.errors import InputError
from pe_ray.files.storage import Location, atomic_write, resolve_place
from pe_ray.plugins import only_known
from pe_ray.release.ledger import Ledger
from pe_ray.runtime.run_directory import find_ledger, in_use, on_disk
from pe_ray.tuning.search import Mode, Search

Report = dict[str, Any]
"""settings, scores by iteration, state, and the reason of a state that needs one."""

_REPORT = "trial.json"


def note_trial(folder: Path, report: Report) -> None:
    """Write how far a trial is into its folder."""
    atomic_write(folder / _REPORT, json.dumps(report).encode())


def choose_best(found: list[Report], mode: Mode) -> Report:
    """Return the best complete trial; without one, the best of those that came furthest."""
    scored = [report for report in found if report["scores"]]
    if not scored:
        reasons = sorted({report["reason"] for report in found if "reason" in report})
        raise InputError(f"tuning: no trial has a score: {'; '.join(reasons) or 'none was made'}")

    def rank(report: Report) -> tuple[Any, ...]:
        last = max(map(int, report["scores"]))
        score = report["scores"][str(last)]
        behind = 0 if report["state"] == "complete" else 1
        settings = json.dumps(report["settings"], sort_keys=True)
        return (behind, -last * behind, score if mode == "min" else -score, settings)

    return min(scored, key=rank)


def read_search(path: str | Location) -> dict[str, Any] | None:
    """Return what `status --json` prints of the search in `path`; None where it shows none.

    state: finished once its final run is complete. best: of the trials so far, None before the
    first score.
    """
    place = resolve_place(path, "run")
    folder = place / "tuning"
    if not isinstance(folder, Path) or not (folder / "config.yaml").exists():
        return None
    finished = (folder.parent / "config.yaml").exists()
    try:
        with only_known():
            search = Search.from_dict(read_stored(folder / "config.yaml"))
    except InputError:
        if not finished:
            raise
        return None  # of a former version, or with others' plugins; its result is a run
    ledger, result = Ledger.open(find_ledger(path)), folder / "result.json"
    running = bool(in_use(on_disk(folder.parent)))
    if result.exists():
        trials = json.loads(result.read_bytes())["trials"]
    else:
        files = sorted((folder / "trials").glob(f"*/{_REPORT}"))
        trials = [json.loads(file.read_bytes()) for file in files]
        for report in trials:
            if report["state"] != "complete":
                report["state"] = "running" if running else "stopped"
    objective, budget = search.objective, ledger.budget
    return {
        "state": "finished" if finished else "running" if running else "stopped",
        "strategy": search.tuning.strategy.kind,
        "num_trials": search.tuning.num_trials,
        "better": objective.better,
        "trials": trials,
        "best": choose_best(trials, objective.mode) if any(r["scores"] for r in trials) else None,
        "spent": {"epsilon": ledger.spent(), "delta": budget.delta, "unit": budget.unit},
        "budget_epsilon": budget.epsilon,
    }


def describe_trial(report: Report, better: str) -> str:
    """Return a trial in a line of words."""
    scores = report["scores"]
    found = f"{scores[max(scores, key=int)]:.6g} ({better} is better)" if scores else "none yet"
    return f"{report['state']:<9} score {found}, {json.dumps(report['settings'])}"
