"""Strategy `select`: the best of a random number of runs; only that one ever leaves.

K and every run's settings are drawn from the operating system's entropy and kept, with the runs
themselves, in the private folder (mode 0700), never in what may be published. When the best run's
releases are in the ledger, all of it is destroyed. Ray Tune, which records every trial, isn't used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path
from random import Random, SystemRandom
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import ActorDiedError

from pe_ray.config import Config
from pe_ray.errors import FaultError, InputError
from pe_ray.files.storage import atomic_write
from pe_ray.release.door import private_folder
from pe_ray.release.ledger import Ledger
from pe_ray.release.selection import Selection, calibrate_selection
from pe_ray.runtime.run_directory import on_disk
from pe_ray.tuning.budget import shared_releases, trial_shape
from pe_ray.tuning.search_config import Range, Search
from pe_ray.tuning.space import (
    MOST_COMBINATIONS,
    combinations,
    draw_in_secret,
    ends,
    with_settings,
)
from pe_ray.tuning.trial import Job, start_trial, this_node
from pe_ray.values import Release

logger = logging.getLogger(__name__)

_STATE = "state.json"


def planned_selection(search: Search) -> Selection:
    """The selection that the budget pays for; InputError where it can't pay for any."""
    privacy = search.config.privacy
    return calibrate_selection(
        _shapes(search),
        search.tuning.repetitions.repetitions,
        shared_releases(search),
        privacy.epsilon,
        privacy.delta,
    )


def _shapes(search: Search) -> list[tuple[Release, ...]]:
    """Relative releases of each plan that a run may have, without repeats."""
    values = {key: ends(domain) for key, domain in search.tuning.space.items()}
    if np.prod([float(len(some)) for some in values.values()]) > MOST_COMBINATIONS:
        raise InputError(
            f"tuning.space: select takes at most {MOST_COMBINATIONS} combinations of choices"
        )
    found: dict[tuple[Release, ...], None] = {}
    for settings in combinations(values):
        found[_shape(search, with_settings(search, settings))] = None
    ranges = [key for key, domain in search.tuning.space.items() if isinstance(domain, Range)]
    for key in ranges:
        if key.startswith(("schedule.iterations", "schedule.noise", "votes.neighbors")) or (
            key == "votes.max_votes_per_user"
        ):
            raise InputError(
                f"tuning.space.{key}: select needs a list of choices here, not a range"
            )
    return list(found)


def _shape(search: Search, config: Config) -> tuple[Release, ...]:
    return trial_shape(search, config, "")


def run_selection(job: Job, ledger: Ledger, max_concurrent: int) -> None:
    """Charge the selection, make its runs, commit the best and destroy the rest.

    Guarantee: the ledger's selection entry and the releases of one run are all that leaves, and
    `release.selection` bounds their epsilon. After a kill the runs go on where they were: the
    number of runs and their settings are drawn once, before the charge.
    """
    folder = secret_folder(job.search)
    if not ledger.selection_done():
        plans = planned_selection(job.search)
        state = _state(job.search, folder, ledger)
        for settings in state:  # before the charge: a run that can't be made would waste it
            _plan(job, plans, settings)
        ledger.reserve_selection(plans)
        best = _best(job, plans, folder, state, max_concurrent)
        trial = Ledger.open(on_disk(folder / best).ledger)
        made = [(entry.release, trial.stored(entry.release.key)) for entry in trial.entries()]
        _keep_settings(folder, best, job.folder)
        ledger.commit_selection([(release, noisy) for release, noisy in made if noisy is not None])
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        logger.warning("%s can't be removed: delete it, as what it holds must not leave", folder)


def secret_folder(search: Search) -> Path:
    """Where the runs are until the best is known: one place for one search and output."""
    name = f"{search.fingerprint}{Path(search.config.output.path).resolve()}"
    digest = hashlib.sha256(name.encode()).hexdigest()[:24]
    return private_folder(search.config) / f"selection-{digest}"


def _state(search: Search, folder: Path, ledger: Ledger) -> list[dict[str, Any]]:
    """Settings of all runs, drawn once and kept."""
    file = folder / _STATE
    if file.exists():
        kept: list[dict[str, Any]] = json.loads(file.read_bytes())
        return kept
    if ledger.selection() is not None:
        raise InputError(
            f"tuning: the selection was charged, but {folder} with its runs is gone; restore it, "
            "or give another output.path (a new search spends anew)"
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    drawn = [
        draw_in_secret(search, _system_random())
        for _ in range(search.tuning.repetitions.repetitions.draw())
    ]
    atomic_write(file, json.dumps(drawn).encode())
    return drawn


def _system_random() -> Random:
    return SystemRandom()


def _best(
    job: Job, selection: Selection, folder: Path, state: list[dict[str, Any]], max_concurrent: int
) -> str:
    """Name of the best run. Says nothing of how many there are or how they score."""
    if not state:
        raise InputError(
            "tuning.repetitions: Poisson drew no run at all, which is part of its guarantee: there "
            "is no result, and the budget is spent; give another output.path to spend anew"
        )
    waiting = [(f"{number:05d}", settings) for number, settings in enumerate(state)]
    running: dict[Any, tuple[str, Any]] = {}
    scores: list[tuple[float, str, str]] = []
    node = this_node()
    while waiting or running:
        while waiting and len(running) < max_concurrent:
            name, settings = waiting.pop(0)
            plan = _plan(job, selection, settings)
            actor = start_trial(node, job, settings, folder / name, plan)
            running[actor.step.remote()] = (name, actor)
        done, _ = ray.wait(list(running))
        name, actor = running.pop(done[0])
        report = _step(done[0])
        if report is None or "score" not in report:
            raise InputError(
                f"tuning: a run of the selection failed: {(report or {}).get('failed')}"
            )
        if _step(actor.step.remote()) is None:  # the final set is written after the last report
            sign = 1.0 if job.search.tuning.mode == "min" else -1.0
            scores.append((sign * report["score"], _content(folder / name), name))
    return min(scores)[2]


def _step(report: ray.ObjectRef) -> Any:
    try:
        return ray.get(report)
    except ActorDiedError:
        raise FaultError("tuning: the process of a run of the selection died") from None


def _plan(job: Job, selection: Selection, settings: dict[str, Any]) -> tuple[Release, ...]:
    """The one of the selection's plans that these settings make."""
    shape = _shape(job.search, with_settings(job.search, settings))
    for plan in selection.plans:
        if [_kind(r) for r in plan] == [_kind(r) for r in shape]:
            ratios = [p.sigma / s.sigma for p, s in zip(plan, shape, strict=True)]
            if max(ratios) < 1.0001 * min(ratios):  # sigmas are rounded to 6 digits
                return plan
    raise InputError("tuning.space: these settings make releases that were not charged")


def _kind(release: Release) -> tuple[Any, ...]:
    return (release.key, release.kind, release.iteration, release.votes_per_unit)


def _content(folder: Path) -> str:
    """Digest of a run's releases: a total order among equal scores, as the theorem needs one."""
    ledger = Ledger.open(on_disk(folder).ledger)
    digest = hashlib.sha256((folder / "trial.json").read_bytes())
    for entry in ledger.entries():
        stored: NDArray[np.int64] | None = ledger.stored(entry.release.key)
        digest.update(b"" if stored is None else stored.tobytes())
    return digest.hexdigest()


def _keep_settings(secret: Path, best: str, public: Path) -> None:
    """The best run's settings and score, which are part of what leaves."""
    public.mkdir(parents=True, exist_ok=True)
    record = json.loads((secret / best / "trial.json").read_bytes())
    atomic_write(public / "best" / "trial.json", json.dumps(record).encode())
