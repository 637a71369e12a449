"""Export: the final set and its expansions, as PNG images with labels for readers."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_ray.files.parts import Part, divide_rows, write_part
from pe_ray.files.storage import Location
from pe_ray.plugins import registry
from pe_ray.plugins.seeds import row_seeds
from pe_ray.run import Run
from pe_ray.runtime.stages import PartWorker, Request, Stage, run_stage
from pe_ray.synthetic.batching import BatchedGenerator
from pe_ray.synthetic.export_formats import BLOCK_BYTES, ExportFormat, LabelledImages
from pe_ray.synthetic.population import Population
from pe_ray.synthetic.population_files import read_population
from pe_ray.synthetic.teacher import load_teacher

_PART_BYTES = BLOCK_BYTES + 256  # of any part: the end of its last block, its lines in the manifest


def export(
    run: Run,
    population: Population,
    directory: Location,
    *,
    num_variations: int | None = None,
    form: str = "parquet",
) -> None:
    """Write S_T itself, or `num_variations` further variations of it, to `directory`.

    form: name of an export format. A run's teacher labels the images. Which sample a row stems from
    says `final_parents`.
    """
    config = run.config
    num_rows = population.layout.num_samples if num_variations is None else num_variations
    made = load_format(form)
    ranges = divide_rows(num_rows, config.image_shape.num_bytes, config.output.rows_per_part)
    requests: list[Request] = [{"start": start, "stop": stop} for start, stop in ranges]
    stage = Stage(
        name="final set" if num_variations is None else "expansion",
        directory=directory,
        suffix=made.suffix,
        requests=requests,
        worker=partial(ExportWorker, run, population, directory, num_variations, form),
        manifest={"fingerprint": config.fingerprint, "labels": list(run.labels)},
    )
    run_stage(stage, config.resources)


def load_format(form: str) -> type[ExportFormat]:
    """Return the export format with this name."""
    made: type[ExportFormat] = registry.load("export_format", form)
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
        self._plugin = run.config.generator_at(population.iteration)
        self._generator: BatchedGenerator | None = None
        self._teacher = load_teacher(run)

    def make(self, request: Mapping[str, Any]) -> Part:
        start, stop = request["start"], request["stop"]
        config, population = self._run.config, self._population
        ids = np.arange(start, stop, dtype=np.int64)
        num_parents, options = population.layout.num_samples, self._plugin.options
        if self._num_variations is None:
            rows = read_population(population.directory, ids, options)
        else:
            parents = assign_parents(ids, self._num_variations, num_parents)
            rows = read_population(population.directory, parents, options)
            if self._generator is None:
                batch_size = config.resources.batch_size
                self._generator = BatchedGenerator(self._plugin, self._run.labels, batch_size)
            seeds = row_seeds(config.schedule.seed, "expansion", population.iteration, ids)
            rows = self._generator.vary(rows, config.schedule.degree_list[-1], seeds)
        labels = rows["label"]
        if self._teacher is not None:
            labels = self._teacher.predict(rows["image"])
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


def disk_bytes(
    form: str, pngs: Sequence[bytes], num_rows: int, num_parts: int, names: Sequence[str]
) -> int:
    """Estimate from above the disk that `num_rows` images like `pngs` take in so many parts.

    The estimate is four standard errors above the mean, with all that the format adds.
    """
    taken = load_format(form).measure(pngs, names)
    spread = 4 * taken.rows.std() * math.sqrt(1 / len(pngs) + 1 / num_rows)
    fixed = 4 * BLOCK_BYTES + sum(len(name.encode()) for name in names) + taken.fixed
    row = float(taken.rows.mean() + spread)
    return math.ceil(num_rows * row) + num_parts * (_PART_BYTES + taken.part) + fixed


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Encode one image, uint8 [height, width, channels], as PNG."""
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(sink, format="PNG")
    return sink.getvalue()
