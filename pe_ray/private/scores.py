"""Sums over private records that a search may pay for: closeness to a population, and moments.

Counted inside Ray tasks; the driver holds references only, and hands them to the aggregator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import ray
from numpy.typing import NDArray

from pe_ray.blocks import VotesConfig
from pe_ray.components.moments import MomentsSpec, moment_vectors
from pe_ray.private.records import EmbeddedRecords, PrivateRecords
from pe_ray.private.sums import RawSums, clipped_sums
from pe_ray.private.tasks import guarded, private_task
from pe_ray.private.votes import nearest_distances
from pe_ray.storage import Location
from pe_ray.values import LabelLayout
from pe_ray.watchdog import headway


def cast_closeness(
    records: PrivateRecords,
    parts: Sequence[tuple[Location, int, int]],
    layout: LabelLayout,
    votes: VotesConfig,
    clip: float,
) -> list[ray.ObjectRef]:
    """Start summing 1 - min(d, clip) / clip over records, d the distance to the nearest sample of
    the record's label (0 where there is none); returns references to RawSums of one value.

    Guarantee: a record adds a number in [0, 1], a user the mean of the user's: sensitivity 1.
    """

    def closeness(pieces: Sequence[EmbeddedRecords]) -> NDArray[np.float64]:
        distances = nearest_distances(pieces, parts, layout, votes)
        return 1.0 - np.minimum(distances, clip)[:, None] / clip

    return _cast(records, closeness)


def cast_moments(records: PrivateRecords, spec: MomentsSpec) -> list[ray.ObjectRef]:
    """Start summing moment vectors (see components.moments); references to RawSums.

    Guarantee: a record adds a vector of norm at most 1, a user the mean of the user's.
    """

    def moments(pieces: Sequence[EmbeddedRecords]) -> NDArray[np.float64]:
        made = []
        for piece in pieces:
            made.append(moment_vectors(piece.features, piece.labels, spec))
            headway()
        return np.concatenate(made)

    return _cast(records, moments)


def _cast(
    records: PrivateRecords,
    vectors: Callable[[Sequence[EmbeddedRecords]], NDArray[np.float64]],
) -> list[ray.ObjectRef]:
    stall_seconds = records.stall_seconds

    def summed(*pieces: EmbeddedRecords) -> RawSums:
        with guarded("summing", stall_seconds):
            users = [piece.users for piece in pieces if piece.users is not None]
            return clipped_sums(vectors(pieces), np.concatenate(users) if users else None)

    task = private_task(summed, records.node_label)
    return [task.remote(*pieces) for pieces in records.partitions]
