"""Ray Tune runs the trials of a search: it proposes settings, stops trials early, restores.

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
from pe_ray.tuning.search import Search
from pe_ray.tuning.space import distinct_points, ends, ray_space, settings_of, trial_id
from pe_ray.tuning.trial import RECORD, Job, note_end, start_trial, worst_score

logger = logging.getLogger(__name__)

_NAME = "search"
_CPU = 0.01  # Ray Tune refuses 0; a whole CPU would be missing to the trial's own stages


class Trial(tune.Trainable):  # type: ignore[misc]
    """One trial for Ray Tune: each step is one report of a TrialActor.

    Its state is on disk and in the ledger, so a checkpoint holds nothing. A trial that starts over
    replays its iterations from there.
    """

    def setup(self, config: dict[str, Any], job: Job, node: str) -> None:
        self._job, self._settings = job, settings_of(job.search, config)
        self._actor = start_trial(job, self._settings, node)
        self._score = worst_score(job.search)

    def step(self) -> dict[str, Any]:
        report: dict[str, Any] = ray.get(self._actor.step.remote())
        if "score" not in report:
            ((state, reason),) = report.items()
            note_end(self._job, self._settings, state, reason)
            return {"score": self._score, "refused": state == "refused", "done": True}
        self._score = report["score"]
        return {"refused": False, **report}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        pass

    def cleanup(self) -> None:
        ray.kill(self._actor)


class _UntilRefused(Stopper):  # type: ignore[misc]
    """Ends the search when the ledger has refused a trial: others would be refused as well."""

    def __init__(self) -> None:
        self._refused = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self._refused |= bool(result.get("refused"))
        return False

    def stop_all(self) -> bool:
        return self._refused or bool(_stopped)


_stopped: list[int] = []
"""Signals that asked this process to stop during a search."""


@contextmanager
def _note_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C or SIGTERM, even where a callback of Ray swallows it."""

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


def run_trials(job: Job, folder: Path, max_concurrent: int) -> list[dict[str, Any]]:
    """Run or restore the trials until none is left or affordable; return their records.

    folder: Ray Tune's files. Raises FaultError where a trial was cut off, because its process died
    for example: the next start continues that trial.
    """
    if ray.cluster_resources().get("CPU", 0.0) < 2:
        raise InputError("resources.num_cpus: a search on this cluster needs at least 2 CPUs")
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "2")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # it would take Ctrl-C for a search's end
    node = ray.get_runtime_context().get_node_id()
    trainable = tune.with_resources(
        tune.with_parameters(Trial, job=job, node=node), PlacementGroupFactory([{"CPU": _CPU}])
    )
    place = folder / _NAME
    if Tuner.can_restore(str(place)):
        logger.info("continuing the search in %s", place)
        tuner = Tuner.restore(str(place), trainable, restart_errored=True)
    else:
        tuner = _new_tuner(trainable, job.search, folder, max_concurrent)
    with _note_signals():
        results = tuner.fit()
    cut_off = len(results) - results.num_terminated
    if cut_off:
        why = sorted({type(getattr(e, "cause", None) or e).__name__ for e in results.errors})
        raise FaultError(
            f"tuning: {cut_off} of {len(results)} trials cut off ({', '.join(why) or 'stopped'})"
        )
    return read_records(job.folder)


def _new_tuner(trainable: Any, search: Search, folder: Path, max_concurrent: int) -> Tuner:
    def name(trial: Any) -> str:
        return f"{trial_id(settings_of(search, trial.config))}-{trial.trial_id}"

    random = search.tuning.search == "random"
    points = distinct_points(search) if random else None
    reporter = CLIReporter(
        metric_columns=["score", "iteration"],
        parameter_columns=list(search.tuning.space),
        max_report_frequency=30,
    )
    return Tuner(
        trainable,
        param_space=ray_space(search) if random else None,
        tune_config=TuneConfig(
            metric="score",
            mode=search.objective.mode,
            num_samples=search.tuning.num_trials if points is None else len(points),
            search_alg=_search_algorithm(search, points, max_concurrent),
            scheduler=_scheduler(search),
            trial_name_creator=name,
            trial_dirname_creator=name,
        ),
        run_config=RunConfig(
            name=_NAME,
            storage_path=str(folder),
            stop=_UntilRefused(),
            verbose=1,
            progress_reporter=reporter,
        ),
    )


def _search_algorithm(
    search: Search, points: list[dict[str, Any]] | None, max_concurrent: int
) -> SearchAlgorithm | Searcher:
    seed = search.tuning.seed
    if search.tuning.search == "random":
        return BasicVariantGenerator(
            points_to_evaluate=points, max_concurrent=max_concurrent, random_state=seed
        )
    mode = search.objective.mode
    searcher = OptunaSearch(space=ray_space(search), metric="score", mode=mode, seed=seed)
    return ConcurrencyLimiter(searcher, max_concurrent=max_concurrent)


def _scheduler(search: Search) -> TrialScheduler | None:
    if search.tuning.scheduler == "none":
        return None
    longest = search.config.schedule.iterations
    if "schedule.iterations" in search.tuning.space:
        longest = max(int(n) for n in ends(search.tuning.space["schedule.iterations"]))
    return ASHAScheduler(
        time_attr="iteration", max_t=max(longest, 1), grace_period=1, reduction_factor=2
    )


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Return what every trial has left behind: settings, scores by iteration, state."""
    found = [json.loads(file.read_bytes()) for file in sorted(folder.glob(f"*/{RECORD}"))]
    return [
        record | {"state": "stopped"} if record["state"] == "running" else record
        for record in found
    ]


def choose_best(found: list[dict[str, Any]], mode: str) -> dict[str, Any]:
    """Return the best complete trial; without one, the best of those that came furthest."""
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
