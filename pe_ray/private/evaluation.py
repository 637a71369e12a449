"""Scores on private records: for the data owner's eyes, never part of a run's output.

Guarantee: none. What `audit` returns is computed on private records without noise and is no
release; the command line prints it and writes it nowhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pe_ray import plugins
from pe_ray.config.blocks import PrivateConfig
from pe_ray.config.extras import require_extras
from pe_ray.errors import InputError
from pe_ray.files.images import resized
from pe_ray.files.storage import Location
from pe_ray.private.record_sources import list_slices, read_slice
from pe_ray.run import open_run
from pe_ray.synthetic.population import final_population
from pe_ray.synthetic.population_files import read_population
from pe_ray.synthetic.teacher import load_teacher
from pe_ray.values import ImageShape


def audit(run_path: str | Location) -> dict[str, float]:
    """Scores of a finished run's final population against private (or `audit_data`) records."""
    run = open_run(run_path)
    config, population = run.config, final_population(run)
    if not config.metrics.audit:
        raise InputError("metrics.audit: names no metric, so there is nothing to score")
    require_extras(config)
    rows = read_population(
        population.directory,
        np.arange(population.layout.num_samples, dtype=np.int64),
        config.generator_at(population.iteration).options,
    )
    teacher = load_teacher(run)
    if teacher is not None:
        rows["label"] = teacher.predict(rows["image"])
    private = config.private.model_copy(
        update={
            "data": config.metrics.audit_data or config.private.data,
            "where": config.private.where
            if config.metrics.audit_where is None
            else config.metrics.audit_where,
            "user_column": None,
        }
    )
    try:
        images, labels = read_images(private, config.image_shape)
    except InputError as error:  # of the keys that were read in their place
        text = str(error)
        if config.metrics.audit_data is not None:
            text = text.replace("private.data", "metrics.audit_data", 1)
        if config.metrics.audit_where is not None:
            text = text.replace("private.where", "metrics.audit_where", 1)
        raise InputError(text) from None
    if not len(images):
        field = "private.where" if config.metrics.audit_where is None else "metrics.audit_where"
        raise InputError(f"{field}: keeps no record to score on; mend its values")
    scores: dict[str, float] = {}
    for metric in config.metrics.audit:
        scorer = plugins.load("metric", metric.kind)(metric.options)
        scores |= scorer.score(rows["image"], rows["label"], images, labels)
    return scores


def read_images(
    source: PrivateConfig, shape: ImageShape
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """All images of `source`, brought to `shape`, uint8 [n, h, w, c], and their labels [n]."""
    images = [np.zeros((0, shape.height, shape.width, shape.channels), np.uint8)]
    labels = [np.zeros(0, dtype=np.int32)]
    for part in list_slices(source):
        read = read_slice(part, source, shape.channels)
        images += [resized(image, shape)[None] for image in read.images]
        labels.append(read.labels)
    return np.concatenate(images), np.concatenate(labels)
