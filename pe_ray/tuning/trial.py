"""One trial: a run of Private Evolution with its settings, scored, one iteration at a time.

A trial is named by its settings and its releases by the trial. A trial that starts over, after a
kill or because the search proposes the same settings again, gets the stored releases back: nothing
is paid twice, and no second answer is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pe_ray.config import Config
from pe_ray.config.blocks import PrivateConfig
from pe_ray.errors import BudgetError, InputError
from pe_ray.evolution import iterate
from pe_ray.release.door import Door
from pe_ray.release.ledger import Ledger
from pe_ray.runtime.run_directory import lock_directory, on_disk, write_config
from pe_ray.synthetic.learnt_embedder import prepare_run
from pe_ray.synthetic.population_files import read_spaced_samples
from pe_ray.tuning.outcomes import note_trial
from pe_ray.tuning.search import Floats, Fractions, Search, require_public
from pe_ray.tuning.space import Settings, configure, trial_id
from pe_ray.values import Budget

_FREE_LEDGER = "stand-in.sqlite"
_MOST_IMAGES = 10_000  # of a population that are scored
_WITHHELD = "the private records can't be used with these settings"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What all trials of a search have in common.

    folder: of the trials. ledger: charged for every release; None where trials are free. source:
    whose records vote, where it isn't the trial's own `private` block. fractions: of labels, where
    they were released. sums: the objective's, where it has any.
    """

    search: Search
    folder: Path
    ledger: Path | None = None
    source: PrivateConfig | None = None
    fractions: Fractions | None = None
    sums: Floats | None = None


def trial_config(job: Job, settings: Settings) -> Config:
    """Return the configuration of a trial.

    It is scored by the objective alone, since a stand-in may be what the final run is compared
    with. It has no teacher, which is released once, in the final run.
    """
    config = configure(job.search, settings, job.fractions)
    metrics = config.metrics.model_copy(update={"public": None})
    config = config.model_copy(update={"metrics": metrics, "teacher": None})
    config = job.search.strategy.configure_trial(job.search, config)
    output = config.output.model_copy(update={"path": str(job.folder / trial_id(settings))})
    return config.model_copy(update={"output": output})


def run_trial(job: Job, settings: Settings) -> Iterator[dict[str, Any]]:
    """Report {iteration, score, scores, done} after each iteration that is scored.

    scores: those so far, by iteration.

    Guarantee: private records are asked nothing but the strategy's `trial_releases`, each through
    the aggregator of a ledger.
    """
    search, config = job.search, trial_config(job, settings)
    prefix = f"trial/{trial_id(settings)}/" if job.ledger else ""
    directory, last = on_disk(config.output.path), config.schedule.iterations
    with lock_directory(directory, wait=True):
        if job.ledger:
            ledger = Ledger.open(job.ledger)
        else:
            records = job.source or config.private
            require_public(records, "tuning.strategy", search.config.private)
            budget = Budget(epsilon=math.inf, delta=config.privacy.delta, unit="record")
            path = directory.ledger.with_name(_FREE_LEDGER)
            ledger = Ledger.create(path, budget, config.fingerprint)
        write_config(directory, config)
        report: dict[str, Any] = {"settings": dict(settings), "state": "begun", "scores": {}}
        note_trial(directory.ledger.parent, report)
        run = prepare_run(config, directory)
        releases = search.strategy.trial_releases(search, config, prefix)
        door = Door(run, ledger, releases, source=job.source, prefix=prefix)
        score_images = search.objective.make_scorer(search, config.image_shape, job.sums)
        scores: dict[str, float] = {}
        for population in iterate(run, door):
            number, done = population.iteration, population.iteration == last
            if number == 0 or not (done or search.tuning.scheduler == "asha"):
                continue
            rows = read_spaced_samples(config, population, _MOST_IMAGES)
            score = score_images(rows["image"], rows["label"])
            if math.isnan(score):  # the best must not depend on the order that trials end in
                score = _worst_score(search)
            scores = {**scores, str(number): score}
            report |= {"state": "complete" if done else "begun", "scores": scores}
            note_trial(directory.ledger.parent, report)
            yield {"iteration": number, "score": score, "scores": scores, "done": done}


def _worst_score(search: Search) -> float:
    """Return the score that no trial falls behind."""
    return math.inf if search.objective.mode == "min" else -math.inf


class TrialActor:
    """A trial that goes on only when asked, so one that is stopped charges nothing further."""

    def __init__(self, job: Job, settings: Settings) -> None:
        self._charged = job.ledger is not None
        self._reports = run_trial(job, settings)
        start = {"score": _worst_score(job.search), "scores": {}}
        self._report: dict[str, Any] = {"settings": dict(settings), "state": "stopped", **start}

    def step(self) -> dict[str, Any]:
        """Return the next report: what `run_trial` says, with `settings` and `state`.

        Errors that a user can act on end the trial: `refused`, where the budget is spent, or
        `failed`. Their `reason` is kept.

        Guarantee: no reason depends on private records. Each error that does begins with the
        `private` block's key (see private.records.open_records).
        """
        try:
            self._report |= next(self._reports)
            if self._report["done"]:
                self._report["state"] = "complete"
        except InputError as error:
            reason = " ".join(str(getattr(error, "cause", error)).split())
            if self._charged and reason.startswith("private"):
                reason = _WITHHELD
            state = "refused" if isinstance(error, BudgetError) else "failed"
            self._report |= {"state": state, "reason": reason, "done": True}
        return self._report
