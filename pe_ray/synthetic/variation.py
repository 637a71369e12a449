"""Draw and vary populations: RANDOM_API and VARIATION_API over a pool of workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_ray.config import Config
from pe_ray.files.parts import Part, divide_rows, read_manifest, write_part
from pe_ray.files.storage import delete_tree
from pe_ray.plugins import Rows
from pe_ray.plugins.seeds import row_seeds
from pe_ray.run import Run
from pe_ray.runtime.stages import PartWorker, Request, Stage, check_plugins, run_stage
from pe_ray.synthetic.batching import BatchedGenerator
from pe_ray.synthetic.embedding import EmbeddingWorker, embed_while_varying
from pe_ray.synthetic.population import (
    Offspring,
    Population,
    initial_offspring,
    lookahead_draws,
)
from pe_ray.synthetic.population_files import population_part, read_population
from pe_ray.values import LabelLayout


def check_generators(config: Config) -> None:
    """Build the generators that would first be built after something was released.

    They are built where they will run; InputError where one can't be built. So nothing is spent on
    a run that can't go on.
    """
    early = None if config.privacy.label_fractions == "dp" else config.generator_at(0)
    made = (config.generator_at(t) for t in range(config.schedule.iterations + 1))
    late = [plugin for plugin in made if plugin != early]
    check_plugins(late, config.private.labels, config.resources)


def draw_population(run: Run, layout: LabelLayout, *, embed_next: bool = False) -> Population:
    """Draw S_0 with RANDOM_API (Lin et al. 2024, Algorithm 1, line 1).

    embed_next: embed the samples for the next votes in the workers that make them.
    """
    fold = run.config.selection.initial_variation_fold
    return _make_population(run, 0, initial_offspring(layout, fold), None, embed_next)


def vary(
    run: Run, population: Population, offspring: Offspring, *, embed_next: bool = False
) -> Population:
    """Make S_t from the parents chosen in S_(t-1) with VARIATION_API (Algorithm 1, line 6).

    embed_next: as in `draw_population`.
    """
    made = _make_population(run, population.iteration + 1, offspring, population, embed_next)
    delete_tree(run.directory.lookahead(made.iteration))
    return made


def _make_population(
    run: Run,
    iteration: int,
    offspring: Offspring,
    parents: Population | None,
    embed_next: bool,
) -> Population:
    """Make S_iteration on disk: random draws for S_0, offspring of `parents` after that.

    With votes.reuse_lookahead, lookahead draws of `parents` become children. Where their images are
    gone they are drawn again, from the same seeds.
    """
    config, layout = run.config, offspring.layout
    draws = np.full(layout.num_samples, -1, dtype=np.int64)
    if parents is not None and config.votes.reuse_lookahead:
        draws = lookahead_draws(offspring, config.votes.lookahead)
    row_bytes, rows_per_part = config.image_shape.num_bytes, config.output.rows_per_part
    requests: list[Request] = [
        {
            "start": start,
            "stop": stop,
            "parents": offspring.parents[start:stop],
            "copies": offspring.copies[start:stop],
            "draws": draws[start:stop],
            "labels": layout.labels(start, stop),
        }
        for start, stop in divide_rows(layout.num_samples, row_bytes, rows_per_part)
    ]
    directory = run.directory.population(iteration)
    embedder = embed_while_varying(run, iteration + 1) if embed_next else None
    stage = Stage(
        name=f"population {iteration}",
        directory=directory,
        suffix="parquet",
        requests=requests,
        worker=partial(PopulationWorker, run, iteration, embedder),
        manifest={
            "label_counts": list(layout.counts),
            "iteration": iteration,
            "variations": int((offspring.copies > 0).sum()),
            "reused_draws": int((draws >= 0).sum()),
        },
    )
    run_stage(stage, config.resources)
    return Population(iteration=iteration, layout=layout, directory=directory)


class PopulationWorker(PartWorker):
    """Makes parts of S_iteration: random draws, kept parents and variations.

    embedder: called in each worker; what it returns gets the rows of every part before they are
    written.
    """

    def __init__(
        self, run: Run, iteration: int, embedder: Callable[[], EmbeddingWorker] | None = None
    ) -> None:
        self._run = run
        self._iteration = iteration
        kept = run.directory.lookahead(iteration)
        self._kept = kept if iteration and read_manifest(kept) else None
        plugin, batch_size = run.config.generator_at(iteration), run.config.resources.batch_size
        self._generator = BatchedGenerator(plugin, run.labels, batch_size)
        self._embedder = embedder() if embedder else None

    def make(self, request: Mapping[str, Any]) -> Part:
        start, stop = request["start"], request["stop"]
        rows = self._vary_parents(request) if self._iteration else self._draw_families(request)
        rows["id"] = np.arange(start, stop, dtype=np.int64)
        content = population_part(rows, self._generator.options)
        if self._embedder is not None:
            self._embedder.write(rows, start, stop)
        directory = self._run.directory.population(self._iteration)
        return write_part(directory, start, stop, "parquet", content)

    def _draw_families(self, request: Mapping[str, Any]) -> Rows:
        """Draw families of S_0: a random draw each, and its variations."""
        draws, copies = request["parents"], request["copies"]
        distinct, first = np.unique(draws, return_index=True)
        seeds = row_seeds(self._run.config.schedule.seed, "random", 0, distinct)
        made = self._generator.random(request["labels"][first].astype(np.int32), seeds)
        family = np.searchsorted(distinct, draws)
        rows = {name: values[family] for name, values in made.items()}
        self._vary_rows(rows, copies > 0, request)
        rows["parent"] = np.full(len(draws), -1, dtype=np.int64)
        return rows

    def _vary_parents(self, request: Mapping[str, Any]) -> Rows:
        """Read the parents and vary them, but for those that are kept or were drawn before."""
        parents, copies, draws = request["parents"], request["copies"], request["draws"]
        options = self._generator.options
        read = read_population(
            self._run.directory.population(self._iteration - 1), parents, options
        )
        rows = {name: read[name].copy() for name in ("image", "label", *options.columns)}
        again, reused = copies > 0, draws >= 0
        if self._kept is not None and reused.any():
            places = parents[reused] * self._run.config.votes.lookahead + draws[reused]
            kept = read_population(self._kept, places, options)
            _merge(rows, reused, {name: kept[name] for name in rows})
            again = again & ~reused
        self._vary_rows(rows, again, request)
        rows["parent"] = parents
        return rows

    def _vary_rows(self, rows: Rows, chosen: NDArray[np.bool_], request: Mapping[str, Any]) -> None:
        """Replace the rows `chosen` by variations; add the column `degree`."""
        schedule, iteration = self._run.config.schedule, self._iteration
        degree = schedule.degree_list[max(0, iteration - 1)]
        ids = np.arange(request["start"], request["stop"], dtype=np.int64)
        parents, copies, draws = request["parents"], request["copies"], request["draws"]
        seeds = row_seeds(schedule.seed, "variation", iteration, ids, copies)
        if (draws >= 0).any():
            drawn = row_seeds(schedule.seed, "lookahead", iteration, parents, draws)
            seeds = np.where(draws >= 0, drawn, seeds)
        if chosen.any():
            some = {name: values[chosen] for name, values in rows.items()}
            _merge(rows, chosen, self._generator.vary(some, degree, seeds[chosen]))
        rows["degree"] = np.where(copies > 0, degree, np.nan).astype(np.float32)


def _merge(rows: Rows, where: NDArray[np.bool_], replacement: Rows) -> None:
    for name, values in replacement.items():
        rows[name][where] = values
