"""Draw and vary populations: RANDOM_API and VARIATION_API over a pool of workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_ray.config import Config
from pe_ray.files.parts import Part, read_manifest, write_part
from pe_ray.files.storage import Location, delete_tree
from pe_ray.plugins import Rows
from pe_ray.plugins.seeds import row_seeds
from pe_ray.run_context import RunContext
from pe_ray.runtime.stages import Stage, run_stage
from pe_ray.runtime.workers import PartWorker, check_plugins
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

    InputError where one can't be built, so that nothing is spent on a run that can't go on.
    """
    early = None if config.draws_after_release else config.generator_at(0)
    made = (config.generator_at(t) for t in range(config.schedule.iterations + 1))
    late = [plugin for plugin in made if plugin != early]
    check_plugins(late, config.private.labels, config.resources)


def draw_population(
    run: RunContext, layout: LabelLayout, *, embed_next: bool = False
) -> Population:
    """Draw S_0 with RANDOM_API (Lin et al. 2024, Algorithm 1, line 1).

    embed_next: embed the samples for the next votes in the workers that make them.
    """
    fold = run.config.selection.initial_variation_fold
    return _make_population(run, 0, initial_offspring(layout, fold), embed_next)


def vary(
    run: RunContext, population: Population, offspring: Offspring, *, embed_next: bool = False
) -> Population:
    """Make S_t from the parents chosen in S_(t-1) with VARIATION_API (Algorithm 1, line 6).

    embed_next: as in `draw_population`.
    """
    made = _make_population(run, population.iteration + 1, offspring, embed_next)
    delete_tree(run.directory.lookahead(made.iteration))
    return made


def _make_population(
    run: RunContext, iteration: int, offspring: Offspring, embed_next: bool
) -> Population:
    """Make S_iteration on disk: random draws for S_0, offspring of S_(iteration-1) after that.

    With votes.reuse_lookahead, lookahead draws of the parents become children. Where their images
    are gone they are drawn again, from the same seeds.
    """
    config, layout = run.config, offspring.layout
    draws = np.full(layout.num_samples, -1, dtype=np.int64)
    if iteration and config.votes.reuse_lookahead:
        draws = lookahead_draws(offspring, config.votes.lookahead)
    requests = run.divide(
        layout.num_samples,
        parents=offspring.parents,
        copies=offspring.copies,
        draws=draws,
        labels=layout.labels(0, layout.num_samples),
    )
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
        self, run: RunContext, iteration: int, embedder: Callable[[], EmbeddingWorker] | None = None
    ) -> None:
        self._run, self._iteration = run, iteration
        kept = run.directory.lookahead(iteration)
        self._kept = kept if iteration and read_manifest(kept) else None
        self._generator = BatchedGenerator(run.generator_at(iteration), run.config)
        self._embedder = embedder() if embedder else None

    def make(self, request: Mapping[str, Any]) -> Part:
        start, stop, parents = request["start"], request["stop"], request["parents"]
        if self._iteration:
            rows = self._read(self._run.directory.population(self._iteration - 1), parents)
        else:
            rows = self._draw(parents, request["labels"])
        self._vary(rows, request)
        rows["id"] = np.arange(start, stop, dtype=np.int64)
        rows["parent"] = parents if self._iteration else np.full(len(parents), -1)
        content = population_part(rows, self._generator.options)
        if self._embedder is not None:
            self._embedder.write(rows, start, stop)
        directory = self._run.directory.population(self._iteration)
        return write_part(directory, start, stop, "parquet", content)

    def _draw(self, draws: NDArray[np.int64], labels: NDArray[np.int64]) -> Rows:
        """Return the random draw of each row; a family of S_0 shares one."""
        distinct, first, family = np.unique(draws, return_index=True, return_inverse=True)
        seeds = row_seeds(self._run.config.schedule.seed, "random", 0, distinct)
        if self._generator.options.numbers_draws:
            seeds = distinct.astype(np.uint64)
        made = self._generator.random(labels[first].astype(np.int32), seeds)
        return {name: values[family] for name, values in made.items()}

    def _read(self, directory: Location, ids: NDArray[np.int64]) -> Rows:
        options = self._generator.options
        rows = read_population(directory, ids, options)
        return {name: rows[name] for name in ("image", "label", *options.columns)}

    def _vary(self, rows: Rows, request: Mapping[str, Any]) -> None:
        """Replace all rows but kept parents by variations; add the column `degree`.

        Variations that were drawn as lookahead are read where they are still there.
        """
        config, iteration = self._run.config, self._iteration
        seed, degree = config.schedule.seed, config.schedule.degree_list[max(0, iteration - 1)]
        parents, copies, draws = request["parents"], request["copies"], request["draws"]
        ids = np.arange(request["start"], request["stop"], dtype=np.int64)
        seeds = row_seeds(seed, "variation", iteration, ids, copies)
        varied, drawn = copies > 0, draws >= 0
        rows["degree"] = np.where(varied, degree, np.nan).astype(np.float32)
        if drawn.any():
            seeds = np.where(drawn, row_seeds(seed, "lookahead", iteration, parents, draws), seeds)
        if drawn.any() and self._kept is not None:
            places = parents[drawn] * config.votes.lookahead + draws[drawn]
            _replace(rows, drawn, self._read(self._kept, places))
            varied = varied & ~drawn
        if varied.any():
            some = {name: values[varied] for name, values in rows.items()}
            _replace(rows, varied, self._generator.vary(some, degree, seeds[varied]))


def _replace(rows: Rows, where: NDArray[np.bool_], replacement: Rows) -> None:
    for name, values in replacement.items():
        rows[name][where] = values
