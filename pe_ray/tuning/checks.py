"""Checks that end a search before anything is spent."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pe_ray.errors import InputError
from pe_ray.files.storage import resolve_place
from pe_ray.planning import plan_releases
from pe_ray.release.adaptive import adaptive_epsilon, with_mu
from pe_ray.runtime.workers import check_plugins, run_in_worker
from pe_ray.synthetic.denoising import try_denoisers
from pe_ray.synthetic.export import try_export
from pe_ray.synthetic.scoring import check_reference, try_metrics
from pe_ray.synthetic.teacher import try_teacher
from pe_ray.tuning.budget import accounting_of, final_shape, shared_releases
from pe_ray.tuning.search import Search
from pe_ray.tuning.space import configure, name_settings, refuse_fixed, sample_space
from pe_ray.tuning.trial import Job, trial_config


def check_search(search: Search) -> None:
    """Raise InputError, before anything is spent, for a search that can't be made."""
    if not isinstance(resolve_place(search.config.output.path, "output.path"), Path):
        raise InputError("output.path: a search needs a local folder; copy it from there")
    refuse_fixed(search)
    job = Job(search=search, folder=Path("unused"))
    for settings in sample_space(search):
        with name_settings(settings):
            if trial_config(job, settings).votes.across_labels:
                raise InputError("votes.across_labels: needs a teacher, and trials have none")
    if accounting_of(search) == "fixed":
        plan_releases(search.config)
        return
    planned = [*shared_releases(search), *search.strategy.search_releases(search)]
    planned += with_mu(final_shape(search.config), search.strategy.result_mu(search))
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
    try_metrics(search.config)
    try_teacher(search.config)
    try_export(search.config)
    resources, job = search.config.resources, Job(search=search, folder=Path("unused"))
    built: list[Any] = []
    for settings in ({}, *sample_space(search)):
        for config in (configure(search, settings), trial_config(job, settings)):
            try_denoisers(config)
            parts = [config.generator_at(step) for step in range(config.schedule.iterations + 1)]
            if not config.embedder.options.learnt:
                parts.append(config.embedder)
            labels = config.private.labels
            new = [part for part in parts if (part, labels) not in built]
            with name_settings(settings):
                check_plugins(new, labels, resources)
            built += [(part, labels) for part in new]
    run_in_worker(search.objective.try_out, search, resources=resources)
