"""Sums over private records that a search may pay for: closeness to a population, and moments.

Counted inside Ray tasks; the driver holds references only, and hands them to the aggregator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import ray

from pe_ray.components.metrics.moments import MomentsSpec, moment_vectors
from pe_ray.config.blocks import VotesConfig
from pe_ray.files.storage import Location
from pe_ray.private.moments import summed
from pe_ray.private.record_sources import joined
from pe_ray.private.records import EmbeddedRecords, PrivateRecords
from pe_ray.private.sums import RawSums, clipped_sums
from pe_ray.private.tasks import guarded, private_task
from pe_ray.private.votes import nearest_distances
from pe_ray.values import LabelLayout


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

    def closeness(pieces: Sequence[EmbeddedRecords]) -> RawSums:
        distances = nearest_distances(pieces, parts, layout, votes)
        users = joined([piece.users for piece in pieces])
        return clipped_sums(1.0 - np.minimum(distances, clip)[:, None] / clip, users)

    return _cast(records, closeness)


def cast_moments(records: PrivateRecords, spec: MomentsSpec) -> list[ray.ObjectRef]:
    """Start summing moment vectors (see components.moments); references to RawSums.

    Guarantee: a record adds a vector of norm at most 1, a user the mean of the user's.
    """

    def moments(pieces: Sequence[EmbeddedRecords]) -> RawSums:
        return summed(pieces, partial(moment_vectors, spec=spec), spec.num_values)

    return _cast(records, moments)


def _cast(
    records: PrivateRecords, add_up: Callable[[Sequence[EmbeddedRecords]], RawSums]
) -> list[ray.ObjectRef]:
    stall_seconds = records.stall_seconds

    def guarded_sum(*pieces: EmbeddedRecords) -> RawSums:
        with guarded("summing", stall_seconds):
            return add_up(pieces)

    task = private_task(guarded_sum, records.node_label)
    return [task.remote(*pieces) for pieces in records.partitions]
