"""Releases of sums that a search pays for, each once: afterwards the ledger answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pe_ray.components.metrics.moments import MomentsSpec
from pe_ray.config.blocks import VotesConfig
from pe_ray.files.storage import Location
from pe_ray.private.records import PrivateRecords
from pe_ray.private.scores import cast_closeness, cast_moments
from pe_ray.release.aggregator import answer
from pe_ray.values import LabelLayout, NoisySums, Release


def release_closeness(
    aggregator: Any,
    release: Release,
    records: PrivateRecords,
    parts: Sequence[tuple[Location, int, int]],
    layout: LabelLayout,
    votes: VotesConfig,
    clip: float,
) -> NoisySums:
    """The noisy sum of the records' closeness to a population (see private.scores).

    Guarantee: one value of sensitivity 1 under adding or removing one unit, with discrete Gaussian
    noise of `release.sigma`, charged before it is drawn.
    """
    partials = cast_closeness(records, parts, layout, votes, clip)
    noisy: NoisySums = answer(aggregator.release_sums.remote(release, 1, partials))
    return noisy


def release_moments(
    aggregator: Any, release: Release, records: PrivateRecords, spec: MomentsSpec
) -> NoisySums:
    """Noisy moments of the records (see components.moments).

    Guarantee: a vector of L2 sensitivity 1 under adding or removing one unit, with discrete
    Gaussian noise of `release.sigma` on each value, charged before it is drawn.
    """
    partials = cast_moments(records, spec)
    noisy: NoisySums = answer(aggregator.release_sums.remote(release, spec.num_values, partials))
    return noisy
