"""Moments of private records' features: what the teacher's release sums up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import ray
from numpy.typing import NDArray

from pe_ray.components.teacher_features import KIND, TeacherFeaturesOptions
from pe_ray.config import PrivateConfig
from pe_ray.moments import Moments
from pe_ray.private.records import EmbeddedRecords, open_records
from pe_ray.private.sums import RawSums, clipped_sums

_CHUNK_BYTES = 16 << 20  # of vectors at a time; a user's records stay together


def sum_moments(
    config: PrivateConfig,
    channels: int,
    features: TeacherFeaturesOptions,
    layout: Moments,
) -> list[ray.ObjectRef]:
    """Read the records again, map them to `features` and start summing their moments.

    Returns one reference to RawSums per partition. Nothing is cached: features are of one run.

    Guarantee: adding or removing one unit (user, if `config` names a user column) changes the total
    over all partitions by a vector of L2 norm at most 1 (`clipped_sums`), since all records of a
    user are in one partition.
    """
    records = open_records(
        config.model_copy(update={"cache": "none"}),
        channels=channels,
        embedder_kind=KIND,
        embedder_options=features,
    )
    task = ray.remote(num_cpus=1)(_sum_partition)
    return [task.remote(layout, *pieces) for pieces in records.partitions]


def moments_of(pieces: Sequence[EmbeddedRecords], layout: Moments) -> RawSums:
    """Sum of the packed moments of all records of a partition.

    Guarantee: as `clipped_sums`, with a user's mean taken over all the user's records.
    """
    features = np.concatenate([piece.features for piece in pieces]).astype(np.float64)
    labels = np.concatenate([piece.labels for piece in pieces])
    parts = [piece.users for piece in pieces if piece.users is not None]
    users = np.concatenate(parts) if parts else None
    steps = np.zeros(layout.num_values, dtype=np.int64)
    for rows in _chunks(len(labels), users, max(1, _CHUNK_BYTES // (8 * layout.num_values))):
        vectors = layout.pack(features[rows], labels[rows])
        steps += clipped_sums(vectors, None if users is None else users[rows]).steps
    return RawSums(steps=steps)


def _chunks(num: int, users: NDArray[np.bytes_] | None, size: int) -> Iterator[NDArray[np.int64]]:
    """Rows in chunks of about `size`; all rows of a user in one chunk, however many they are."""
    if num == 0:
        return
    if users is None:
        order, edges = np.arange(num), np.arange(0, num, size)
    else:
        order = np.argsort(users, kind="stable")
        first = np.unique(users[order], return_index=True)[1]
        _, kept = np.unique(first // size, return_index=True)
        edges = first[kept]
    for start, stop in zip(edges, [*edges[1:], num], strict=True):
        yield order[start:stop]


def _sum_partition(layout: Moments, *pieces: EmbeddedRecords) -> RawSums:
    try:
        return moments_of(pieces, layout)
    except Exception as error:
        raise RuntimeError(f"summing moments failed: {type(error).__name__}") from None
