"""Checks that end a search before anything is spent."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import ray

from pe_ray.errors import InputError
from pe_ray.files.storage import resolve_place
from pe_ray.planning import plan_releases
from pe_ray.release.adaptive import adaptive_epsilon, with_mu
from pe_ray.runtime.stages import check_plugins
from pe_ray.runtime.watchdog import exit_on_stall
from pe_ray.synthetic.scoring import check_reference
from pe_ray.tuning.budget import accounting_of, final_shape, shared_releases
from pe_ray.tuning.search import Range, Search
from pe_ray.tuning.space import Settings, check_space, configure, name_settings, sample_space
from pe_ray.tuning.trial import Job, trial_config


def check_search(search: Search) -> None:
    """Raise InputError, before anything is spent, for a search that can't be made."""
    if not isinstance(resolve_place(search.config.output.path, "output.path"), Path):
        raise InputError("output.path: a search needs a local folder; copy it from there")
    job = Job(search=search, folder=Path("unused"))
    check_space(search, lambda settings: trial_config(job, settings))
    if accounting_of(search) == "fixed":
        plan_releases(search.config)
        return
    planned = [*shared_releases(search), *search.strategy.search_releases(search)]
    result_mu = search.strategy.result_mu(search)
    if search.strategy.final_run:
        planned += with_mu(final_shape(search.config), result_mu)
    privacy = search.config.privacy
    epsilon = adaptive_epsilon(planned, privacy.delta)
    if epsilon > privacy.epsilon:
        field = "privacy.delta" if math.isinf(epsilon) else "privacy.epsilon"
        raise InputError(f"{field}: too small for one trial and the final run; raise it")


def check_parts(search: Search) -> None:
    """Build what trials and the final run will build, in Ray, and try the objective.

    InputError names what can't be used.
    """
    check_reference(search.config)
    resources, job = search.config.resources, Job(search=search, folder=Path("unused"))
    for settings in ({}, *_each_choice_of_parts(search)):
        trial, final = trial_config(job, settings), configure(search, settings)
        with name_settings(settings):
            for config in (trial, final) if trial.private != final.private else (final,):
                steps = range(config.schedule.iterations + 1)
                made = [config.generator_at(step) for step in steps]
                if not config.embedder.options.learnt:
                    made.append(config.embedder)
                check_plugins(made, config.private.labels, resources)
    gpus = resources.gpus_per_worker
    task = ray.remote(
        num_cpus=resources.cpus_per_worker, num_gpus=gpus, max_calls=1 if gpus else 0
    )(_objective_fault)
    fault = ray.get(task.remote(search))
    if fault is not None:
        raise InputError(fault)


def _each_choice_of_parts(search: Search) -> Iterator[Settings]:
    """Yield settings until each choice for the generator and the embedder was in one."""
    seen: set[str] = set()
    for settings in sample_space(search):
        chosen = {
            f"{key}={json.dumps(value)}"
            for key, value in settings.items()
            if key.startswith(("generator", "embedder"))
            and not isinstance(search.tuning.space[key], Range)
        }
        if not chosen <= seen:
            seen |= chosen
            yield settings


def _objective_fault(search: Search) -> str | None:
    """Return what is wrong with what scoring needs."""
    try:
        with exit_on_stall(search.config.resources.stall_seconds):
            search.objective.try_out(search)
    except InputError as error:
        return str(error)
    return None
