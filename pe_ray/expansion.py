"""Any number of further variations of a run's final population: post-processing, free."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np

from pe_ray.config.blocks import ResourcesConfig
from pe_ray.config.extras import require_extras
from pe_ray.errors import InputError
from pe_ray.files.parts import part_rows, require_whole
from pe_ray.files.png import encode_png
from pe_ray.files.storage import GivenPath, Location, atomic_write, resolve_place
from pe_ray.plugins.spelling import did_you_mean
from pe_ray.release.evidence import open_run
from pe_ray.run_context import RunContext
from pe_ray.runtime.cluster import connect_on_demand
from pe_ray.runtime.named_files import require_same_files
from pe_ray.runtime.run_directory import check_output, others_cant_write, require_disk
from pe_ray.runtime.workers import Request
from pe_ray.synthetic.export import Expansion, export, load_format
from pe_ray.synthetic.filtering import Filters, count_dropped
from pe_ray.synthetic.population import Population, final_population
from pe_ray.synthetic.population_files import read_spaced_samples
from pe_ray.synthetic.shuffling import RowOrder
from pe_ray.synthetic.teacher import require_teacher

logger = logging.getLogger(__name__)

NOTE = ".expansion.json"
"""What an expansion's folder was made for."""
_MEASURED_IMAGES = 64

Steps = list[list[int]]
"""Rows of an expansion and of each of its parts, for each size that it was grown to."""


@others_cant_write()
def expand(
    run_path: GivenPath,
    num_samples: int | None,
    output: GivenPath,
    resources: ResourcesConfig | None = None,
    form: str = "parquet",
    *,
    per_label: Mapping[str, int] | None = None,
    drop_failed: bool = False,
    drop_near_duplicates: float = 0.0,
) -> Location:
    """Stream `num_samples` variations of the final population to `output`, or continue that.

    Rows are shuffled, in the labels' shares, and every sample of S_T gets as many. A later call
    with more samples keeps the rows that are there. per_label: label -> rows, instead of
    num_samples; other labels get none. None for both writes the final population itself, shuffled.
    form: parquet; webdataset (tar shards); or folder (an image folder per label).
    drop_failed, drop_near_duplicates: leave rows out (see synthetic.filtering).

    Raises InputError where the run is not finished, its final set is damaged, a file of its
    generator is another, the output folder holds something else, or the disk is too small.
    """
    if num_samples is not None and num_samples < 1:
        raise InputError("--num-samples: must be at least 1")
    if not 0 <= drop_near_duplicates <= 255:
        raise InputError("--drop-near-duplicates: give grey levels from 0 to 255")
    run = open_run(run_path, resources)
    config = run.config
    require_extras(config)
    population = final_population(run)
    require_whole(run.directory.synthetic)
    require_teacher(run)
    generator = config.generator_at(config.schedule.iterations).model_dump(mode="json")
    require_same_files(run.directory.path, config, {"generator": generator})
    directory = resolve_place(output, "--output")
    counts = _count_labels(run, population, per_label, num_samples) if per_label else ()
    expansion = Expansion(
        order=RowOrder.of(run, population, counts),
        varied=bool(num_samples or per_label),
        filters=Filters(failed=drop_failed, near=drop_near_duplicates),
    )
    num_rows = num_samples or sum(expansion.order.rows)
    load_format(form)
    request = {
        "run": config.fingerprint,
        "format": form,
        "varied": expansion.varied,
        "per_label": list(counts),
        **asdict(expansion.filters),
    }
    held: Steps = check_output(directory, config, NOTE, request).get("steps", [])
    steps = _grow(held, num_rows, run)
    require_disk(directory, round(num_rows * _measure_row(run, population)), "--output")
    atomic_write(directory / NOTE, json.dumps(request | {"steps": steps}).encode())
    with connect_on_demand(config.resources):
        export(run, population, directory, expansion, _list_requests(steps), form=form)
    if dropped := count_dropped(directory):
        logger.info("%d of %d rows were dropped", dropped, num_rows)
    return directory


def _count_labels(
    run: RunContext, population: Population, per_label: Mapping[str, int], num_samples: int | None
) -> tuple[int, ...]:
    """Return the rows of each label; InputError where one can't have as many."""
    if num_samples is not None:
        raise InputError("--per-label: says how many rows there are; leave out --num-samples")
    for label, rows in per_label.items():
        if label not in run.labels:
            meant = did_you_mean(label, run.labels)
            raise InputError(f"--per-label: there is no label {label!r}{meant}")
        if rows < 1:
            raise InputError(f"--per-label: {label}: must be at least 1")
        if not population.layout.counts[run.labels.index(label)]:
            raise InputError(f"--per-label: {label}: has no sample in the final population")
    return tuple(per_label.get(label, 0) for label in run.labels)


def _grow(steps: Steps, num_rows: int, run: RunContext) -> Steps:
    """Return the steps of an expansion that is to have `num_rows`."""
    held = steps[-1][0] if steps else 0
    if num_rows < held:
        raise InputError(
            f"--num-samples: {held:,} were asked for before; give as many or more, or a new folder"
        )
    if num_rows == held:
        return steps
    row_bytes, rows = run.config.image_shape.num_bytes, run.config.output.rows_per_part
    return [*steps, [num_rows, part_rows(num_rows - held, row_bytes, rows)]]


def _list_requests(steps: Steps) -> list[Request]:
    """Return the requests for all parts, which are numbered through the steps."""
    requests: list[Request] = []
    first = 0
    for last, rows in steps:
        for start in range(first, last, rows):
            stop = min(start + rows, last)
            requests.append({"start": start, "stop": stop, "number": len(requests)})
        first = last
    return requests


def _measure_row(run: RunContext, population: Population) -> float:
    """Return the mean bytes of some images as PNG; formats add a little of their own."""
    rows = read_spaced_samples(run.config, population, _MEASURED_IMAGES)
    return float(np.mean([len(encode_png(image)) for image in rows["image"]]))
