"""What a search can't use ends it before anything is spent."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from pe_ray import plugins
from pe_ray.errors import InputError
from pe_ray.files.image_tables import evenly_spaced
from pe_ray.files.storage import given
from pe_ray.planning import plan_releases
from pe_ray.release.adaptive import adaptive_epsilon, with_mu
from pe_ray.release.releases import Votes, shape_releases
from pe_ray.runtime.stages import check_plugins
from pe_ray.runtime.watchdog import limited
from pe_ray.synthetic.scoring import check_reference
from pe_ray.tuning.budget import accounting_of, final_mu, proxy_mu, shared_releases
from pe_ray.tuning.objectives import chosen_score
from pe_ray.tuning.references import read_reference
from pe_ray.tuning.search_config import NO_FINAL_RUN, PublicObjective, Range, Search
from pe_ray.tuning.space import Settings, check_space, samples, with_faults_named, with_settings
from pe_ray.tuning.trial import Job, trial_config, trial_releases

_SCORED = 1000  # public images that the objective's metric is tried on


def check(search: Search) -> None:
    """Raise InputError, before anything is spent, for a search that can't be made."""
    if not isinstance(given(search.config.output.path, "output.path"), Path):
        raise InputError("output.path: a search needs a local folder; copy it from there")
    if search.config.teacher and not search.tuning.final_run:
        raise InputError(f"teacher: {NO_FINAL_RUN}")
    check_space(search, lambda settings: trial_config(_job(search), settings))
    job = _job(search)
    shared_releases(search)
    planned = [*shared_releases(search), *trial_releases(job, search.config, "trial/")]
    if search.tuning.strategy in ("public", "proxy"):  # there trials are free
        planned = list(shared_releases(search))
    if search.tuning.strategy == "proxy":
        planned += with_mu(Votes.plan(search.config, "proxy/"), proxy_mu(search))
    if final_mu(search):
        planned += with_mu(shape_releases(search.config, label_counts=False), final_mu(search))
    privacy = search.config.privacy
    if accounting_of(search) == "fixed":
        plan_releases(search.config)
        return
    epsilon = adaptive_epsilon(planned, privacy.delta)
    if math.isinf(epsilon):
        raise InputError(
            "privacy.delta: too small for one trial and the final run at this epsilon: releases "
            "that depend on each other have no bound there; raise it, or lower epsilon"
        )
    if epsilon > privacy.epsilon:
        raise InputError(
            "privacy.epsilon: too small for one trial and the final run at this delta; raise either"
        )


def check_parts(search: Search) -> None:
    """Build what trials and the final run will build, in Ray, and score public images as trials
    are scored; InputError names what can't be used.
    """
    check_reference(search.config)
    resources = search.config.resources
    for settings in ({}, *_each_choice_of_parts(search)):
        trial, final = trial_config(_job(search), settings), with_settings(search, settings)
        with with_faults_named(settings):
            for config in (trial, final) if trial.private != final.private else (final,):
                steps = range(config.schedule.iterations + 1)
                made = [config.generator_at(step) for step in steps]
                if not config.embedder.options.learnt:
                    made.append(config.embedder)
                check_plugins(made, config.private.labels, resources)
    if isinstance(search.tuning.objective, PublicObjective):
        gpus = resources.gpus_per_worker
        task = ray.remote(
            num_cpus=resources.cpus_per_worker, num_gpus=gpus, max_calls=1 if gpus else 0
        )(_objective_fault)
        fault = ray.get(task.remote(search, search.tuning.objective))
        if fault is not None:
            raise InputError(fault)


def _each_choice_of_parts(search: Search) -> Iterator[Settings]:
    """Settings that have each choice for the generator and the embedder at least once."""
    seen: set[str] = set()
    for settings in samples(search):
        chosen = {
            f"{key}={json.dumps(value)}"
            for key, value in settings.items()
            if key.startswith(("generator", "embedder"))
            and not isinstance(search.tuning.space[key], Range)
        }
        if not chosen <= seen:
            seen |= chosen
            yield settings


def _objective_fault(search: Search, objective: PublicObjective) -> str | None:
    """What is wrong with the objective's metric or its reference."""
    try:
        with limited(search.config.resources.stall_seconds):
            metric: Any = plugins.load("metric", objective.metric.kind)(objective.metric.options)
            images, labels = read_reference(search.tuning, search.config.image_shape)
            rows = evenly_spaced(len(images), _SCORED)
            some = images[rows], labels[rows]
            chosen_score(objective, metric.score(*some, *some))
    except InputError as error:
        return str(error)
    return None


def _job(search: Search) -> Job:
    return Job(search=search, folder=Path("unused"), ledger=None)
