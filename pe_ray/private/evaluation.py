"""Scores on private records: for the data owner only, never part of a run's output.

Guarantee: none. What `audit` returns is computed on private records without noise and is no
release. The command line prints it and writes it nowhere.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pe_ray import plugins
from pe_ray.config import Config
from pe_ray.config.blocks import PrivateConfig
from pe_ray.config.extras import require_extras
from pe_ray.errors import InputError
from pe_ray.files.image_batches import read_images
from pe_ray.files.image_tables import ImageTable
from pe_ray.files.parts import require_whole
from pe_ray.private.records import private_table
from pe_ray.run_context import RunContext
from pe_ray.synthetic.population import final_population
from pe_ray.synthetic.population_files import read_population
from pe_ray.synthetic.teacher import load_teacher


def audit(run: RunContext) -> dict[str, float]:
    """Score a finished run's final population against private (or `audit_data`) records.

    Guarantee: none; the scores are not private (see the module).
    """
    config, population = run.config, final_population(run)
    if not config.metrics.audit:
        raise InputError("metrics.audit: names no metric; give one there, or --metric frechet")
    require_extras(config)
    require_whole(run.directory.synthetic)
    rows = read_population(
        population.directory,
        population.find_rows(np.arange(population.layout.num_samples, dtype=np.int64)),
        config.generator_at(population.iteration).options,
    )
    teacher = load_teacher(run)
    if teacher is not None:
        rows["label"] = teacher.predict(rows["image"])
    images, labels = read_images(audited_table(config), config.framing)
    scores: dict[str, float] = {}
    for metric in config.metrics.audit:
        scorer = plugins.load("metric", metric.kind)(metric.options)
        scores |= scorer.score(rows["image"], rows["label"], images, labels)
    return scores


def held_out_records(config: Config) -> PrivateConfig:
    """Return where the records are that did not vote; InputError where none are named."""
    metrics, private = config.metrics, config.private
    where = private.where if metrics.audit_where is None else metrics.audit_where
    data = metrics.audit_data or private.data
    if (data, where) == (private.data, private.where):
        raise InputError(
            "metrics.audit_where: names no records that did not vote; give it, or "
            "metrics.audit_data, and repeat the `pe-ray run` command"
        )
    return private.model_copy(update={"data": data, "where": where})


def audited_table(config: Config) -> ImageTable:
    """Return the records to score on; errors name the keys that chose them."""
    table = replace(private_table(config.private), user_column=None)
    metrics = config.metrics
    if metrics.audit_data is not None:
        fields = {**table.fields, "data": "metrics.audit_data"}
        table = replace(table, data=metrics.audit_data, fields=fields)
    if metrics.audit_where is not None:
        fields = {**table.fields, "where": "metrics.audit_where"}
        table = replace(table, where=metrics.audit_where, fields=fields)
    return table
