"""Scores on private records: for the data owner only, never part of a run's output.

Guarantee: none. What `audit` returns is computed on private records without noise and is no
release. The command line prints it and writes it nowhere.
"""

from __future__ import annotations

from dataclasses import replace

from pe_ray import plugins
from pe_ray.config import Config
from pe_ray.config.blocks import PrivateConfig
from pe_ray.config.extras import require_extras
from pe_ray.errors import InputError
from pe_ray.files.image_batches import read_images
from pe_ray.files.image_tables import ImageTable
from pe_ray.private.records import private_table
from pe_ray.run_context import RunContext
from pe_ray.synthetic.export import find_final_set, read_set


def audit(run: RunContext) -> dict[str, float]:
    """Score a finished run's final set against private (or `audit_data`) records.

    Guarantee: none; the scores are not private (see the module).
    """
    config, folder = run.config, find_final_set(run)
    if not config.metrics.audit:
        raise InputError("metrics.audit: names no metric; give one there, or --metric frechet")
    require_extras(config)
    synthetic = read_set(run, folder)
    private = read_images(audited_table(config), config.framing)
    scores: dict[str, float] = {}
    for metric in config.metrics.audit:
        scorer = plugins.load("metric", metric.kind)(metric.options)
        scores |= scorer.score(*synthetic, *private)
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
