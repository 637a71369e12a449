"""One trial: a run of Private Evolution with its settings, scored, one iteration at a time.

A trial is named by its settings and its releases by the trial, so a trial that starts over (after
a kill, or because the search proposes the same settings again) gets the stored releases back:
nothing is paid twice, and no second answer is drawn.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pe_ray.config import Config
from pe_ray.config.blocks import PrivateConfig
from pe_ray.errors import BudgetError, InputError
from pe_ray.evolution import iterate
from pe_ray.files.storage import atomic_write
from pe_ray.planning import plan_releases
from pe_ray.release.adaptive import with_mu
from pe_ray.release.door import Door
from pe_ray.release.ledger import Ledger
from pe_ray.release.releases import LabelCounts, Votes, shape_releases, votes_limit
from pe_ray.runtime.run_directory import lock_directory, on_disk, write_config
from pe_ray.synthetic.learnt_embedder import prepare_run
from pe_ray.tuning.budget import accounting_of, final_mu, trial_mu
from pe_ray.tuning.objectives import Scorer
from pe_ray.tuning.search_config import Search
from pe_ray.tuning.space import Settings, trial_id, with_settings
from pe_ray.values import Budget, Release

logger = logging.getLogger(__name__)

RECORD = "trial.json"
STAND_IN = "stand-in.sqlite"
"""Ledger of votes of public or already private records: they cost nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What all trials of a search have in common.

    folder: of the trials; ledger: charged for every release, None where trials vote with a
    stand-in; source: that stand-in, where it isn't the trial's own `private` block; fractions: of
    labels, where they were released; moments: released values; workers: generator workers.
    """

    search: Search
    folder: Path
    ledger: Path | None
    source: PrivateConfig | None = None
    fractions: tuple[float, ...] | None = None
    moments: NDArray[np.float64] | None = None
    workers: int | None = None


def final_config(search: Search, settings: Settings, fractions: tuple[float, ...] | None) -> Config:
    """The configuration of the final run."""
    config = with_settings(search, settings)
    if fractions is not None:
        privacy = config.privacy.model_copy(update={"label_fractions": fractions})
        config = config.model_copy(update={"privacy": privacy})
    return config


def trial_config(job: Job, settings: Settings) -> Config:
    """The configuration of a trial; with the stand-in's records and labels for `public`.

    Scored by the objective alone (a stand-in may be what the final run is compared with), and
    without the teacher, which relabels the final set and is released once.
    """
    config = final_config(job.search, settings, job.fractions)
    metrics = config.metrics.model_copy(update={"public": None})
    config = config.model_copy(update={"metrics": metrics, "teacher": None})
    stand_in = job.search.tuning.public_data
    if job.search.tuning.strategy == "public" and stand_in is not None:
        privacy = config.privacy
        fractions = privacy.label_fractions
        if isinstance(fractions, tuple) and len(fractions) != len(stand_in.labels):
            fractions = "uniform"
        config = config.model_copy(
            update={
                "private": stand_in,
                "privacy": privacy.model_copy(
                    update={
                        "unit": privacy.unit if stand_in.user_column else "record",
                        "label_fractions": fractions,
                    }
                ),
            }
        )
        config = Config.from_dict(config.model_dump(mode="json"))
    output = config.output.model_copy(update={"path": str(job.folder / trial_id(settings))})
    resources = config.resources.model_copy(
        update={"workers": config.resources.workers or job.workers}
    )
    return config.model_copy(update={"output": output, "resources": resources})


def trial_releases(job: Job, config: Config, prefix: str) -> tuple[Release, ...]:
    """Every release of a trial. Where trials are free, their votes have the final run's noise."""
    search = job.search
    if search.tuning.strategy not in ("public", "proxy"):
        return with_mu(Votes.plan(config, prefix), trial_mu(search))
    privacy = config.privacy.model_copy(update={"unit": search.config.privacy.unit})
    final = config.model_copy(update={"teacher": search.config.teacher, "privacy": privacy})
    releases = (
        plan_releases(final)
        if accounting_of(search) == "fixed"
        else with_mu(shape_releases(final, prefix, label_counts=False), final_mu(search))
    )
    # A stand-in without users votes as records do.
    ones = {"votes": votes_limit(config), "label_counts": LabelCounts.limit(config)}
    return tuple(replace(r, votes_per_unit=ones[r.kind]) for r in releases if r.kind != "sums")


def run_trial(job: Job, settings: Settings) -> Iterator[dict[str, Any]]:
    """Report {iteration, score} after each iteration that is scored, the last one's with `done`.

    Guarantee: private records are asked nothing but the releases of `trial_releases`, each through
    the aggregator of a ledger.
    """
    config = trial_config(job, settings)
    prefix = f"trial/{trial_id(settings)}/" if job.ledger else ""
    releases = trial_releases(job, config, prefix)
    run = on_disk(config.output.path)
    with lock_directory(run, wait=True):
        if job.ledger:
            ledger = Ledger.open(job.ledger)
        else:
            path = run.ledger.with_name(STAND_IN)
            budget = Budget(epsilon=float("inf"), delta=config.privacy.delta, unit="record")
            ledger = Ledger.create(path, budget, config.fingerprint)
        write_config(run, config)
        made = prepare_run(config, run)
        door = Door(made, ledger, releases, source=job.source, prefix=prefix)
        scorer = Scorer(job.search, config, job.moments)
        record: dict[str, Any] = {"settings": dict(settings), "scores": {}, "state": "running"}
        last = config.schedule.iterations
        for population in iterate(made, door):
            number = population.iteration
            scored = number == last or job.search.tuning.scheduler == "asha"
            if number == 0 or not scored:
                continue
            score = scorer.score(population)
            if math.isnan(score):  # the best must not depend on the order that trials end in
                score = math.inf if job.search.tuning.mode == "min" else -math.inf
            record["scores"][str(number)] = score
            record["state"] = "complete" if number == last else "running"
            atomic_write(run.path / RECORD, json.dumps(record).encode())
            yield {"iteration": number, "score": score, "done": number == last}


class TrialActor:
    """A trial that goes on only when asked, so that one that is stopped charges nothing further."""

    def __init__(self, *arguments: Any) -> None:
        self._reports = run_trial(*arguments)

    def step(self) -> dict[str, Any] | None:
        """The next report, None after the last. Errors that a user can act on are reported as
        {refused} (the budget is spent) or {failed}: no exception of another process's passes on.
        """
        try:
            return next(self._reports, None)
        except InputError as error:
            text = " ".join(str(getattr(error, "cause", error)).split())
            return {"refused" if isinstance(error, BudgetError) else "failed": text}


def this_node() -> str:
    """Where this process is, and the ledger with it."""
    node: str = ray.get_runtime_context().get_node_id()
    return node


def start_trial(node: str, *arguments: Any) -> Any:
    """A TrialActor on `node`, where the ledger is.

    It holds no CPU and no place in a placement group, so its stages can't wait for room that it
    takes itself.
    """
    here = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(TrialActor).options(num_cpus=0, scheduling_strategy=here).remote(*arguments)
