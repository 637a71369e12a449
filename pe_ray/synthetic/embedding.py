"""Embeddings of a population, with lookahead: the mean embedding of k variations of each sample.

Lookahead variations are made and embedded in the same actor; their images never leave it. A part
is embedded by whoever made it, while its images are at hand; what is missing, after a crash or
where the next iteration has another generator, is embedded from the files.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_ray.config import Config
from pe_ray.files.parts import Part, commit, found_parts, manifest_of, part_ranges, write_part
from pe_ray.files.storage import Location, location
from pe_ray.plugins import Embedder, Rows
from pe_ray.plugins.seeds import row_seeds
from pe_ray.runtime.stages import PartWorker, Request, loaded, run_stage
from pe_ray.synthetic.learnt_embedder import with_learnt_embedder
from pe_ray.synthetic.population import Population
from pe_ray.synthetic.population_files import population_part, read_population
from pe_ray.synthetic.variation import BatchedGenerator
from pe_ray.values import LabelLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """Embeddings of a population on disk: .npy parts, float32 [rows, dim], in id order."""

    layout: LabelLayout
    directory: Location


class EmbeddingWorker(PartWorker):
    """Makes parts of an embedding."""

    def __init__(
        self, config: Config, iteration: int, directory: str, population: str, kept: str | None
    ) -> None:
        self._config = config
        self._iteration = iteration
        self._directory = location(directory)
        self._population = location(population)
        self._kept = location(kept) if kept else None
        self._embedder: Embedder = loaded(config.embedder)
        self._plugin = config.generator_at(iteration)
        self._generator = (
            BatchedGenerator(self._plugin, config.private.labels, config.resources.batch_size)
            if config.votes.lookahead
            else None
        )

    def make(self, request: Mapping[str, Any]) -> Part:
        start, stop = request["start"], request["stop"]
        ids = np.arange(start, stop, dtype=np.int64)
        rows = read_population(self._population, ids, self._plugin.options)
        return self.write(rows, start, stop)

    def write(self, rows: Rows, start: int, stop: int) -> Part:
        """Embed samples start..stop-1, which are at hand."""
        ids = np.arange(start, stop, dtype=np.int64)
        features, draws = self._embed(rows, ids)
        if not np.isfinite(features).all():
            raise ValueError("embedder made non-finite values of synthetic images")
        if self._kept is not None:  # first, so that a finished part has its draws
            content = population_part(_by_sample(draws, ids), self._plugin.options)
            count = len(draws)
            write_part(self._kept, start * count, stop * count, "parquet", content)
        sink = io.BytesIO()
        np.save(sink, features, allow_pickle=False)
        return write_part(self._directory, start, stop, "npy", sink.getvalue())

    def _embed(self, rows: Rows, ids: NDArray[np.int64]) -> tuple[NDArray[np.float32], list[Rows]]:
        """Embeddings, and the lookahead draws if they are to be kept."""
        if self._generator is None:
            return self._embedder.embed(rows["image"]), []
        schedule, count = self._config.schedule, self._config.votes.lookahead
        degree = schedule.degree_list[self._iteration - 1]
        total: NDArray[np.float64] | float = 0.0
        kept = []
        for copy in range(count):
            seeds = row_seeds(schedule.seed, "lookahead", self._iteration, ids, copy)
            varied = self._generator.vary(rows, degree, seeds)
            total = total + self._embedder.embed(varied["image"]).astype(np.float64)
            if self._kept is not None:
                kept.append(varied | {"degree": np.full(len(ids), degree, dtype=np.float32)})
        return np.asarray(total / count, dtype=np.float32), kept


def _by_sample(draws: list[Rows], ids: NDArray[np.int64]) -> Rows:
    """Draws [k] of rows [n] as rows [n * k]: the k draws of a sample one after the other."""
    merged = {
        name: np.stack([draw[name] for draw in draws], axis=1).reshape(
            -1, *draws[0][name].shape[1:]
        )
        for name in draws[0]
    }
    parents = ids.repeat(len(draws))
    copies = np.tile(np.arange(len(draws)), len(ids))
    return merged | {"id": parents * len(draws) + copies, "parent": parents}


def embedding_beside(
    config: Config, directory: Location, iteration: int, population: Location, kept: Location
) -> Callable[[], EmbeddingWorker] | None:
    """What embeds S_(iteration-1) for the votes of `iteration` in the workers that make it.

    None where these hold another generator than the lookahead needs.
    """
    config = with_learnt_embedder(config)
    before, after = config.generator_at(iteration - 1), config.generator_at(iteration)
    if config.votes.lookahead and before != after:
        return None
    return partial(EmbeddingWorker, **_arguments(config, directory, iteration, population, kept))


def _arguments(
    config: Config, directory: Location, iteration: int, population: Location, kept: Location
) -> dict[str, Any]:
    return {
        "config": config,
        "iteration": iteration,
        "directory": str(directory),
        "population": str(population),
        "kept": str(kept) if config.votes.reuse_lookahead else None,
    }


def embed(
    config: Config, directory: Location, iteration: int, population: Population, kept: Location
) -> Embedding:
    """Embed S_(iteration-1) for the votes of `iteration` (Lin et al. 2024, Alg. 2, line 3).

    With votes.reuse_lookahead the lookahead draws stay in the folder `kept`, laid out like a
    population: row i k + j is draw j of sample i.
    """
    config = with_learnt_embedder(config)
    row_bytes = config.image_shape.num_bytes
    layout, count = population.layout, config.votes.lookahead
    ranges = part_ranges(layout.num_samples, row_bytes, config.output.rows_per_part)
    requests: list[Request] = [{"start": start, "stop": stop} for start, stop in ranges]
    arguments = _arguments(config, directory, iteration, population.directory, kept)
    name = f"embedding {iteration}"
    run_stage(name, directory, "npy", requests, EmbeddingWorker, arguments, config.resources, {})
    if config.votes.reuse_lookahead and manifest_of(kept) is None:
        drawn = [(start * count, stop * count) for start, stop in ranges]
        found = found_parts(kept, drawn, "parquet")
        assert None not in found, "an embedded part has its draws"
        commit(kept, [part for part in found if part is not None], {})
    return Embedding(layout=layout, directory=directory)
