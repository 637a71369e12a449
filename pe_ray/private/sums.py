"""Sums of vectors that records are mapped to, clipped so that a unit moves them by at most 1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pe_ray.values import LATTICE

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
