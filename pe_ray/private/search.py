"""Exact nearest neighbours of private embeddings among synthetic ones.

A scan proposes rows by fast low-precision arithmetic and proves (private/bounds.py) that it left
out none of the k best; a float64 distance, computed directly from the two vectors, decides among
the proposed. So the result is a function of the data alone: not of blocks, batches, threads,
precision or device.

Distances (float64, of float32 vectors q and x):
    l2             sum((q - x)^2)
    cosine         1 - q.x / (|q| |x|); 1 if either is the zero vector
    inner_product  -q.x
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pe_ray.private.bounds import Floats, Ids, Precision, Prepared, Scan, Vectors, prepared
from pe_ray.private.gpu_scan import GpuScan
from pe_ray.private.tile_scan import TileScan
from pe_ray.values import DistanceMetric

_BLOCK_BYTES = 64 << 20  # of samples prepared at a time
_QUERIES = 1024  # searched at a time: with 4096 rows their scores stay in cache (< 2^15)
_PAIR_VALUES = 1 << 17  # float64 values of one batch of differences: 1 MiB, stays in cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """The best k samples of n queries so far, ordered by (distance, id).

    distances: float64 [n, k], ascending; inf where fewer than k samples exist.
    ids: int64 [n, k]; -1 where fewer than k samples exist.
    """

    distances: Floats
    ids: Ids


class Search:
    """The k nearest samples of `queries` [n, d] among all blocks added so far.

    All values must be finite. `precision` is that of the scan: it changes the speed only.

    Guarantee: row i of the result depends on query i (one private record) and on the samples
    alone, so a record moves only its own row. The result is un-noised: zone 1 only.
    """

    def __init__(
        self,
        queries: Vectors,
        k: int,
        metric: DistanceMetric,
        precision: Precision = "float32",
    ) -> None:
        self._queries, self._k, self._metric, self._precision = queries, k, metric, precision
        self._norms = _norms(queries)
        self._distances = np.full((len(queries), k), np.inf)
        self._ids = np.full((len(queries), k), -1, dtype=np.int64)
        self._centre: Vectors | None = None

    @property
    def nearest(self) -> Nearest:
        """The result so far."""
        return Nearest(distances=self._distances, ids=self._ids)

    def add(self, block: Vectors, first_id: int) -> None:
        """Take in samples `block` [m, d] with ids first_id, first_id + 1, ...

        Blocks may come in any order and size; each id at most once.
        """
        if self._k == 0 or len(self._queries) == 0 or len(block) == 0:
            return
        if self._centre is None:  # common to all blocks, so that queries are prepared once
            self._centre = np.zeros(block.shape[1], dtype=np.float32)
            if self._metric == "l2":  # an offset of all vectors would drown their differences
                self._centre = block.mean(axis=0, dtype=np.float64).astype(np.float32)
            queries = prepared(self._queries, self._centre, self._metric)
            self._scan = _scan(queries, self._metric, self._precision)
        for rows in _pieces(len(block), max(1, _BLOCK_BYTES // (4 * block.shape[1] or 1))):
            distinct, members = _distinct(np.ascontiguousarray(block[rows]), self._k)
            self._add(distinct, members + (first_id + rows.start) * (members >= 0))

    def _add(self, rows: Vectors, ids: Ids) -> None:
        """Take in distinct rows [u, d]; ids [u, w] of the samples equal to each, -1 for none."""
        assert self._centre is not None
        row_norms = _norms(rows) if self._metric == "cosine" else np.empty(0)
        side = self._scan.side(prepared(rows, self._centre, self._metric))

        def exact(query_of: Ids, row_of: Ids) -> Floats:
            found = pair_distances(self._queries, rows, query_of, row_of, self._metric)
            if self._metric == "cosine":
                scale = self._norms[query_of] * row_norms[row_of]
                found = 1.0 + found / np.where(scale > 0, scale, np.inf)
            return found

        for part in _pieces(len(self._queries), _QUERIES):
            for query_of, row_of in self._scan.propose(
                side, part, self._k, lambda: self._distances[:, -1], exact
            ):
                distances = exact(query_of, row_of)
                wanted = distances <= self._distances[query_of, -1]
                self._merge(query_of[wanted], distances[wanted], ids[row_of[wanted]])

    def _merge(self, query_of: Ids, distances: Floats, ids: Ids) -> None:
        """Merge samples ids [p, w] (-1 for none) at distances [p] from queries query_of [p]."""
        changed, place = np.unique(query_of, return_inverse=True)
        here, taken = ids >= 0, self._ids[changed] >= 0
        copies = here.sum(axis=1)
        owner = np.concatenate([np.nonzero(taken)[0], place.repeat(copies)])
        all_distances = np.concatenate([self._distances[changed][taken], distances.repeat(copies)])
        all_ids = np.concatenate([self._ids[changed][taken], ids[here]])
        order = _order(owner, all_distances, all_ids)
        owner, all_distances, all_ids = owner[order], all_distances[order], all_ids[order]
        fresh = np.ones(len(order), dtype=np.bool_)  # a scan may propose a row twice
        fresh[1:] = (owner[1:] != owner[:-1]) | (all_ids[1:] != all_ids[:-1])
        owner, all_distances, all_ids = owner[fresh], all_distances[fresh], all_ids[fresh]
        rank = np.arange(len(owner)) - np.searchsorted(owner, owner, side="left")
        best = rank < self._k
        at = changed[owner[best]], rank[best]
        self._distances[at], self._ids[at] = all_distances[best], all_ids[best]


def _order(owner: Ids, distances: Floats, ids: Ids) -> Ids:
    """The order by (owner, distance, id), where owners are few; ties are rare, so ids wait."""
    order = np.argsort(distances)
    order = order[np.argsort(owner[order].astype(np.int16), kind="stable")]  # a radix sort
    ties = (np.diff(owner[order]) == 0) & (np.diff(distances[order]) == 0)
    return np.asarray(np.lexsort((ids, distances, owner)) if ties.any() else order)


def _scan(queries: Prepared, metric: DistanceMetric, precision: Precision) -> Scan:
    if precision == "faiss-gpu":
        return GpuScan(queries, metric)
    return TileScan(queries, metric, precision)


def pair_distances(
    queries: Vectors, rows: Vectors, query_of: Ids, row_of: Ids, metric: DistanceMetric
) -> Floats:
    """float64 [p]: l2 distances of the pairs (query_of[i], row_of[i]), else -q.x.

    Sums run over a contiguous last axis, so a pair's bits don't depend on the pairs beside it.

    Guarantee: entry i depends on query query_of[i] alone among private records; zone 1 only.
    """
    found = np.empty(len(query_of))
    step = max(1, _PAIR_VALUES // max(queries.shape[1], 1))
    for some in _pieces(len(found), step):
        q, x = queries[query_of[some]], rows[row_of[some]]
        if metric == "l2":
            difference = np.subtract(q, x, dtype=np.float64)
            found[some] = np.square(difference, out=difference).sum(axis=-1)
        else:
            found[some] = -np.multiply(q, x, dtype=np.float64).sum(axis=-1)
    return found


def _pieces(num: int, step: int) -> Iterator[slice]:
    return (slice(start, min(num, start + step)) for start in range(0, num, step))


def _norms(vectors: Vectors) -> Floats:
    """Euclidean norms, float64 [n]."""
    return np.asarray(np.sqrt(np.multiply(vectors, vectors, dtype=np.float64).sum(axis=-1)))


def _distinct(block: Vectors, k: int) -> tuple[Vectors, Ids]:
    """Distinct rows [u, d] of `block` and, for each, the first k rows equal to it [u, w], -1 last.

    Without this step every copy of a sample would be proposed wherever one is.
    """
    words = block.view(np.uint32)
    if block.shape[1] % 2 == 0:  # half the work
        words = block.view(np.uint64)
    hashes = np.sort(words.astype(np.uint64, copy=False) @ _odd_numbers(words.shape[1]))
    if block.shape[1] and not (hashes[1:] == hashes[:-1]).any():
        return block, np.arange(len(block), dtype=np.int64)[:, None]
    _, first, group, counts = np.unique(
        block.view(np.uint32), axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    order = np.argsort(group, kind="stable")
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = place < k
    members = np.full((len(first), min(k, int(counts.max()))), -1, dtype=np.int64)
    members[group[order][kept], place[kept]] = order[kept]
    return block[first], members


def _odd_numbers(num: int) -> NDArray[np.uint64]:
    """Fixed odd multipliers, shape [num]; equal rows hash alike, others hardly ever."""
    steps = np.arange(1, num + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (steps ^ (steps >> np.uint64(29))) | np.uint64(1)
