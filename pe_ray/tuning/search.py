"""Ray Tune runs the trials of `public`, `proxy` and `compose`: search, early stopping, restoring.

Its result files, tables and TensorBoard hold settings and scores, all of them public or released.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import CLIReporter, PlacementGroupFactory, RunConfig, Stopper, TuneConfig, Tuner
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, SearchAlgorithm, Searcher
from ray.tune.search.optuna import OptunaSearch

from pe_ray.errors import FaultError, InputError
from pe_ray.files.storage import atomic_write
from pe_ray.tuning.search_config import Search
from pe_ray.tuning.space import distinct_points, ends, ray_space, settings_of, trial_id
from pe_ray.tuning.trial import RECORD, Job, start_trial, this_node

logger = logging.getLogger(__name__)

_NAME = "search"
_CPU = 0.01  # Ray Tune refuses 0; a whole CPU would be missing to the trial's own stages


class _UntilRefused(Stopper):  # type: ignore[misc]
    """Ends the search when the ledger has refused a trial: others would be refused as well."""

    def __init__(self) -> None:
        self._refused = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self._refused |= bool(result.get("refused"))
        return False

    def stop_all(self) -> bool:
        return self._refused or bool(_stopped)


def _trainable(chosen: dict[str, Any], job: Job, node: str) -> None:
    """One trial for Ray Tune; `tune.report` returns only if the trial may go on."""
    settings = settings_of(job.search, chosen)
    actor = start_trial(node, job, settings)
    worst = float("inf") if job.search.tuning.mode == "min" else float("-inf")
    score = worst
    while True:
        report = ray.get(actor.step.remote())
        if report is None:
            return
        if "score" not in report:
            _note(job, settings, report)
            tune.report({"score": score, "refused": "refused" in report, "failed": True})
            return
        score = report["score"]
        tune.report({"score": score, "iteration": report["iteration"], "refused": False})


_stopped: list[int] = []
"""Signals that asked this process to stop during a search."""


@contextmanager
def _stop_noted() -> Iterator[None]:
    """A KeyboardInterrupt from Ctrl-C or SIGTERM, even where it is raised in a callback of Ray's
    that swallows it.
    """

    def stop(number: int, frame: object) -> None:
        _stopped.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {kind: signal.signal(kind, stop) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
        if _stopped:
            raise KeyboardInterrupt
    finally:
        _stopped.clear()
        for kind, handler in before.items():
            signal.signal(kind, handler)


_WITHHELD = "the private records can't be used with these settings"


def _note(job: Job, settings: dict[str, Any], report: dict[str, Any]) -> None:
    """Keep why a trial ended early beside what it had.

    Guarantee: what depends on private records is not kept. Each such error begins with the
    `private` block's key to mend (see private.records.open_records).
    """
    file = job.folder / trial_id(settings) / RECORD
    record: dict[str, Any] = {"settings": settings, "scores": {}}
    if file.exists():
        record = json.loads(file.read_bytes())
    state, reason = next(iter(report.items()))
    if job.ledger is not None and reason.startswith("private"):
        reason = _WITHHELD
    atomic_write(file, json.dumps(record | {"state": state, "reason": reason}).encode())


def run_search(job: Job, folder: Path, max_concurrent: int) -> None:
    """Run or restore the search in `folder`; returns when no trial is left or affordable.

    FaultError where a trial was cut off (its process died, say): the next start goes on with it.
    """
    search = job.search
    if ray.cluster_resources().get("CPU", 0.0) < 2:
        raise InputError("resources.num_cpus: a search on this cluster needs at least 2 CPUs")
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "2")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # it would take Ctrl-C for a search's end
    trainable = tune.with_resources(
        tune.with_parameters(_trainable, job=job, node=this_node()),
        PlacementGroupFactory([{"CPU": _CPU}]),
    )
    place = folder / _NAME
    if Tuner.can_restore(str(place)):
        logger.info("going on with the search in %s", place)
        tuner = Tuner.restore(str(place), trainable, restart_errored=True)
    else:
        tuner = Tuner(
            trainable,
            param_space=None if search.tuning.search == "optuna" else ray_space(search),
            tune_config=TuneConfig(
                metric="score",
                mode=search.tuning.mode,
                num_samples=_num_trials(search),
                search_alg=_search_algorithm(search, max_concurrent),
                scheduler=_scheduler(search),
                trial_name_creator=_name_of(search),
                trial_dirname_creator=_name_of(search),
            ),
            run_config=RunConfig(
                name=_NAME,
                storage_path=str(folder),
                stop=_UntilRefused(),
                verbose=1,
                progress_reporter=CLIReporter(
                    metric_columns=["score", "iteration"],
                    parameter_columns=list(search.tuning.space),
                    max_report_frequency=30,
                ),
            ),
        )
    with _stop_noted():
        results = tuner.fit()
    cut_off = len(results) - results.num_terminated
    if cut_off:
        why = sorted({type(getattr(e, "cause", None) or e).__name__ for e in results.errors})
        raise FaultError(
            f"tuning: {cut_off} of {len(results)} trials cut off ({', '.join(why) or 'stopped'})"
        )


def _name_of(search: Search) -> Any:
    def name(trial: Any) -> str:
        return f"{trial_id(settings_of(search, trial.config))}-{trial.trial_id}"

    return name


def _search_algorithm(search: Search, max_concurrent: int) -> SearchAlgorithm | Searcher:
    seed, mode = search.tuning.seed, search.tuning.mode
    if search.tuning.search == "random":
        return BasicVariantGenerator(
            points_to_evaluate=distinct_points(search),
            max_concurrent=max_concurrent,
            random_state=seed,
        )
    searcher = OptunaSearch(space=ray_space(search), metric="score", mode=mode, seed=seed)
    return ConcurrencyLimiter(searcher, max_concurrent=max_concurrent)


def _num_trials(search: Search) -> int:
    """As many as asked for, or as there are combinations to try at random."""
    points = distinct_points(search) if search.tuning.search == "random" else None
    return search.tuning.num_trials if points is None else len(points)


def _scheduler(search: Search) -> TrialScheduler | None:
    if search.tuning.scheduler == "none":
        return None
    longest = search.config.schedule.iterations
    if "schedule.iterations" in search.tuning.space:
        longest = max(int(n) for n in ends(search.tuning.space["schedule.iterations"]))
    return ASHAScheduler(
        time_attr="iteration", max_t=max(longest, 1), grace_period=1, reduction_factor=2
    )


def records(folder: Path) -> list[dict[str, Any]]:
    """What every trial has left behind: settings, scores by iteration, state."""
    return [json.loads(file.read_bytes()) for file in sorted(folder.glob(f"*/{RECORD}"))]


def best_of(found: list[dict[str, Any]], mode: str) -> dict[str, Any]:
    """The best complete trial; without one, the best of those that came furthest."""
    scored = [record for record in found if record["scores"]]
    if not scored:
        reasons = sorted({record["reason"] for record in found if "reason" in record})
        raise InputError(f"tuning: no trial has a score: {'; '.join(reasons) or 'none was made'}")

    def rank(record: dict[str, Any]) -> tuple[Any, ...]:
        last = max(map(int, record["scores"]))
        score = record["scores"][str(last)]
        behind = 0 if record["state"] == "complete" else 1
        settings = json.dumps(record["settings"], sort_keys=True)
        return (behind, -last * behind, score if mode == "min" else -score, settings)

    return min(scored, key=rank)
