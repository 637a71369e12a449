"""Records drawn from those that voted and from held-out ones, and what is nearest to what.

Guarantee: stays inside zone 1, which includes whoever runs an audit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from pe_ray.components.nearest import NearestSearch
from pe_ray.private.record_embeddings import EmbeddedRecords, PrivateRecords, join_users
from pe_ray.private.tasks import hide_private_errors, private_task
from pe_ray.private.votes import group_partitions
from pe_ray.runtime.workers import fetch
from pe_ray.synthetic.embedding_files import EmbeddingPart, read_blocks

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
Members = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnRecords:
    """Records of units drawn at random, unit by unit, in random order.

    owner: int64 [records], ascending; the unit of each record.
    """

    records: EmbeddedRecords
    owner: Ids

    def only(self, kept: Members) -> DrawnRecords:
        """Return the sample with the `kept` records."""
        owner = np.unique(self.owner[kept], return_inverse=True)[1]
        return DrawnRecords(records=self.records.select(kept), owner=owner)


def draw_units(records: PrivateRecords, num_units: int) -> DrawnRecords:
    """Draw units at random, all of their records with them."""
    task = private_task(_draw_keys, records.node_label)
    drawn = [
        task.remote(num_units, number, records.stall_seconds, *pieces)
        for number, pieces in enumerate(group_partitions(records))
    ]
    found, keys = zip(*map(fetch, drawn), strict=True)
    merged, key = _keep_least(found, np.concatenate(keys), num_units)
    return DrawnRecords(records=merged, owner=np.unique(key, return_inverse=True)[1])


def _draw_keys(
    num_units: int, number: int, stall_seconds: float, *pieces: EmbeddedRecords
) -> tuple[EmbeddedRecords, NDArray[Any]]:
    """Return the records with the least keys, which are random, or a user's digest."""
    with hide_private_errors("drawing records", stall_seconds):
        keys: NDArray[Any] | None = join_users(pieces)
        if keys is None:
            num = sum(len(piece.labels) for piece in pieces)
            keys = np.random.default_rng(number).random(num)
        return _keep_least(pieces, keys, num_units)


def _keep_least(
    pieces: Sequence[EmbeddedRecords], keys: NDArray[Any], num: int
) -> tuple[EmbeddedRecords, NDArray[Any]]:
    """Return the records with the `num` least keys in their order, and these keys."""
    order = np.argsort(keys, kind="stable")
    order = order[np.isin(keys[order], np.unique(keys)[:num])]
    joined = EmbeddedRecords(
        features=np.concatenate([piece.features for piece in pieces]),
        labels=np.concatenate([piece.labels for piece in pieces]),
        users=join_users(pieces),
    )
    return joined.select(order), keys[order]


def measure_distances(
    records: PrivateRecords, last: Sequence[EmbeddingPart], held: DrawnRecords
) -> tuple[Floats, Floats, Members]:
    """Return distances to the nearest of all records that voted, of images and of held-out records.

    The last array says of which held-out records the user voted.
    """
    task, given = private_task(_measure, records.node_label), ray.put(held.records)
    results = [
        task.remote(last, given, records.stall_seconds, *pieces)
        for pieces in group_partitions(records)
    ]
    images, others, known = zip(*map(fetch, results), strict=True)
    return np.min(images, axis=0), np.min(others, axis=0), np.any(known, axis=0)


def _measure(
    last: Sequence[EmbeddingPart],
    held: EmbeddedRecords,
    stall_seconds: float,
    *pieces: EmbeddedRecords,
) -> tuple[Floats, Floats, Members]:
    with hide_private_errors("measuring distances", stall_seconds):
        features = [piece.features for piece in pieces]
        images = [find_nearest(block, features)[0] for block in read_embeddings(last)]
        known = np.zeros(len(held.labels), dtype=np.bool_)
        for piece in pieces:
            if held.users is not None and piece.users is not None:
                known |= np.isin(held.users, piece.users)
        return np.concatenate(images), find_nearest(held.features, features)[0], known


def read_embeddings(parts: Sequence[EmbeddingPart]) -> Iterator[NDArray[np.float32]]:
    """Yield the embeddings of all images in order, some at a time."""
    return (block for _, block in read_blocks(parts, 0, parts[-1][2]))


def find_nearest(
    queries: NDArray[np.float32], samples: Iterable[NDArray[np.float32]]
) -> tuple[Floats, Ids]:
    """Return the Euclidean distance of each query to its nearest sample, and that one's number."""
    search, first = NearestSearch(queries, 1, "l2"), 0
    for some in samples:
        search.add(some, first)
        first += len(some)
    return np.sqrt(search.distances[:, 0]), search.ids[:, 0]


def distances_to(parts: Sequence[EmbeddingPart], features: NDArray[np.float32]) -> Floats:
    """Return the distance of each row of `features` to the nearest image."""
    return find_nearest(features, read_embeddings(parts))[0]
