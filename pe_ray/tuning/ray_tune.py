"""Ray Tune runs the trials of a search: it proposes settings, stops trials early, restores.

Its result files and TensorBoard hold settings and scores, all of them public or released.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import PlacementGroupFactory, RunConfig, Stopper, TuneConfig, Tuner
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pe_ray.errors import FaultError
from pe_ray.tuning.search import Range, Search
from pe_ray.tuning.space import distinct_points, ray_space, settings_of, trial_id
from pe_ray.tuning.trial import Job, TrialActor

logger = logging.getLogger(__name__)

_NAME = "trials"


class Trial(tune.Trainable):  # type: ignore[misc]
    """One trial for Ray Tune: each step is one report of a TrialActor.

    The actor runs on `node`, where the ledger is. It is in no placement group, unlike this, so its
    stages can use all of the cluster.

    Its state is on disk and in the ledger, so a checkpoint holds nothing. A trial that starts over
    replays its iterations from there.
    """

    def setup(self, config: dict[str, Any], job: Job, node: str) -> None:
        here = NodeAffinitySchedulingStrategy(node, soft=False)
        actor = ray.remote(TrialActor).options(num_cpus=0, scheduling_strategy=here)
        self._actor = actor.remote(job, settings_of(job.search, config))

    def step(self) -> dict[str, Any]:
        report: dict[str, Any] = ray.get(self._actor.step.remote())
        return report

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
        iteration, settings = result.get("iteration", 0), json.dumps(result["settings"])
        logger.info("trial %s: score %.6g in iteration %d", settings, result["score"], iteration)
        self._refused |= result["state"] == "refused"
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


def run_trials(job: Job, folder: Path) -> list[dict[str, Any]]:
    """Run or restore the trials until none is left or affordable; return their last reports.

    folder: Ray Tune's files, which are unpickled. Raises FaultError where a trial was cut off,
    because its process died for example: the next start continues that trial.
    """
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "2")
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # it would take Ctrl-C for a search's end
    node = ray.get_runtime_context().get_node_id()
    # A trial waits for its actor and takes no CPU from the stages; Ray Tune wants something taken.
    place = PlacementGroupFactory([{f"node:{ray.util.get_node_ip_address()}": 0.0001}])
    trainable = tune.with_resources(tune.with_parameters(Trial, job=job, node=node), place)
    experiment = str(folder / _NAME)
    if Tuner.can_restore(experiment):
        logger.info("continuing the search in %s", experiment)
        tuner = Tuner.restore(experiment, trainable, restart_errored=True)
    else:
        tuner = _make_tuner(trainable, job.search, folder)
    # Ray Tune prints tables even where `verbose` is 0, and `tune --json` prints JSON alone.
    with _note_signals(), redirect_stdout(sys.stderr):
        results = tuner.fit()
    cut_off = len(results) - results.num_terminated
    if cut_off:
        why = sorted({type(getattr(e, "cause", None) or e).__name__ for e in results.errors})
        raise FaultError(
            f"tuning: {cut_off} of {len(results)} trials cut off ({', '.join(why) or 'stopped'})"
        )
    kept = ("settings", "scores", "state", "reason")
    found = [
        {key: result.metrics[key] for key in kept if key in result.metrics}
        for result in results
        if result.metrics and "state" in result.metrics  # else it was never begun
    ]
    by_settings = {trial_id(report["settings"]): report for report in found}
    return [by_settings[name] for name in sorted(by_settings)]


def _make_tuner(trainable: Any, search: Search, folder: Path) -> Tuner:
    tuning, points = search.tuning, None
    if tuning.search == "random":
        points = distinct_points(search)
        searcher = BasicVariantGenerator(
            points_to_evaluate=points,
            max_concurrent=tuning.max_concurrent,
            random_state=tuning.seed,
        )
    else:
        searcher = ConcurrencyLimiter(OptunaSearch(seed=tuning.seed), tuning.max_concurrent)
    return Tuner(
        trainable,
        param_space=ray_space(search),
        tune_config=TuneConfig(
            metric="score",
            mode=search.objective.mode,
            num_samples=tuning.num_trials if points is None else len(points),
            search_alg=searcher,
            scheduler=_make_scheduler(search),
        ),
        run_config=RunConfig(name=_NAME, storage_path=str(folder), stop=_UntilRefused(), verbose=0),
    )


def _make_scheduler(search: Search) -> TrialScheduler | None:
    if search.tuning.scheduler == "none":
        return None
    own = (search.config.schedule.iterations,)
    domain = search.tuning.space.get("schedule.iterations", own)
    longest = int(domain.high if isinstance(domain, Range) else max(domain))
    return ASHAScheduler(time_attr="iteration", max_t=longest, grace_period=1, reduction_factor=2)
