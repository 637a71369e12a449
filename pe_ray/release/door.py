"""The loop's side of the release: what private records answer, and nothing else of them.

The only place between the loop and the private zone: it holds references to private records and
hands references to their votes to the aggregator, which noises them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import ray

from pe_ray.config import Config
from pe_ray.config.blocks import PrivateConfig
from pe_ray.errors import InputError
from pe_ray.files.parts import parts_of
from pe_ray.files.storage import location
from pe_ray.private import records as private_records
from pe_ray.private.records import PrivateRecords
from pe_ray.private.sums import sum_moments
from pe_ray.private.votes import cast_votes, count_labels
from pe_ray.release.aggregator import answer, create_aggregator
from pe_ray.release.ledger import Ledger
from pe_ray.release.ledger_copy import update_copy
from pe_ray.release.releases import votes_limit
from pe_ray.runtime.progress import log_stage
from pe_ray.runtime.run_directory import RunDirectory
from pe_ray.synthetic.embedding import EmbeddingWorker, embed, embedding_beside
from pe_ray.synthetic.learnt_embedder import with_learnt_embedder
from pe_ray.synthetic.population import Population
from pe_ray.synthetic.teacher import fit_features, layout_of, write_teacher
from pe_ray.values import NoisyHistogram, Release


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
        self._voters = voters(config, source)
        self.records = open_records(config, source)
        self.aggregator = create_aggregator(ledger.path)

    def label_counts(self) -> NoisyHistogram:
        """Release the number of records (or users) per label."""
        release = self._releases["label_counts"]
        num_labels = len(self._config.private.labels)
        return self._release(
            release, num_labels, lambda: count_labels(self.records, release.votes_per_unit)
        )

    def embedding(self, iteration: int) -> Callable[[], EmbeddingWorker] | None:
        """What embeds S_(iteration-1) while it is made, if it is to be voted on."""
        run, key = self._run, f"{self._prefix}votes/{iteration:04d}"
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
                for part in parts_of(embedding.directory)
            ]
            gpus, limit = config.resources.gpus_per_worker, votes_limit(config)
            return cast_votes(self.records, parts, layout, config.votes, limit, gpus)

        release = self._releases[f"{self._prefix}votes/{iteration:04d}"]
        histogram = self._release(release, layout.num_samples, cast)
        self._run.write_histogram(histogram, layout)
        self._run.keep_embedding_time(iteration)
        return histogram

    def teacher(self, population: Population) -> None:
        """Release moments of the private records, in features learnt from S_T; solve them."""
        config, folder = self._config, self._run.teacher
        features, layout = fit_features(config, folder, population), layout_of(config)
        sums = self._ledger.released_sums("teacher")
        if sums is None:
            channels, release = config.image_shape.channels, self._releases["teacher"]
            stall = config.resources.stall_seconds
            partials = sum_moments(self._voters, channels, features, layout, stall)
            sums = answer(self.aggregator.release_sums.remote(release, layout.num_values, partials))
            self._published(release)
        write_teacher(config, folder, sums)

    def _release(
        self, release: Release, num_bins: int, cast: Callable[[], list[ray.ObjectRef]]
    ) -> NoisyHistogram:
        stored = self._ledger.released(release.key)
        if stored is not None:
            return stored
        histogram: NoisyHistogram = answer(
            self.aggregator.release.remote(release, num_bins, cast())
        )
        self._published(release)
        return histogram

    def _published(self, release: Release) -> None:
        update_copy(self._ledger, self._run.ledger_copy)  # before anything is made from it
        # Without the time that it took, which depends on the records.
        log_stage(release.kind, iteration=release.iteration, state="released", sigma=release.sigma)


def voters(config: Config, source: PrivateConfig | None = None) -> PrivateConfig:
    """Whose records vote, with the user column only where users are the unit."""
    private = source or config.private
    user_column = private.user_column if config.privacy.unit == "user" else None
    return private.model_copy(update={"user_column": user_column})


def open_records(config: Config, source: PrivateConfig | None = None) -> PrivateRecords:
    """Read, validate and embed the records that vote; spends nothing (see private.records)."""
    cache, run = private_records.cache_folder(config.private), location(config.output.path)
    if cache and isinstance(run, Path) and cache.resolve().is_relative_to(run.resolve()):
        raise InputError(
            f"private.cache: {cache} lies in output.path, which is publishable; name another folder"
        )
    config, private = with_learnt_embedder(config), voters(config, source)
    if config.embedder.options.learnt:
        private = private.model_copy(update={"cache": "none"})  # embeddings are of one run
    return private_records.open_records(
        private,
        channels=config.image_shape.channels,
        embedder_kind=config.embedder.kind,
        embedder_options=config.embedder.options,
        gpus=config.resources.gpus_per_worker,
        stall_seconds=config.resources.stall_seconds,
    )
