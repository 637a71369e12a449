"""Export: the final set and its expansions, as PNG images with labels for readers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_ray.config import Config
from pe_ray.errors import InputError
from pe_ray.files.parts import Part, write_part
from pe_ray.files.png import encode_png
from pe_ray.files.storage import Location
from pe_ray.plugins import load
from pe_ray.plugins.seeds import row_seeds
from pe_ray.run import Run
from pe_ray.runtime.stages import PartWorker, Stage, run_stage
from pe_ray.synthetic.batching import BatchedGenerator
from pe_ray.synthetic.export_formats import ExportFormat, LabelledImages
from pe_ray.synthetic.population import Population
from pe_ray.synthetic.population_files import read_population
from pe_ray.synthetic.teacher import load_teacher


def export(
    run: Run,
    population: Population,
    directory: Location,
    *,
    num_variations: int | None = None,
    form: str = "parquet",
) -> None:
    """Write S_T itself, or `num_variations` further variations of it, to `directory`.

    form: name of an export format. A run's teacher labels the images.
    """
    num_rows = population.layout.num_samples if num_variations is None else num_variations
    stage = Stage(
        name="final set" if num_variations is None else "expansion",
        directory=directory,
        suffix=load_format(form).suffix,
        requests=run.divide(num_rows),
        worker=partial(ExportWorker, run, population, directory, num_variations, form),
        manifest={"fingerprint": run.config.fingerprint, "labels": list(run.labels)},
        check_found=True,
    )
    run_stage(stage, run.config.resources)


def try_export(config: Config) -> None:
    """Encode a blank image as the final set's are; InputError where that fails."""
    shape = config.image_shape
    blank = np.zeros((shape.height, shape.width, shape.channels), dtype=np.uint8)
    try:
        encode_png(blank)
    except KeyError:
        raise InputError(
            f"generator: makes images of {shape.height}x{shape.width}x{shape.channels}, which PNG "
            "can't hold; use 1 channel for grey or 3 for RGB"
        ) from None


def load_format(form: str) -> type[ExportFormat]:
    """Return the export format with this name."""
    made: type[ExportFormat] = load("export_format", form)
    return made


class ExportWorker(PartWorker):
    """Makes parts of the final set or of an expansion."""

    def __init__(
        self,
        run: Run,
        population: Population,
        directory: Location,
        num_variations: int | None,
        form: str,
    ) -> None:
        self._run, self._population, self._directory = run, population, directory
        self._num_variations = num_variations
        self._format = load_format(form)
        self._options = run.config.generator_at(population.iteration).options
        self._generator: BatchedGenerator | None = None
        if num_variations is not None:
            self._generator = BatchedGenerator(run.generator_at(population.iteration), run.config)
        self._teacher = load_teacher(run)

    def make(self, request: Mapping[str, Any]) -> Part:
        start, stop = request["start"], request["stop"]
        population, schedule = self._population, self._run.config.schedule
        ids = parents = np.arange(start, stop, dtype=np.int64)
        if self._num_variations is not None:
            parents = assign_parents(ids, self._num_variations, population.layout.num_samples)
        rows = read_population(population.directory, parents, self._options)
        if self._generator is not None:
            seeds = row_seeds(schedule.seed, "expansion", population.iteration, ids)
            rows = self._generator.vary(rows, schedule.degree_list[-1], seeds)
        labels = self._teacher.predict(rows["image"]) if self._teacher else rows["label"]
        images = LabelledImages(
            first=start,
            pngs=[encode_png(image) for image in rows["image"]],
            labels=labels,
            names=self._run.labels,
        )
        content = self._format.write(self._directory, images)
        return write_part(self._directory, start, stop, self._format.suffix, content)


def assign_parents(ids: NDArray[np.int64], num_samples: int, num_parents: int) -> NDArray[np.int64]:
    """Return which sample of S_T each of the rows `ids` of `num_samples` stems from, [n].

    Full rounds over all samples in order come first, then evenly spaced ones. Populations are in
    label order, so the labels' shares hold for any number of rows.
    """
    full_rounds = num_samples - num_samples % num_parents
    rest = max(num_samples % num_parents, 1)
    return np.where(ids < full_rounds, ids % num_parents, (ids - full_rounds) * num_parents // rest)
