"""Sums of vectors that records are mapped to, clipped so that a unit moves them by at most 1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import ray
from numpy.typing import NDArray

from pe_ray.plugins import Statistic
from pe_ray.private.record_embeddings import EmbeddedRecords, PrivateRecords, join_users
from pe_ray.private.tasks import hide_private_errors, private_task
from pe_ray.runtime.watchdog import note_progress
from pe_ray.values import LATTICE

_ROOM = 2.0**-10
"""Share of the norm left free for rounding: of norms and means, and of other records' vectors,
which a network may round differently when a record is removed (docs/privacy.md, section 6)."""
_CHUNK_BYTES = 16 << 20  # of vectors at a time, as they may be long


@dataclass(frozen=True, slots=True, kw_only=True)
class RawSums:
    """Un-noised sums of one partition, int64 [n], in steps of 1 / LATTICE.

    Guarantee: adding or removing one unit (record, or user with all records) changes the sum over
    all partitions by a vector of L2 norm at most 1. The driver must never fetch it.
    """

    steps: NDArray[np.int64]


def sum_records(records: PrivateRecords, statistic: Statistic) -> list[ray.ObjectRef]:
    """Start summing `statistic` over all records; return one reference to RawSums per partition.

    Guarantee: see RawSums. It holds for the total because a user is in one partition only.
    """
    task = private_task(_sum_partition, records.node_label)
    return [task.remote(statistic, records.stall_seconds, *pieces) for pieces in records.partitions]


def _sum_partition(statistic: Statistic, stall_seconds: float, *pieces: EmbeddedRecords) -> RawSums:
    with hide_private_errors("summing", stall_seconds):
        return sum_pieces(pieces, statistic)


def sum_pieces(
    pieces: Sequence[EmbeddedRecords], statistic: Statistic, chunk_bytes: int = _CHUNK_BYTES
) -> RawSums:
    """Sum the vectors of a partition's records; a user adds the mean of the user's vectors.

    At most about `chunk_bytes` of vectors are in memory.

    Guarantee: a unit adds one vector, clipped to L2 norm 1 (see `clip_and_sum`).
    """
    features = np.concatenate([piece.features for piece in pieces])
    labels = np.concatenate([piece.labels for piece in pieces])
    users = join_users(pieces)
    steps = np.zeros(statistic.num_values, dtype=np.int64)
    size = max(1, chunk_bytes // (8 * statistic.num_values))

    def vectors_of(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        return statistic.map_records(features[rows].astype(np.float64), labels[rows])

    for rows in _group_units(len(labels), users, size):
        if users is None:
            vectors = vectors_of(rows)
        else:
            vectors = np.zeros((1, statistic.num_values))
            for start in range(0, len(rows), size):
                vectors += vectors_of(rows[start : start + size]).sum(axis=0)
            vectors /= len(rows)
        steps += clip_and_sum(vectors).steps
        note_progress()
    return RawSums(steps=steps)


def _group_units(
    num: int, users: NDArray[np.bytes_] | None, size: int
) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of each user; without users, all rows in groups of `size`."""
    order, edges = np.arange(num), np.arange(0, num, size)
    if users is not None:
        order = np.argsort(users, kind="stable")
        edges = np.unique(users[order], return_index=True)[1]
    yield from (rows for rows in np.split(order, edges[1:]) if len(rows))


def clip_and_sum(vectors: NDArray[np.float64]) -> RawSums:
    """Sum `vectors` (one per unit, [units, n]), each scaled down to L2 norm 1 if it is longer.

    Guarantee: see RawSums. A unit's vector gets at most norm 1 - 2^-10. Its components are rounded
    towards 0 to the lattice, which shortens it. A vector that is not finite counts as 0.
    """
    finite = np.isfinite(vectors).all(axis=1, keepdims=True)
    vectors = np.where(finite, vectors, 0.0)
    longest = np.abs(vectors).max(axis=1, initial=0.0, keepdims=True)  # squares must not overflow
    unit = vectors / np.where(longest > 0, longest, 1.0)
    with np.errstate(over="ignore"):  # a length of infinity makes the vector 0
        lengths = longest * np.sqrt(np.square(unit).sum(axis=1, keepdims=True))
    vectors = vectors / np.maximum(lengths, 1.0) * (1 - _ROOM)
    return RawSums(steps=np.trunc(vectors * LATTICE).astype(np.int64).sum(axis=0))
