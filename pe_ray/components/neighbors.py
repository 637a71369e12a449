"""Nearest neighbours of public images among themselves: exact, in bounded memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

_BLOCK_VALUES = 1 << 23  # candidates' coordinates at a time, as float64: 64 MiB
_MARGIN = 8  # candidates asked for beyond those wanted


def write_neighbors(file: Path, vectors: Vectors, num_neighbors: int) -> None:
    """Write int32 [n, num_neighbors] to `file` (.npy): each row's nearest other rows, in order.

    vectors: float32 [n, d]; num_neighbors < n. By l2, computed in float64 from the two vectors;
    the lowest row first where distances are equal. faiss proposes candidates by faster float32
    products. Where the last one is not further than the last wanted by more than rounding, more are
    asked for, so that the result depends on the vectors alone, not on blocks or threads.
    """
    import faiss

    num, dim = vectors.shape
    assert 0 < num_neighbors < num
    centred = vectors - vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    index = faiss.IndexFlatL2(dim)
    index.add(centred)
    shape = (num, num_neighbors)
    table = np.lib.format.open_memmap(file, mode="w+", dtype=np.int32, shape=shape)
    slack = _slack(centred)
    todo, wanted = np.arange(num), min(num, num_neighbors + 1 + _MARGIN)
    while len(todo):
        unsure = []
        rows = max(1, _BLOCK_VALUES // (wanted * dim))
        for start in range(0, len(todo), rows):
            queries = todo[start : start + rows]
            scores, candidates = index.search(centred[queries], wanted)
            distances = _exact(vectors, queries, candidates)
            distances[candidates == queries[:, None]] = np.inf  # not of itself
            order = np.lexsort((candidates, distances), axis=1)[:, :num_neighbors]
            table[queries] = np.take_along_axis(candidates, order, axis=1)
            if wanted < num:
                last = np.take_along_axis(distances, order[:, -1:], axis=1)[:, 0]
                unsure.append(queries[scores[:, -1] <= last + slack])
        todo = np.concatenate(unsure) if unsure else todo[:0]
        wanted = min(num, 2 * wanted)
    table.flush()


def _slack(centred: Vectors) -> float:
    """At least the error of a squared distance that faiss computes as |x|^2 + |y|^2 - 2 x.y.

    Each of the three sums of d products is off by at most d eps times the sum of magnitudes
    (Higham 2002, section 3.1), and centring moved each coordinate by an eps of its own.
    """
    largest = float(np.square(centred, dtype=np.float64).sum(axis=1).max())
    return float(8 * (centred.shape[1] + 8) * np.finfo(np.float32).eps * largest)


def _exact(
    vectors: Vectors, queries: NDArray[np.int64], candidates: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Squared distances [q, c] in float64, each a sum in the same order whatever the block."""
    found = np.empty(candidates.shape)
    for row, (query, others) in enumerate(zip(queries, candidates, strict=True)):
        apart = vectors[others].astype(np.float64) - vectors[query]
        found[row] = np.square(apart, out=apart).sum(axis=1)
    return found
