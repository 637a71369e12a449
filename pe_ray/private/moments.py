"""Moments of private records' features: what the teacher's release sums up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import ray
from numpy.typing import NDArray

from pe_ray.components.embedders.label_features import KIND, LearntFeaturesOptions
from pe_ray.components.second_moments import Moments
from pe_ray.config.blocks import PrivateConfig
from pe_ray.private.record_sources import joined
from pe_ray.private.records import EmbeddedRecords, open_records
from pe_ray.private.sums import RawSums, clipped_sums
from pe_ray.private.tasks import guarded, private_task
from pe_ray.runtime.watchdog import headway

_CHUNK_BYTES = 16 << 20  # of vectors at a time

Vectors = Callable[[NDArray[np.float64], NDArray[np.int32]], NDArray[np.float64]]
"""Features [n, d] and labels [n] -> vectors [n, num_values]."""


def sum_moments(
    config: PrivateConfig,
    channels: int,
    features: LearntFeaturesOptions,
    layout: Moments,
    stall_seconds: float,
) -> list[ray.ObjectRef]:
    """Read the records again, map them to `features` and start summing their moments.

    Returns one reference to RawSums per partition. Nothing is cached: features are of one run.
    stall_seconds: as in `open_records`.

    Guarantee: adding or removing one unit (user, if `config` names a user column) changes the total
    over all partitions by a vector of L2 norm at most 1 (`clipped_sums`), since all records of a
    user are in one partition.
    """
    records = open_records(
        config.model_copy(update={"cache": "none"}),
        channels=channels,
        embedder_kind=KIND,
        embedder_options=features,
        stall_seconds=stall_seconds,
    )
    task = private_task(_sum_partition, config.node_label)
    return [task.remote(layout, stall_seconds, *pieces) for pieces in records.partitions]


def moments_of(pieces: Sequence[EmbeddedRecords], layout: Moments) -> RawSums:
    """Sum of the packed moments of all records of a partition; of a user's records the mean.

    Guarantee: as `summed`.
    """
    return summed(pieces, layout.pack, layout.num_values)


def summed(pieces: Sequence[EmbeddedRecords], vectors: Vectors, num_values: int) -> RawSums:
    """Sum of the `vectors` of a partition's records, of a user's records their mean; a few at a
    time, as they may be long.

    Guarantee: as `clipped_sums`: a unit gives one vector, clipped to L2 norm 1.
    """
    features = np.concatenate([piece.features for piece in pieces])
    labels = np.concatenate([piece.labels for piece in pieces])
    users = joined([piece.users for piece in pieces])
    steps = np.zeros(num_values, dtype=np.int64)
    size = max(1, _CHUNK_BYTES // (8 * num_values))
    for rows in _units(len(labels), users, size):
        if users is not None:
            total = np.zeros((1, num_values))
            for start in range(0, len(rows), size):
                some = rows[start : start + size]
                total += vectors(features[some].astype(np.float64), labels[some]).sum(axis=0)
            made = total / len(rows)
        else:
            made = vectors(features[rows].astype(np.float64), labels[rows])
        steps += clipped_sums(made, None).steps
        headway()
    return RawSums(steps=steps)


def _units(num: int, users: NDArray[np.bytes_] | None, size: int) -> Iterator[NDArray[np.int64]]:
    """Rows of each user; without users, all rows in groups of `size`."""
    order, edges = np.arange(num), np.arange(0, num, size)
    if users is not None:
        order = np.argsort(users, kind="stable")
        edges = np.unique(users[order], return_index=True)[1]
    yield from (rows for rows in np.split(order, edges[1:]) if len(rows))


def _sum_partition(layout: Moments, stall_seconds: float, *pieces: EmbeddedRecords) -> RawSums:
    with guarded("summing moments", stall_seconds):
        return moments_of(pieces, layout)
