"""Private Evolution (Lin et al., ICLR 2024, Algorithms 1 and 2), in the paper's order.

Every step returns at once when a start before this one has completed it, so the same call
continues after any crash: files of released values are complete or absent, and a histogram that
was released is read from the ledger, never drawn again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import ray

from pe_ray.cluster import connected, require_object_store
from pe_ray.config import Config
from pe_ray.errors import FaultError, InputError
from pe_ray.planning import (
    label_fractions,
    plan,
    planned_releases,
    require_affordable,
    votes_limit,
)
from pe_ray.private import records as private_records
from pe_ray.private.votes import cast_votes, count_labels
from pe_ray.progress import log_stage
from pe_ray.release.aggregator import create_aggregator
from pe_ray.release.ledger import Ledger
from pe_ray.release.ledger_copy import update_copy
from pe_ray.run_directory import RunDirectory, claimed, require_disk, write_config
from pe_ray.storage import Location, delete_tree
from pe_ray.synthetic import writer
from pe_ray.synthetic.embedding import EmbeddingWorker, embed, embedding_beside
from pe_ray.synthetic.population import (
    Population,
    apportion,
    fractions_of,
    initial_offspring,
    next_offspring,
)
from pe_ray.synthetic.scoring import check_reference, score_population
from pe_ray.synthetic.variation import REQUEST_BYTES, make_population, write_final
from pe_ray.values import NoisyHistogram, Release

logger = logging.getLogger(__name__)


def evolve(config: Config) -> Location:
    """Run Private Evolution, or continue it; returns the run directory.

    Guarantee: the run directory is (epsilon, delta)-DP for `config.privacy`'s unit under adding
    or removing one unit: it is post-processing of the releases in its ledger. Raises InputError
    before anything is spent when something given can't be used.
    """
    releases = planned_releases(config)
    check_reference(config)
    with claimed(config) as run, connected(config.resources, config.private.node_label):
        cost = plan(config)
        require_affordable(cost)
        require_disk(run.path, cost.disk_bytes, "output.path")
        asked = REQUEST_BYTES * max(config.schedule.sizes)
        require_object_store(asked, "schedule.num_samples", "a population's parents and labels")
        ledger = Ledger.create(run.ledger, config.privacy.budget, config.fingerprint)
        write_config(run, config)
        update_copy(ledger, run.ledger_copy)
        door = _Door(config, run, ledger, releases)
        layouts = [apportion(size, _fractions(config, door)) for size in config.schedule.sizes]
        offspring = initial_offspring(layouts[0], config.selection.initial_variation_fold)
        population = make_population(
            config, run.population(0), 0, offspring, None, None, door.embedding(1)
        )
        score_population(config, run.scores(0), population)
        for iteration in range(1, config.schedule.iterations + 1):
            histogram = door.votes(iteration, population)
            settings = config.selection.at(iteration)
            offspring = next_offspring(
                population, histogram, layouts[iteration], settings, config.schedule.seed
            )
            draws, then = run.lookahead(iteration), door.embedding(iteration + 1)
            population = make_population(
                config, run.population(iteration), iteration, offspring, population, draws, then
            )
            delete_tree(draws)
            score_population(config, run.scores(iteration), population)
            logger.info("iteration %d of %d: done", iteration, config.schedule.iterations)
        write_final(config, run.synthetic, population, population.layout.num_samples, vary=False)
    return run.path


class _Door:
    """The loop's side of the release: asks for a histogram, never sees what it was made from."""

    def __init__(
        self, config: Config, run: RunDirectory, ledger: Ledger, releases: tuple[Release, ...]
    ) -> None:
        self._config = config
        self._run = run
        self._ledger = ledger
        # What was charged stays as it was charged, should another version calibrate differently.
        charged = [entry.release for entry in ledger.entries()]
        self._releases = {release.key: release for release in (*releases, *charged)}
        if all(ledger.released(key) is not None for key in self._releases):
            return
        unit = config.privacy.unit
        private = config.private.model_copy(
            update={"user_column": config.private.user_column if unit == "user" else None}
        )
        self._records = private_records.open_records(
            private,
            channels=config.image_shape.channels,
            embedder_kind=config.embedder.kind,
            embedder_options=config.embedder.options,
            gpus=config.resources.gpus_per_worker,
            stall_seconds=config.resources.stall_seconds,
        )
        self._aggregator = create_aggregator(run.ledger)

    def label_counts(self) -> NoisyHistogram:
        """Release the number of records (or users) per label."""
        release = self._releases["label_counts"]
        num_labels = len(self._config.private.labels)
        return self._release(
            release, num_labels, lambda: count_labels(self._records, release.votes_per_unit)
        )

    def embedding(self, iteration: int) -> Callable[[], EmbeddingWorker] | None:
        """What embeds S_(iteration-1) while it is made, if it is to be voted on."""
        run, key = self._run, f"votes/{iteration:04d}"
        if key not in self._releases or self._ledger.released(key) is not None:
            return None
        made, kept = run.population(iteration - 1), run.lookahead(iteration)
        return embedding_beside(self._config, run.embedding(iteration), iteration, made, kept)

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
            gpus, stall = config.resources.gpus_per_worker, config.resources.stall_seconds
            limit = votes_limit(config)
            return cast_votes(self._records, parts, layout, config.votes, limit, gpus, stall)

        release = self._releases[f"votes/{iteration:04d}"]
        histogram = self._release(release, layout.num_samples, cast)
        self._run.write_histogram(histogram, layout)
        delete_tree(self._run.embedding(iteration))
        return histogram

    def _release(
        self, release: Release, num_bins: int, cast: Callable[[], list[ray.ObjectRef]]
    ) -> NoisyHistogram:
        stored = self._ledger.released(release.key)
        if stored is not None:
            return stored
        try:
            histogram: NoisyHistogram = ray.get(
                self._aggregator.release.remote(release, num_bins, cast())
            )
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError | FaultError):  # one line, without Ray's trace
                raise error.cause from None
            raise
        update_copy(self._ledger, self._run.ledger_copy)  # before anything is made from it
        # Without the time that it took, which depends on the records.
        log_stage(release.kind, iteration=release.iteration, state="released", sigma=release.sigma)
        return histogram


def _fractions(config: Config, door: _Door) -> tuple[float, ...]:
    public = label_fractions(config)
    return fractions_of(door.label_counts()) if public is None else public
