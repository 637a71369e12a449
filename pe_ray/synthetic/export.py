"""Export: the final set and its expansions, as PNG images with labels for readers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_ray.config import Config
from pe_ray.errors import InputError
from pe_ray.files.image_batches import read_images
from pe_ray.files.image_tables import ImageTable
from pe_ray.files.parts import Part, part_name, read_manifest, require_whole, write_part
from pe_ray.files.png import encode_png
from pe_ray.files.storage import Location
from pe_ray.plugins import load
from pe_ray.plugins.seeds import row_seeds
from pe_ray.run_context import RunContext
from pe_ray.runtime.stages import Stage, run_stage
from pe_ray.runtime.threads import map_in_threads
from pe_ray.runtime.workers import PartWorker, Request
from pe_ray.synthetic.batching import BatchedGenerator
from pe_ray.synthetic.export_formats import ExportFormat, LabelledImages
from pe_ray.synthetic.filtering import Filters, note_dropped
from pe_ray.synthetic.population import Population
from pe_ray.synthetic.population_files import read_population
from pe_ray.synthetic.shuffling import RowOrder
from pe_ray.synthetic.teacher import load_teacher


@dataclass(frozen=True, slots=True, kw_only=True)
class Expansion:
    """What the rows of an expansion are. varied: further variations, not the samples themselves."""

    order: RowOrder
    varied: bool = True
    filters: Filters = field(default_factory=Filters)


def export(
    run: RunContext,
    population: Population,
    directory: Location,
    expansion: Expansion | None = None,
    requests: Sequence[Request] | None = None,
    *,
    form: str = "parquet",
) -> None:
    """Write the final set, which is S_T in the order of its ids, or an expansion to `directory`.

    population: S_T, or what the teacher keeps of it.

    requests: for the parts of the expansion. form: name of an export format. A run's teacher labels
    the images.
    """
    requests = requests or run.divide(population.layout.num_samples)
    stage = Stage(
        name="final set" if expansion is None else "expansion",
        directory=directory,
        suffix=load_format(form).suffix,
        requests=requests,
        worker=partial(ExportWorker, run, population, directory, expansion, form),
        manifest={"fingerprint": run.config.fingerprint, "labels": list(run.labels)},
        check_found=True,
        numbered="number" in requests[0],
    )
    resources = run.config.resources
    if run.config.teacher is None and (expansion is None or not expansion.varied):
        resources = resources.model_copy(update={"gpus_per_worker": 0.0})  # it encodes, no more
    run_stage(stage, resources)


def find_final_set(run: RunContext) -> Location:
    """Return the folder of the final set; InputError where the run is not finished."""
    folder = run.directory.synthetic
    if read_manifest(folder) is None:
        raise InputError(
            f"run {run.directory.path}: not finished; run the same `pe-ray run` command first"
        )
    return folder


def read_set(run: RunContext, folder: Location) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Read the final set or an expansion, in whichever format it is.

    Returns images, [n, h, w, c], and labels, [n]. DamagedFileError where a file isn't what was
    written.
    """
    require_whole(folder)
    table = ImageTable(block="set", private=False, data=str(folder), labels=run.labels)
    return read_images(table, run.config.framing)


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
    """Makes parts of the final set, or of an expansion."""

    def __init__(
        self,
        run: RunContext,
        population: Population,
        directory: Location,
        expansion: Expansion | None,
        form: str,
    ) -> None:
        self._run, self._population, self._directory = run, population, directory
        self._format, self._expansion = load_format(form), expansion
        self._options = run.config.generator_at(population.iteration).options
        self._generator: BatchedGenerator | None = None
        if expansion is not None and expansion.varied:
            self._generator = BatchedGenerator(run.generator_at(population.iteration), run.config)
        self._teacher = load_teacher(run)

    def make(self, request: Mapping[str, Any]) -> Part:
        start, stop, number = request["start"], request["stop"], request.get("number")
        suffix, schedule = self._format.suffix, self._run.config.schedule
        samples = copies = np.arange(start, stop, dtype=np.int64)
        if self._expansion is not None:
            samples, copies = self._expansion.order.find_samples(start, stop)
        samples = self._population.find_rows(samples)
        found = read_population(self._population.directory, samples, self._options)
        rows, originals = found, None
        if self._generator is not None:
            seeds = row_seeds(
                schedule.seed, "expansion", self._population.iteration, samples, copies
            )
            rows = self._generator.vary(found, schedule.degree_list[-1], seeds)
            originals = found["image"]
        pixels, labels = rows["image"], rows["label"]
        if self._expansion is not None:
            kept = self._expansion.filters.choose(pixels, originals)
            pixels, labels = pixels[kept], labels[kept]
            note_dropped(self._directory, part_name(start, stop, suffix, number), ~kept)
        images = LabelledImages(
            first=start,
            pngs=map_in_threads(encode_png, [*pixels]),
            labels=self._teacher.predict(pixels) if self._teacher else labels,
            names=self._run.labels,
        )
        content = self._format.write(self._directory, images)
        return write_part(self._directory, start, stop, suffix, content, number)
