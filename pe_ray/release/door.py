"""The door: the loop's only way to private records. It asks for releases.

It holds references to private records and hands references to what they answer to the aggregator,
which adds noise. It never sees what a release was made from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray

from pe_ray.config import Config
from pe_ray.config.blocks import PrivateConfig
from pe_ray.config.kinds import Plugin
from pe_ray.errors import InputError
from pe_ray.files.storage import parse_location
from pe_ray.plugins import Statistic
from pe_ray.private import record_embeddings as private_records
from pe_ray.private.record_embeddings import PrivateRecords
from pe_ray.private.sums import sum_records
from pe_ray.private.votes import cast_votes, count_labels
from pe_ray.release.aggregator import answer, create_aggregator
from pe_ray.release.ledger import Ledger
from pe_ray.release.ledger_copy import update_copy
from pe_ray.release.releases import LABEL_COUNTS, Votes, votes_key
from pe_ray.run_context import RunContext
from pe_ray.runtime.cluster import use_ray
from pe_ray.runtime.events import Event, emit
from pe_ray.synthetic.embedding import Embedding
from pe_ray.synthetic.scoring import public_tables
from pe_ray.values import NoisyHistogram, NoisySums, Release

_ANSWER_SECONDS = 600.0  # of the aggregator alone, which adds up in seconds


class Door:
    """Asks for the releases that were planned, each at most once.

    source: whose records vote, if not `config.private`. prefix: of the votes' keys in the ledger,
    where it holds several runs.

    Guarantee: what it returns was charged to the ledger before noise was drawn, and is the same
    whenever it is asked for. Nothing else of the private records leaves through it.
    """

    def __init__(
        self,
        run: RunContext,
        ledger: Ledger,
        releases: Sequence[Release],
        *,
        source: PrivateConfig | None = None,
        prefix: str = "",
    ) -> None:
        self._run, self._ledger, self._prefix = run, ledger, prefix
        self._source = source
        # What was charged stays as it was charged, should another version calibrate differently.
        charged = {entry.release.key: entry.release for entry in ledger.entries()}
        self._releases = {r.key: charged.get(r.key, r) for r in releases}
        if all(ledger.stored(key) is not None for key in self._releases):
            return
        use_ray()
        self.records = open_records(run.config, run.embedder, source)
        self.aggregator = create_aggregator(ledger.path)

    def awaits_votes(self, iteration: int) -> bool:
        """Tell whether the votes of `iteration` are planned and were not released yet."""
        key = votes_key(iteration, self._prefix)
        return key in self._releases and self._ledger.stored(key) is None

    def label_counts(self) -> NoisyHistogram:
        """Release the number of records (or users) per label."""
        release = self._releases[LABEL_COUNTS]

        def count() -> list[ray.ObjectRef]:
            return count_labels(self.records, release.votes_per_unit)

        counts: NoisyHistogram = self.ask(release, len(self._run.labels), count)
        return counts

    def votes(self, embedding: Embedding) -> NoisyHistogram:
        """Release the votes for the embedded samples (Lin et al. 2024, Algorithm 2, lines 1-5)."""
        config, layout = self._run.config, embedding.layout
        release = self._releases[votes_key(embedding.iteration, self._prefix)]

        def cast() -> list[ray.ObjectRef]:
            gpus, limit = config.resources.gpus_per_worker, Votes.limit(config)
            return cast_votes(self.records, embedding.parts(), layout, config.votes, limit, gpus)

        histogram: NoisyHistogram = self.ask(release, layout.num_samples, cast)
        self._run.directory.write_histogram(histogram, layout)
        return histogram

    def sums(self, key: str, embedder: Plugin, statistic: Statistic) -> NoisySums:
        """Release sums of the vectors that `statistic` maps records to.

        It is given embeddings by `embedder` and labels. Each vector counts with norm 1 at most.
        """

        def add_up() -> list[ray.ObjectRef]:
            records = self.records
            if embedder != self._run.embedder:
                records = open_records(self._run.config, embedder, self._source)
            return sum_records(records, statistic)

        sums: NoisySums = self.ask(self._releases[key], statistic.num_values, add_up)
        return sums

    def ask(
        self, release: Release, num_values: int, start: Callable[[], list[ray.ObjectRef]]
    ) -> Any:
        """Return the answer to `release`: what the ledger holds, or what the aggregator makes.

        start: starts tasks on the private records and returns references to what they add up, one
        for each partition. They are never fetched here.

        Guarantee: see `Aggregator.release`.
        """
        stored = self._ledger.released(release.key)
        if stored is not None:
            return stored
        partials = start()
        self._ledger.reserve(release)  # here, as the aggregator need not load the accounting then
        made = answer(
            self.aggregator.release.remote(release, num_values, partials),
            partials,
            min(_ANSWER_SECONDS, self._run.config.resources.stall_seconds),
        )
        update_copy(self._ledger, self._run.directory.ledger_copy)  # before anything uses it
        # Without the time that it took, which depends on the records.
        values = {"sigma": release.sigma}
        emit(Event(kind="release", name=release.kind, iteration=release.iteration, values=values))
        return made


def open_records(
    config: Config, embedder: Plugin, source: PrivateConfig | None = None
) -> PrivateRecords:
    """Read, validate and embed the records that vote; spend nothing.

    Guarantee: see `private.record_embeddings.open_records`.
    """
    cache, place = private_records.locate_cache(config.private), parse_location(config.output.path)
    if cache and isinstance(place, Path) and cache.resolve().is_relative_to(place.resolve()):
        raise InputError(
            f"private.cache: {cache} lies in output.path, which is publishable; name another folder"
        )
    private = source or config.private
    if config.privacy.unit != "user":
        private = private.model_copy(update={"user_column": None})
    if embedder.options.learnt:
        private = private.model_copy(update={"cache": "none"})  # embeddings are of one run
    return private_records.open_records(
        private,
        framing=config.framing,
        embedder=embedder,
        gpus=config.resources.gpus_per_worker,
        stall_seconds=config.resources.stall_seconds,
        shown=[table for table, _ in public_tables(config)],
    )
