"""RANDOM_API and VARIATION_API over a pool of generator actors: S_0, S_1, ... and the expansion."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pe_ray.config import Config
from pe_ray.config.blocks import Plugin
from pe_ray.errors import InputError
from pe_ray.files.parts import Part, manifest_of, part_ranges, write_part
from pe_ray.files.storage import Location, location
from pe_ray.plugins import Generator, GeneratorOptions, Rows
from pe_ray.plugins.seeds import Purpose, Seeds, row_seeds
from pe_ray.runtime.stages import PartWorker, Request, check_plugins, loaded, run_stage
from pe_ray.synthetic.export import SUFFIXES, Format, export_part, png
from pe_ray.synthetic.population import Offspring, Population, lookahead_draws
from pe_ray.synthetic.population_files import population_part, read_population
from pe_ray.synthetic.teacher import load as load_teacher
from pe_ray.values import LabelLayout

logger = logging.getLogger(__name__)

REQUEST_BYTES = 24
"""Of a sample in Ray's object store: parent, copy, draw and label. Images never pass it."""


class BatchedGenerator:
    """A generator called in batches of bounded size, its rows checked against its own schema.

    A batch that runs out of memory is made again in halves, and later ones are no larger. Rows
    don't depend on their batch, so that changes them by a network's rounding at most.
    """

    def __init__(self, plugin: Plugin, label_names: Sequence[str], batch_size: int) -> None:
        self.options: GeneratorOptions = plugin.options
        self._generator: Generator = loaded(plugin, tuple(label_names))
        self._batch_size = batch_size

    def random(self, labels: NDArray[np.int32], seeds: Seeds) -> Rows:
        """Rows with `label`, one for each of `labels` [n]."""

        def make(s: slice) -> Rows:
            return self._checked(self._generator.random(labels[s], seeds[s]), labels[s])

        return self._in_batches(make, len(labels))

    def vary(self, rows: Rows, degree: float, seeds: Seeds) -> Rows:
        """One variation of each row; labels are kept."""

        def make(s: slice) -> Rows:
            batch = {name: rows[name][s] for name in ("image", "label", *self.options.columns)}
            return self._checked(self._generator.vary(batch, degree, seeds[s]), batch["label"])

        return self._in_batches(make, len(seeds))

    def _in_batches(self, make: Callable[[slice], Rows], num_rows: int) -> Rows:
        made: list[Rows] = []
        start = 0
        while start < num_rows:
            stop = min(start + self._batch_size, num_rows)
            try:
                made.append(make(slice(start, stop)))
            except Exception as error:
                if not _out_of_memory(error):
                    raise
                self._halve(stop - start, error)
            else:
                start = stop
        return {name: np.concatenate([rows[name] for rows in made]) for name in made[0]}

    def _halve(self, failed: int, error: Exception) -> None:
        if failed == 1:
            shape = self.options.image_shape
            raise InputError(
                f"resources.batch_size: out of memory with a single {shape.height}x{shape.width} "
                "image; give the worker more memory, or the generator a lower precision"
            ) from error
        self._batch_size = failed // 2
        logger.warning(
            "out of memory with a batch of %d: going on in batches of %d; set resources.batch_size "
            "to that to save the attempt",
            failed,
            self._batch_size,
        )

    def _checked(self, rows: Rows, labels: NDArray[np.int32]) -> Rows:
        shape = self.options.image_shape
        expected = (len(labels), shape.height, shape.width, shape.channels)
        image = rows.get("image", np.empty(0))
        if image.shape != expected or image.dtype != np.uint8:
            raise TypeError(f"generator returned {image.dtype} {image.shape}, not uint8 {expected}")
        kept = {"image": image, "label": labels}
        for name, (dtype, width) in self.options.columns.items():
            own = (len(labels),) if width == 1 else (len(labels), width)
            kept[name] = np.asarray(rows[name], dtype=dtype).reshape(own)
        return kept


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: torch's error is known by its name, since torch isn't loaded here."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def check_generators(config: Config) -> None:
    """Build each generator that would first be built after something was released, where it will
    run; what it can't use is an InputError before anything is spent.
    """
    early = None if config.privacy.label_fractions == "dp" else config.generator_at(0)
    made = (config.generator_at(t) for t in range(config.schedule.iterations + 1))
    late = [plugin for plugin in made if plugin != early]
    check_plugins(late, config.private.labels, config.resources)


def _merge(rows: Rows, where: NDArray[np.bool_], replacement: Rows) -> None:
    for name, values in replacement.items():
        rows[name][where] = values


class RowsWorker(Protocol):
    """Works on rows start..stop-1 of a population where they are made."""

    def write(self, rows: Rows, start: int, stop: int) -> Part: ...


class PopulationWorker(PartWorker):
    """Makes parts of a population: random draws, kept parents and variations."""

    def __init__(
        self,
        config: Config,
        iteration: int,
        directory: str,
        parents: str | None,
        kept: str | None,
        then: Callable[[], RowsWorker] | None = None,
    ) -> None:
        self._config = config
        self._iteration = iteration
        self._directory = location(directory)
        self._parents = location(parents) if parents else None
        self._kept = location(kept) if kept else None
        batch_size = config.resources.batch_size
        plugin = config.generator_at(iteration)
        self._generator = BatchedGenerator(plugin, config.private.labels, batch_size)
        self._then = then() if then else None

    def make(self, request: Mapping[str, Any]) -> Part:
        ids = np.arange(request["start"], request["stop"], dtype=np.int64)
        schedule, parents, copies = self._config.schedule, request["parents"], request["copies"]
        degree = schedule.degree_list[max(0, self._iteration - 1)]
        options = self._generator.options
        if self._parents is None:
            drawn, back = np.unique(parents, return_index=True)
            seeds = row_seeds(schedule.seed, "random", 0, drawn)
            draws = self._generator.random(request["labels"][back].astype(np.int32), seeds)
            family = np.searchsorted(drawn, parents)
            rows = {name: values[family] for name, values in draws.items()}
            origin = np.full(len(ids), -1, dtype=np.int64)
        else:
            read = read_population(self._parents, parents, options)
            rows = {name: read[name].copy() for name in ("image", "label", *options.columns)}
            origin = parents
        varied, draws = copies > 0, request["draws"]
        seeds = row_seeds(schedule.seed, "variation", self._iteration, ids, copies)
        reused = draws >= 0
        if reused.any():
            drawn = row_seeds(schedule.seed, "lookahead", self._iteration, parents, draws)
            seeds = np.where(reused, drawn, seeds)
        remade = varied
        if reused.any() and self._kept is not None:
            places = parents[reused] * self._config.votes.lookahead + draws[reused]
            kept = read_population(self._kept, places, options)
            _merge(rows, reused, {name: kept[name] for name in rows})
            remade = varied & ~reused
        if remade.any():
            chosen = {name: values[remade] for name, values in rows.items()}
            _merge(rows, remade, self._generator.vary(chosen, degree, seeds[remade]))
        degrees = np.where(varied, degree, np.nan).astype(np.float32)
        rows |= {"id": ids, "parent": origin, "degree": degrees}
        content = population_part(rows, options)
        if self._then is not None:
            self._then.write(rows, request["start"], request["stop"])
        return write_part(self._directory, request["start"], request["stop"], "parquet", content)


def make_population(
    config: Config,
    directory: Location,
    iteration: int,
    offspring: Offspring,
    parents: Population | None,
    kept: Location | None = None,
    then: Callable[[], RowsWorker] | None = None,
) -> Population:
    """S_iteration on disk: random draws for S_0, offspring of `parents` after that.

    kept: the lookahead draws of `parents`, reused if the configuration says so; where they are
    gone they are drawn again, from the same seeds. then: made in each worker, gets the rows of
    every part before it is written, so that the next stage needn't read them.
    """
    row_bytes = config.image_shape.num_bytes
    layout = offspring.layout
    draws = np.full(layout.num_samples, -1, dtype=np.int64)
    if parents is not None and config.votes.reuse_lookahead:
        draws = lookahead_draws(offspring, config.votes.lookahead)
    requests: list[Request] = [
        {
            "start": start,
            "stop": stop,
            "parents": offspring.parents[start:stop],
            "copies": offspring.copies[start:stop],
            "draws": draws[start:stop],
            "labels": layout.labels(start, stop),
        }
        for start, stop in part_ranges(layout.num_samples, row_bytes, config.output.rows_per_part)
    ]
    arguments = {
        "config": config,
        "iteration": iteration,
        "directory": str(directory),
        "parents": str(parents.directory) if parents else None,
        "kept": str(kept) if kept and manifest_of(kept) else None,
        "then": then,
    }
    extra = {
        "label_counts": list(layout.counts),
        "iteration": iteration,
        "variations": int((offspring.copies > 0).sum()),
        "reused_draws": int((draws >= 0).sum()),
    }
    name = f"population {iteration}"
    run_stage(
        name, directory, "parquet", requests, PopulationWorker, arguments, config.resources, extra
    )
    return Population(iteration=iteration, layout=layout, directory=directory)


class FinalWorker(PartWorker):
    """Makes parts of the final set or its expansion: PNG images and labels."""

    def __init__(
        self,
        config: Config,
        directory: str,
        population: str,
        num_samples: int,
        num_parents: int,
        form: Format,
        teacher: str,
    ) -> None:
        self._config = config
        self._directory = location(directory)
        self._population = location(population)
        self._num_samples, self._num_parents = num_samples, num_parents
        self._form = form
        self._plugin = config.generator_at(config.schedule.iterations)
        self._generator: BatchedGenerator | None = None
        self._teacher = load_teacher(config, location(teacher))

    def make(self, request: Mapping[str, Any]) -> Part:
        config, start, stop = self._config, request["start"], request["stop"]
        ids = np.arange(start, stop, dtype=np.int64)
        parents = final_parents(ids, self._num_samples, self._num_parents)
        rows = read_population(self._population, parents, self._plugin.options)
        if request["vary"]:
            if self._generator is None:
                batch_size, names = config.resources.batch_size, config.private.labels
                self._generator = BatchedGenerator(self._plugin, names, batch_size)
            purpose: Purpose = "expansion"
            seeds = row_seeds(config.schedule.seed, purpose, config.schedule.iterations, ids)
            rows = self._generator.vary(rows, config.schedule.degree_list[-1], seeds)
        labels = rows["label"]
        if self._teacher is not None:
            labels = self._teacher.labels(rows["image"])
        pngs = [png(image) for image in rows["image"]]
        content = export_part(
            self._form, self._directory, start, pngs, labels, config.private.labels
        )
        return write_part(self._directory, start, stop, SUFFIXES[self._form], content)


def write_final(
    config: Config,
    directory: Location,
    population: Population,
    num_samples: int,
    teacher: Location,
    *,
    vary: bool,
    form: Format = "parquet",
) -> None:
    """The population itself, or `num_samples` further variations of it, for users to read.

    With `config.teacher`, the one in the folder `teacher` labels the images; parents: see
    `final_parents`.
    """
    row_bytes = config.image_shape.num_bytes
    ranges = part_ranges(num_samples, row_bytes, config.output.rows_per_part)
    requests: list[Request] = [{"start": a, "stop": b, "vary": vary} for a, b in ranges]
    arguments = {
        "config": config,
        "directory": str(directory),
        "population": str(population.directory),
        "num_samples": num_samples,
        "num_parents": population.layout.num_samples,
        "form": form,
        "teacher": str(teacher),
    }
    extra = {"fingerprint": config.fingerprint, "labels": list(config.private.labels)}
    name = "expansion" if vary else "final set"
    run_stage(
        name, directory, SUFFIXES[form], requests, FinalWorker, arguments, config.resources, extra
    )


def final_parents(ids: NDArray[np.int64], num_samples: int, num_parents: int) -> NDArray[np.int64]:
    """Which sample of S_T each of the rows `ids` of `num_samples` stems from, [n].

    Rounds of all in order, then evenly spaced ones: populations are in label order, so the labels'
    shares hold for any number of rows.
    """
    whole_rounds = num_samples - num_samples % num_parents
    rest = max(num_samples % num_parents, 1)
    return np.where(
        ids < whole_rounds, ids % num_parents, (ids - whole_rounds) * num_parents // rest
    )


def layout_of(directory: Location) -> LabelLayout | None:
    """The layout of a complete population on disk, None where there is none."""
    counts = (manifest_of(directory) or {}).get("label_counts")
    if not isinstance(counts, list) or not all(type(count) is int for count in counts):
        return None
    return LabelLayout(counts=tuple(counts))
