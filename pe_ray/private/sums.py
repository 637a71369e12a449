"""Sums of vectors that records are mapped to, clipped so that a unit moves them by at most 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import ray
from numpy.typing import NDArray

from pe_ray.private.record_sources import joined
from pe_ray.private.records import EmbeddedRecords, PrivateRecords
from pe_ray.private.tasks import guarded, private_task
from pe_ray.runtime.watchdog import headway
from pe_ray.values import LATTICE

_CHUNK_BYTES = 16 << 20  # of vectors at a time

Vectors = Callable[[NDArray[np.float64], NDArray[np.int32]], NDArray[np.float64]]
"""Features [n, d] and labels [n] -> vectors [n, num_values]."""

_ROOM = 2.0**-10
"""Of the norm, left free for rounding: of norms and means, and for what a network's rounding moves
other records' vectors by when a record is removed (docs/privacy.md, section 6)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawSums:
    """Un-noised sums of one partition, int64 [n], in steps of 1 / LATTICE.

    Guarantee: adding or removing one unit (record, or user with all records) changes the sum over
    all partitions by a vector of L2 norm at most 1. Never to be fetched by the driver.
    """

    steps: NDArray[np.int64]


def clipped_sums(vectors: NDArray[np.float64], users: NDArray[np.bytes_] | None) -> RawSums:
    """Sum of `vectors` (float [records, n]), each scaled down to L2 norm 1 if it is longer.

    With `users` (one identity per record) a user adds the mean of the user's clipped vectors.

    Guarantee: see RawSums; a unit's vector gets at most norm 1 - 2^-10. Components are rounded
    towards 0 to the lattice, which shortens it; one that is not finite counts as 0.
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    finite = np.isfinite(vectors).all(axis=1, keepdims=True)
    vectors = np.where(finite, vectors, 0.0)
    longest = np.abs(vectors).max(axis=1, initial=0.0, keepdims=True)  # squares must not overflow
    unit = vectors / np.where(longest > 0, longest, 1.0)
    with np.errstate(over="ignore"):  # divided by infinity, the longest become 0
        lengths = longest * np.sqrt(np.square(unit).sum(axis=1, keepdims=True))
    vectors = vectors / np.maximum(lengths, 1.0) * (1 - _ROOM)
    if users is not None:
        _, first, user, counts = np.unique(
            users, return_index=True, return_inverse=True, return_counts=True
        )
        means = np.zeros((len(first), vectors.shape[1]))
        np.add.at(means, user, vectors / counts[user, None])
        vectors = means
    return RawSums(steps=np.trunc(vectors * LATTICE).astype(np.int64).sum(axis=0))


def sum_vectors(records: PrivateRecords, vectors: Vectors, num_values: int) -> list[ray.ObjectRef]:
    """Start summing the `vectors` of all records; returns one reference to RawSums per partition.

    Guarantee: adding or removing one unit changes the total over all partitions by a vector of L2
    norm at most 1 (`clipped_sums`), since all records of a user are in one partition.
    """
    task = private_task(_sum_partition, records.node_label)
    return [
        task.remote(vectors, num_values, records.stall_seconds, *pieces)
        for pieces in records.partitions
    ]


def _sum_partition(
    vectors: Vectors, num_values: int, stall_seconds: float, *pieces: EmbeddedRecords
) -> RawSums:
    with guarded("summing", stall_seconds):
        return sum_partition(pieces, vectors, num_values)


def sum_partition(pieces: Sequence[EmbeddedRecords], vectors: Vectors, num_values: int) -> RawSums:
    """Sum the `vectors` of a partition's records, of a user's records their mean.

    A few at a time, as they may be long.

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
