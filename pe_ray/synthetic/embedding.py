"""Embed a population: each sample, or with lookahead the mean of k variations of each.

With votes.reuse_lookahead these variations stay on disk, laid out like a population: row i k + j is
the j-th of sample i.

A part is embedded by the worker that makes it, while its images are in memory. What is missing,
after a crash or where the next iteration has another generator, is embedded from the files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_ray.files.array_files import encode_array
from pe_ray.files.parts import (
    Part,
    commit,
    find_parts,
    list_parts,
    read_manifest,
    write_part,
)
from pe_ray.files.storage import Location, atomic_write, delete_tree
from pe_ray.plugins import Embedder, Rows, build
from pe_ray.plugins.seeds import row_seeds
from pe_ray.run_context import RunContext
from pe_ray.runtime.stages import Stage, run_stage
from pe_ray.runtime.workers import PartWorker
from pe_ray.synthetic.batching import BatchedGenerator
from pe_ray.synthetic.embedding_files import EmbeddingPart
from pe_ray.synthetic.population import Population
from pe_ray.synthetic.population_files import population_part, read_population
from pe_ray.values import LabelLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """The embedding of a population S_(t-1) for the votes of iteration t.

    It is made when its parts are first asked for: votes that were released before need none.
    """

    run: RunContext
    population: Population

    @property
    def iteration(self) -> int:
        """Iteration t whose votes are for these samples."""
        return self.population.iteration + 1

    @property
    def layout(self) -> LabelLayout:
        """Labels of the embedded samples."""
        return self.population.layout

    def parts(self) -> list[EmbeddingPart]:
        """Make the parts that are missing and return all, in id order."""
        run, iteration, votes = self.run, self.iteration, self.run.config.votes
        directory, kept = run.directory.embedding(iteration), run.directory.lookahead(iteration)
        stage = Stage(
            name=f"embedding {iteration}",
            directory=directory,
            suffix="npy",
            requests=run.divide(self.layout.num_samples),
            worker=partial(EmbeddingWorker, run, iteration, self.population.directory),
            check_found=True,  # once here, as tasks read each part many times
        )
        run_stage(stage, run.config.resources)
        if votes.reuse_lookahead and read_manifest(kept) is None:
            count = votes.lookahead
            ranges = [(part["start"] * count, part["stop"] * count) for part in stage.requests]
            found = find_parts(kept, ranges, "parquet")
            assert None not in found, "an embedded part has its draws"
            commit(kept, [part for part in found if part is not None], {})
        return [(directory / part.file, part.start, part.stop) for part in list_parts(directory)]

    def discard(self) -> None:
        """Delete the embedding; keep what its manifest says of its rows and seconds.

        Guarantee: it embeds released samples, so its time is post-processing. The votes that
        follow it depend on the private records and are not timed.
        """
        directory = self.run.directory.embedding(self.iteration)
        manifest = read_manifest(directory)
        if manifest is not None:
            kept = {name: manifest[name] for name in ("num_rows", "rows_made", "seconds")}
            file = self.run.directory.embedding_time(self.iteration)
            atomic_write(file, json.dumps(kept).encode())
        delete_tree(directory)


def embed(run: RunContext, population: Population) -> Embedding:
    """Describe the embedding of S_(t-1) that the records vote by (Algorithm 2, line 3)."""
    return Embedding(run=run, population=population)


class EmbeddingWorker(PartWorker):
    """Makes parts of the embedding for the votes of `iteration`."""

    def __init__(self, run: RunContext, iteration: int, population: Location) -> None:
        self._run, self._iteration, self._population = run, iteration, population
        embedder = run.embedder
        self._embedder: Embedder = build("embedder", embedder.kind, embedder.options)
        self._options = run.config.generator_at(iteration).options
        self._generator: BatchedGenerator | None = None
        if run.config.votes.lookahead:
            self._generator = BatchedGenerator(run.generator_at(iteration), run.config)

    def make(self, request: Mapping[str, Any]) -> Part:
        start, stop = request["start"], request["stop"]
        ids = np.arange(start, stop, dtype=np.int64)
        rows = read_population(self._population, ids, self._options)
        return self.write(rows, start, stop)

    def write(self, rows: Rows, start: int, stop: int) -> Part:
        """Embed the samples start..stop-1, whose rows are in memory."""
        ids = np.arange(start, stop, dtype=np.int64)
        features, draws = self._embed(rows, ids)
        if not np.isfinite(features).all():
            raise ValueError("embedder made non-finite values of synthetic images")
        directory = self._run.directory
        if draws:  # first, so that a finished part has its draws
            content = population_part(_by_sample(draws, ids), self._options)
            count = len(draws)
            lookahead = directory.lookahead(self._iteration)
            write_part(lookahead, start * count, stop * count, "parquet", content)
        place = directory.embedding(self._iteration)
        return write_part(place, start, stop, "npy", encode_array(features))

    def _embed(self, rows: Rows, ids: NDArray[np.int64]) -> tuple[NDArray[np.float32], list[Rows]]:
        """Return embeddings, and the lookahead draws if they are to be kept."""
        if self._generator is None:
            return self._embedder.embed(rows["image"]), []
        schedule, votes = self._run.config.schedule, self._run.config.votes
        degree = schedule.degree_list[self._iteration - 1]
        total: NDArray[np.float64] | float = 0.0
        kept = []
        for copy in range(votes.lookahead):
            seeds = row_seeds(schedule.seed, "lookahead", self._iteration, ids, copy)
            varied = self._generator.vary(rows, degree, seeds)
            total = total + self._embedder.embed(varied["image"]).astype(np.float64)
            if votes.reuse_lookahead:
                kept.append(varied | {"degree": np.full(len(ids), degree, dtype=np.float32)})
        return np.asarray(total / votes.lookahead, dtype=np.float32), kept


def _by_sample(draws: list[Rows], ids: NDArray[np.int64]) -> Rows:
    """Return draws [k] of rows [n] as rows [n * k]: the k draws of a sample follow each other."""
    merged = {}
    for name, first in draws[0].items():
        values = np.stack([draw[name] for draw in draws], axis=1)
        merged[name] = values.reshape(-1, *first.shape[1:])
    parents = ids.repeat(len(draws))
    copies = np.tile(np.arange(len(draws)), len(ids))
    return merged | {"id": parents * len(draws) + copies, "parent": parents}


def embed_while_varying(run: RunContext, iteration: int) -> Callable[[], EmbeddingWorker] | None:
    """Return the maker of a worker that embeds S_(iteration-1) while it is made.

    None where the workers that make it hold another generator than the lookahead needs.
    """
    before, after = run.config.generator_at(iteration - 1), run.config.generator_at(iteration)
    if run.config.votes.lookahead and before != after:
        return None
    return partial(EmbeddingWorker, run, iteration, run.directory.population(iteration - 1))
