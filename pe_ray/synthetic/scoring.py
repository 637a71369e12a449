"""Score released populations against public images: post-processing, so free.

Each scored iteration has a small file, so a start after a crash scores only what is missing.
`metrics.public` changes no release, so a run may continue with another. Then all populations are
scored again: numbers by different metrics or references never stand in one table.
"""

from __future__ import annotations

import json
import logging
import math
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_ray import plugins
from pe_ray.config import Config
from pe_ray.config.blocks import PublicMetricsConfig
from pe_ray.errors import DamagedFileError
from pe_ray.files.digests import read_with_digest, write_with_digest
from pe_ray.files.image_batches import count_images, read_images, read_spaced
from pe_ray.files.image_shards import find_shards, summarize
from pe_ray.files.image_tables import ImageTable
from pe_ray.files.storage import Location, atomic_write, delete_tree, list_names
from pe_ray.run_context import RunContext
from pe_ray.runtime.named_files import digest_named_files
from pe_ray.runtime.watchdog import note_progress
from pe_ray.runtime.workers import run_in_worker
from pe_ray.synthetic.learnt_embedder import public_whitening
from pe_ray.synthetic.population import Population
from pe_ray.synthetic.population_files import read_spaced_samples
from pe_ray.synthetic.teacher import Teacher, load_teacher
from pe_ray.values import Framing

logger = logging.getLogger(__name__)

_TRIED_IMAGES = 1000


def check_reference(config: Config) -> None:
    """Raise InputError if the public images can't be there; decode none."""
    if config.metrics.public is not None:
        table = reference_table(config, config.metrics.public)
        found = find_shards(table)
        logger.info("metrics.public.data: files: %s", summarize(found))
        count_images(table, found.shards)


def discard_other_scores(run: RunContext) -> None:
    """Delete the scores that another `metrics.public` or other public images gave."""
    file = run.directory.score_source
    if list_names(run.directory.scores_folder) and (
        not file.exists() or file.read_bytes() != _describe_source(run.config)
    ):
        delete_tree(run.directory.scores_folder)


def _describe_source(config: Config) -> bytes:
    """Return what decides the scores: `metrics.public`, and digests of the files that it names."""
    bound = {"metrics": config.model_dump(mode="json", include={"metrics": {"public"}})["metrics"]}
    source = {**bound, "files": digest_named_files(config, bound)}
    return json.dumps(source, indent=1).encode()


def score_population(run: RunContext, population: Population) -> dict[str, float]:
    """Score S_t against the public images, if `metrics.public` says so; return scores by name."""
    config, iteration = run.config, population.iteration
    public, file = config.metrics.public, run.directory.scores(iteration)
    if public is None:
        return {}
    if iteration % public.every and iteration != config.schedule.iterations:
        return {}
    with suppress(DamagedFileError):
        kept = read_scores(file)
        if kept is not None:
            return kept
    resources = config.resources
    scores = run_in_worker(_compute_scores, config, public, population, resources=resources)
    for name in [name for name, score in scores.items() if not math.isfinite(score)]:
        del scores[name]  # no reason to stop a run whose budget is spent
        logger.warning("%s of population %d is not finite: left out", name, iteration)
    if not run.directory.score_source.exists():
        atomic_write(run.directory.score_source, _describe_source(config))
    write_with_digest(file, json.dumps(scores, indent=1).encode())
    return scores


def score_teacher(run: RunContext, population: Population) -> None:
    """Measure how often the teacher is right on the public images, if they have labels.

    Score the final set, too, by all metrics that it can differ in from S_T: by those that read
    labels, which are the teacher's; where the teacher chose its images, by all.
    """
    public, file = run.config.metrics.public, run.directory.teacher_scores
    if public is None or public.label_column is None:
        return
    with suppress(DamagedFileError):
        if read_scores(file) is not None:
            return
    resources = run.config.resources
    scores = run_in_worker(_measure_teacher, run, public, population, resources=resources)
    write_with_digest(file, json.dumps(scores).encode())
    for name, score in scores.items():
        logger.info("%s of the teacher's labels: %.4g", name, score)


def _measure_teacher(
    run: RunContext, public: PublicMetricsConfig, population: Population
) -> dict[str, float]:
    teacher, table = load_teacher(run), reference_table(run.config, public)
    assert teacher is not None
    right = []
    for batch in read_spaced(table, run.config.framing, public.max_images):
        right.append(teacher.predict(batch.images) == batch.labels)
        note_progress()
    scores = {"public/accuracy_teacher": float(np.concatenate(right).mean())}
    chose = run.config.num_kept is not None
    differing = [m for m in public.metrics if chose or getattr(m.options, "least_labels", 0) > 0]
    if differing:
        final = public.model_copy(update={"metrics": tuple(differing)})
        made = _compute_scores(run.config, final, population, teacher)
        scores |= {f"{name}/final_set": s for name, s in made.items() if math.isfinite(s)}
    return scores


def try_metrics(config: Config) -> None:
    """Score some of the public images against themselves, in a worker; InputError if that fails."""
    if config.metrics.public is not None:
        run_in_worker(_try_scores, config, config.metrics.public, resources=config.resources)


def read_scores(file: Location) -> dict[str, float] | None:
    """Return the scores of one iteration by name, None where it was not scored.

    DamagedFileError where the file holds something else.
    """
    if not file.exists():
        return None
    try:
        scores: dict[str, float] = json.loads(read_with_digest(file))
    except ValueError as error:  # of a version without digests
        raise DamagedFileError(str(file)) from error
    return scores


def _try_scores(config: Config, public: PublicMetricsConfig) -> dict[str, float]:
    table, at_most = reference_table(config, public), min(public.max_images, _TRIED_IMAGES)
    images, labels = read_images(table, config.framing, at_most)
    return _score(public, images, labels, images, labels)


def _compute_scores(
    config: Config,
    public: PublicMetricsConfig,
    population: Population,
    teacher: Teacher | None = None,
) -> dict[str, float]:
    rows = read_spaced_samples(config, population, public.max_images)
    table = reference_table(config, public)
    reference = read_images(table, config.framing, public.max_images)
    labels = rows["label"] if teacher is None else teacher.predict(rows["image"])
    return _score(public, rows["image"], labels, *reference)


def _score(public: PublicMetricsConfig, *images_and_labels: NDArray[Any]) -> dict[str, float]:
    scores: dict[str, float] = {}
    for metric in public.metrics:
        scorer: Any = plugins.load("metric", metric.kind)(metric.options)
        made = scorer.score(*images_and_labels)
        scores |= {f"public/{name}": float(score) for name, score in made.items()}
    return scores


def public_tables(config: Config) -> list[tuple[ImageTable, Framing]]:
    """List the public images that a run reads, each with how it brings them to its shape."""
    found = []
    if config.metrics.public is not None:
        found.append((reference_table(config, config.metrics.public), config.framing))
    found += [(table, config.framing) for table in public_whitening(config)]
    for plugin in config.generators:
        table = plugin.options.public_table
        if table is not None:
            found.append((table, plugin.options.framing or config.framing))
    return found


def reference_table(config: Config, public: PublicMetricsConfig) -> ImageTable:
    """Return where the public images are that populations are compared with."""
    return ImageTable(
        block="metrics.public",
        private=False,
        data=public.data,
        labels=None if public.label_column is None else config.private.labels,
        image_column=public.image_column,
        label_column=public.label_column,
        label_values=public.label_values,
        where=public.where,
        fields={"labels": "private.labels"},
    )
