"""Votes: each private record names its nearest synthetic samples of its own label.

A partition's votes are a pure function of (partition, embedding), counted inside a Ray task; the
driver holds references only, and hands them to the aggregator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
from numpy.typing import NDArray

from pe_ray.private.records import EmbeddedRecords, PrivateRecords
from pe_ray.private.search import Nearest, no_neighbors, search_block
from pe_ray.values import DistanceMetric, LabelLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class RawVotes:
    """Un-noised votes of one partition, sparse: `counts[i]` more votes for bin `ids[i]`.

    Guarantee: adding or removing one unit (record, or user with all records) changes the sum over
    all partitions by at most `votes_per_unit` ones in different bins: `l2_sensitivity` in L2.
    Never to be fetched by the driver.
    """

    ids: NDArray[np.int64]
    counts: NDArray[np.int64]
    votes_per_unit: int

    @property
    def l2_sensitivity(self) -> float:
        return math.sqrt(self.votes_per_unit)


def bounded_votes(
    choices: NDArray[np.int64],
    users: NDArray[np.bytes_] | None,
    limit: int,
) -> RawVotes:
    """Count `choices` (int64 [n, k]; bins a record votes for, -1 for none), bounded per unit.

    Without `users` every record gives one vote to each of its k = limit different bins. With
    `users` (one identity per record) each user gives one vote to each of the `limit` bins that
    most of the user's records chose (lowest bin on ties), over all labels together.

    Guarantee: a unit adds at most one vote to each of at most `limit` bins, whatever others do,
    so the L2 sensitivity of the sum is sqrt(limit) for adding or removing a unit.
    """
    rows, columns = np.nonzero(choices >= 0)
    bins = choices[rows, columns]
    if users is not None:
        identities = np.unique(users, return_inverse=True)[1][rows]
        pairs, times = np.unique(np.stack([identities, bins]), axis=1, return_counts=True)
        order = np.lexsort((pairs[1], -times, pairs[0]))
        user = pairs[0][order]
        rank = np.arange(len(user)) - np.searchsorted(user, user, side="left")
        bins = pairs[1][order][rank < limit]
    ids, counts = np.unique(bins, return_counts=True)
    return RawVotes(ids=ids, counts=counts.astype(np.int64), votes_per_unit=limit)


def cast_votes(
    records: PrivateRecords,
    parts: Sequence[tuple[Path, int, int]],
    layout: LabelLayout,
    metric: DistanceMetric,
    neighbors: int,
    limit: int,
) -> list[ray.ObjectRef]:
    """Start counting; returns one reference to RawVotes per partition.

    parts: (.npy file, first id, one past last id) of the synthetic embedding, in id order.

    Guarantee: see `bounded_votes`; a user's records are all in one partition, so the bound holds
    for the sum.
    """
    count = ray.remote(num_cpus=1)(_count_partition)
    return [
        count.remote(tuple(parts), layout, metric, neighbors, limit, *pieces)
        for pieces in records.partitions
    ]


def count_labels(records: PrivateRecords, limit: int) -> list[ray.ObjectRef]:
    """Start counting records per label (bin = label); one reference to RawVotes per partition.

    Guarantee: see `bounded_votes`; record level counts each record once (limit 1).
    """
    count = ray.remote(num_cpus=1)(_count_labels)
    return [count.remote(limit, *pieces) for pieces in records.partitions]


def nearest_samples(
    features: NDArray[np.float32],
    labels: NDArray[np.int32],
    parts: Sequence[tuple[Path, int, int]],
    layout: LabelLayout,
    metric: DistanceMetric,
    neighbors: int,
) -> NDArray[np.int64]:
    """Ids of each record's nearest samples of its label, int64 [n, neighbors], -1 where none."""
    order = np.argsort(labels, kind="stable")
    edges = np.searchsorted(labels[order], np.arange(len(layout.counts) + 1))
    queries = [features[order[edges[i] : edges[i + 1]]] for i in range(len(layout.counts))]
    best: list[Nearest] = [no_neighbors(len(query), neighbors) for query in queries]
    for file, start, stop in parts:
        block = np.load(file, mmap_mode="r", allow_pickle=False)
        for label in np.unique(layout.labels(start, stop)):
            if len(queries[label]) == 0:
                continue
            low, high = layout.label_range(int(label))
            low, high = max(low, start), min(high, stop)
            samples = np.ascontiguousarray(block[low - start : high - start])
            best[label] = search_block(queries[label], samples, low, best[label], metric)
    choices = np.full((len(labels), neighbors), -1, dtype=np.int64)
    if best:
        choices[order] = np.concatenate([nearest.ids for nearest in best])
    return choices


def _count_partition(
    parts: Sequence[tuple[Path, int, int]],
    layout: LabelLayout,
    metric: DistanceMetric,
    neighbors: int,
    limit: int,
    *pieces: EmbeddedRecords,
) -> RawVotes:
    try:
        choices = [
            nearest_samples(piece.features, piece.labels, parts, layout, metric, neighbors)
            for piece in pieces
        ]
        return bounded_votes(np.concatenate(choices), _users(pieces), limit)
    except Exception as error:
        raise RuntimeError(f"counting votes failed: {type(error).__name__}") from None


def _count_labels(limit: int, *pieces: EmbeddedRecords) -> RawVotes:
    try:
        labels = np.concatenate([piece.labels for piece in pieces]).astype(np.int64)
        return bounded_votes(labels[:, None], _users(pieces), limit)
    except Exception as error:
        raise RuntimeError(f"counting labels failed: {type(error).__name__}") from None


def _users(pieces: Sequence[EmbeddedRecords]) -> NDArray[np.bytes_] | None:
    users = [piece.users for piece in pieces if piece.users is not None]
    return np.concatenate(users) if users else None
