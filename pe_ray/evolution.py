"""Private Evolution (Lin et al., ICLR 2024, Algorithms 1 and 2), in the paper's order.

Every step returns at once when a start before this one has completed it, so the same call
continues after any crash: files of released values are complete or absent, and a histogram that
was released is read from the ledger, never drawn again.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import ray

from pe_ray.cluster import connected
from pe_ray.config import Config, PrivateConfig
from pe_ray.errors import InputError
from pe_ray.planning import label_fractions, plan, planned_releases, votes_limit
from pe_ray.private import records as private_records
from pe_ray.private.records import PrivateRecords
from pe_ray.private.votes import cast_votes, count_labels
from pe_ray.release.aggregator import create_aggregator
from pe_ray.release.ledger import Ledger
from pe_ray.run_directory import RunDirectory, claimed, require_disk, write_config
from pe_ray.synthetic import writer
from pe_ray.synthetic.embedding import embed
from pe_ray.synthetic.population import (
    Population,
    apportion,
    fractions_of,
    initial_offspring,
    next_offspring,
)
from pe_ray.synthetic.variation import make_population, write_final
from pe_ray.values import NoisyHistogram, Release

logger = logging.getLogger(__name__)


def evolve(config: Config) -> Path:
    """Run Private Evolution, or continue it; returns the run directory.

    Guarantee: the run directory is (epsilon, delta)-DP for `config.privacy`'s unit under adding
    or removing one unit: it is post-processing of the releases in its ledger. Raises InputError
    before anything is spent when something given can't be used.
    """
    releases = planned_releases(config)
    with claimed(config) as run, connected(config.resources):
        require_disk(run.path, plan(config).disk_bytes, "output.path")
        ledger = Ledger.create(run.ledger, config.privacy.budget, config.fingerprint)
        write_config(run, config)
        for _ in iterations(config, run, Door(config, run, ledger, releases)):
            pass
    return run.path


def iterations(config: Config, run: RunDirectory, door: Door) -> Iterator[Population]:
    """S_0, S_1, ..., S_T, each when it is complete; then the final set for readers."""
    layouts = [apportion(size, _fractions(config, door)) for size in config.schedule.sizes]
    offspring = initial_offspring(layouts[0], config.selection.initial_variation_fold)
    population = make_population(config, run.population(0), 0, offspring, None)
    yield population
    for iteration in range(1, config.schedule.iterations + 1):
        histogram = door.votes(iteration, population)
        settings = config.selection.at(iteration)
        offspring = next_offspring(
            population, histogram, layouts[iteration], settings, config.schedule.seed
        )
        draws = run.lookahead(iteration)
        population = make_population(
            config, run.population(iteration), iteration, offspring, population, draws
        )
        shutil.rmtree(draws, ignore_errors=True)
        logger.info("iteration %d of %d: done", iteration, config.schedule.iterations)
        yield population
    write_final(config, run.synthetic, population, population.layout.num_samples, vary=False)


class Door:
    """The loop's side of the release: asks for a histogram, never sees what it was made from.

    source: whose records vote, if not `config.private`; prefix: of the votes' keys in the ledger,
    where it holds several runs.
    """

    def __init__(
        self,
        config: Config,
        run: RunDirectory,
        ledger: Ledger,
        releases: Sequence[Release],
        *,
        source: PrivateConfig | None = None,
        prefix: str = "",
    ) -> None:
        self._config = config
        self._run = run
        self._ledger = ledger
        self._prefix = prefix
        # What was charged stays as it was charged, should another version calibrate differently.
        charged = {entry.release.key: entry.release for entry in ledger.entries()}
        self._releases = {r.key: charged.get(r.key, r) for r in releases}
        if all(ledger.stored(key) is not None for key in self._releases):
            return
        self.records = open_records(config, source)
        self.aggregator = create_aggregator(ledger.path)

    def label_counts(self) -> NoisyHistogram:
        """Release the number of records (or users) per label."""
        release = self._releases["label_counts"]
        num_labels = len(self._config.private.labels)
        return self._release(
            release, num_labels, lambda: count_labels(self.records, release.votes_per_unit)
        )

    def votes(self, iteration: int, population: Population) -> NoisyHistogram:
        """Release the votes of `iteration` for the samples of S_(iteration-1)."""
        config, layout = self._config, population.layout

        def cast() -> list[ray.ObjectRef]:
            embedding = embed(
                config,
                self._run.embedding(iteration),
                iteration,
                population,
                self._run.lookahead(iteration),
            )
            parts = [
                (embedding.directory / part.file, part.start, part.stop)
                for part in writer.parts_of(embedding.directory)
            ]
            gpus = config.resources.gpus_per_worker
            return cast_votes(self.records, parts, layout, config.votes, votes_limit(config), gpus)

        release = self._releases[f"{self._prefix}votes/{iteration:04d}"]
        histogram = self._release(release, layout.num_samples, cast)
        self._run.write_histogram(histogram, layout)
        shutil.rmtree(self._run.embedding(iteration), ignore_errors=True)
        return histogram

    def _release(
        self, release: Release, num_bins: int, cast: Callable[[], list[ray.ObjectRef]]
    ) -> NoisyHistogram:
        stored = self._ledger.released(release.key)
        if stored is not None:
            return stored
        histogram: NoisyHistogram = ray.get(
            self.aggregator.release.remote(release, num_bins, cast())
        )
        return histogram


def open_records(config: Config, source: PrivateConfig | None = None) -> PrivateRecords:
    """Read, validate and embed the records that vote; spends nothing (see private.records)."""
    private = source or config.private
    user_column = private.user_column if config.privacy.unit == "user" else None
    return private_records.open_records(
        private.model_copy(update={"user_column": user_column}),
        channels=config.image_shape.channels,
        embedder_kind=config.embedder.kind,
        embedder_options=config.embedder.options,
        gpus=config.resources.gpus_per_worker,
    )


def private_folder(config: Config) -> Path:
    """The folder (mode 0700) for what must not be published; InputError where there is none."""
    folder = private_records.checked_cache(config.private)
    if folder == "none":
        raise InputError(
            "private.cache: needed here, for what must not be published; name a folder"
        )
    return Path(folder)


def _fractions(config: Config, door: Door) -> tuple[float, ...]:
    public = label_fractions(config)
    return fractions_of(door.label_counts()) if public is None else public
