"""Exact nearest neighbours of private embeddings in a block of synthetic ones.

faiss proposes candidates in float32; a float64 distance, computed directly from the two vectors,
decides. A rounding bound certifies that no row faiss left out can be among the k best; a query
without that certificate gets more candidates, and at last every row of the block. So the result is
a function of the data alone, not of blocks, batches or threads.

Distances (float64, of float32 vectors q and x):
    l2             sum((q - x)^2)
    cosine         1 - q.x / (|q| |x|); 1 if either is the zero vector
    inner_product  -q.x
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from pe_ray.values import DistanceMetric

Vectors = NDArray[np.float32]
Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

_PIECE_BYTES = 16 << 20  # of queries, or rows, prepared at a time
_PAIR_VALUES = 1 << 17  # float64 values of one batch of differences: 1 MiB, stays in cache
_SPARE = 3  # candidates beyond k; a query needs one to be certified
_WIDEN = 4
_MOST_CANDIDATES = 1024  # beyond, computing all distances of a query in float64 is as cheap


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """The best k samples of n queries so far, ordered by (distance, id).

    distances: float64 [n, k], ascending; inf where fewer than k samples exist.
    ids: int64 [n, k]; -1 where fewer than k samples exist.
    """

    distances: Floats
    ids: Ids


def no_neighbors(n: int, k: int) -> Nearest:
    """The state before any block: n queries, none of their k places taken.

    Guarantee: depends on the two sizes only; its content says nothing about any record.
    """
    return Nearest(
        distances=np.full((n, k), np.inf, dtype=np.float64),
        ids=np.full((n, k), -1, dtype=np.int64),
    )


def search_block(
    queries: Vectors, block: Vectors, first_id: int, nearest: Nearest, metric: DistanceMetric
) -> Nearest:
    """Merge samples `block` [m, d], ids first_id.., into the k best of `queries` [n, d].

    All values must be finite. Blocks may come in any order and size; each id at most once.

    Guarantee: row i of the result depends on query i (one private record) and on the samples
    alone, so a record moves only its own row. The result is un-noised: zone 1 only.
    """
    k = nearest.ids.shape[1]
    if k == 0:
        return nearest
    distances, ids = nearest.distances.copy(), nearest.ids.copy()
    for rows in _pieces(len(block), block.shape[1]):
        side = _BlockSide(block[rows], first_id + rows.start, k, metric)
        for part in _pieces(len(queries), max(block.shape[1], 8 * (k + _SPARE))):
            before = Nearest(distances=distances[part], ids=ids[part])
            merged = side.search(queries[part], before)
            distances[part], ids[part] = merged.distances, merged.ids
    return Nearest(distances=distances, ids=ids)


def _pieces(num: int, width: int) -> Iterator[slice]:
    """Slices that cover range(num), each of at most _PIECE_BYTES as float32 [., width]."""
    step = max(1, _PIECE_BYTES // (4 * max(width, 1)))
    return (slice(start, min(num, start + step)) for start in range(0, num, step))


class _BlockSide:
    """A block, prepared for many queries: distinct rows, their ids, float32 copy, error bound.

    Error bound. With u = 2^-24 and fl(.) faiss's float32 result, a dot product in any order of
    summation errs by at most gamma_d |a||b|, gamma_d = d u / (1 - d u) (Higham, Accuracy and
    Stability of Numerical Algorithms, 2nd ed., section 3.1). Hence |fl - true| is at most
        l2             (d + c) u (|q| + |x|)^2
        cosine         (d + c) u            (unit vectors, rounded to float32)
        inner_product  (d + c) u |q| |x|
    For l2, |q|^2 + |x|^2 - 2 q.x costs gamma_d (|q| + |x|)^2 and three roundings; rounding the
    centred vectors costs 2 u (|q| + |x|)^2 more (the centre itself is common and exact). Rounding
    unit vectors costs 2 u. c = 16 covers these, the second-order terms for d < 2^17, the float64
    roundings, and those of the norms. `_TINY` per coordinate covers underflow, flushed or gradual.
    """

    _C = 16
    _TINY = 2.0**-120
    _LARGEST = 2.0**125  # beyond, float32 intermediates may overflow: no bound then

    def __init__(self, block: Vectors, first_id: int, k: int, metric: DistanceMetric) -> None:
        self.metric = metric
        self.first_id = first_id
        self.rows, self.members = _distinct(np.ascontiguousarray(block), k)
        self.dim = block.shape[1]
        self.centre = np.zeros(self.dim, dtype=np.float32)
        if metric == "l2":  # an offset common to all vectors would drown the norm trick
            self.centre = self.rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.prepared, self.norms = self._prepare(self.rows)
        self.largest = float(self.norms.max())

    def search(self, queries: Vectors, before: Nearest) -> Nearest:
        """The k best of `before` and this block for some queries."""
        prepared, norms = self._prepare(queries)
        distances, ids = before.distances.copy(), before.ids.copy()
        k = ids.shape[1]
        todo = np.flatnonzero(np.isfinite(self._error(norms, self.largest)))
        rest = np.flatnonzero(~np.isfinite(self._error(norms, self.largest)))
        width = min(k + _SPARE, len(self.rows))
        while len(todo):
            if width > _MOST_CANDIDATES and width < len(self.rows):
                rest = np.concatenate([rest, todo])
                break
            unsettled = []
            step = max(1, _PIECE_BYTES // (64 * width))
            for start in range(0, len(todo), step):
                some = todo[start : start + step]
                found, settled = self._search_candidates(
                    queries[some],
                    prepared[some],
                    norms[some],
                    Nearest(distances=before.distances[some], ids=before.ids[some]),
                    width,
                )
                distances[some[settled]] = found.distances[settled]
                ids[some[settled]] = found.ids[settled]
                unsettled.append(some[~settled])
            todo = np.concatenate(unsettled)
            width = min(_WIDEN * width, len(self.rows))
        for i in rest:
            one = Nearest(distances=before.distances[[i]], ids=before.ids[[i]])
            found = self._search_all(queries[[i]], norms[[i]], one)
            distances[i], ids[i] = found.distances[0], found.ids[0]
        return Nearest(distances=distances, ids=ids)

    def _search_candidates(
        self, queries: Vectors, prepared: Vectors, norms: Floats, before: Nearest, width: int
    ) -> tuple[Nearest, NDArray[np.bool_]]:
        """Merge the best of `width` candidates; the second result [n] says which are certified."""
        n, k = before.ids.shape
        if self.metric == "l2":
            values, rows = faiss.knn(prepared, self.prepared, width, faiss.METRIC_L2)
            approximate = values.astype(np.float64)
        else:
            values, rows = faiss.knn(prepared, self.prepared, width, faiss.METRIC_INNER_PRODUCT)
            approximate = (1.0 if self.metric == "cosine" else 0.0) - values.astype(np.float64)
        error = self._error(norms[:, None], self.norms[rows])
        limit = before.distances[:, -1]
        if width >= k:  # k distinct rows are no farther than this
            limit = np.minimum(limit, (approximate[:, :k] + error[:, :k]).max(axis=1))
        wanted = approximate - error <= limit[:, None]
        query_of, column = np.nonzero(wanted)
        exact = np.full((n, width), np.inf)
        exact[query_of, column] = self._distances(queries, norms, query_of, rows[query_of, column])
        changed = np.flatnonzero(wanted.any(axis=1))
        columns = int(np.flatnonzero(wanted.any(axis=0)).max(initial=-1)) + 1
        distances, ids = before.distances.copy(), before.ids.copy()
        merged = self._merge(
            Nearest(distances=distances[changed], ids=ids[changed]),
            exact[changed, :columns],
            rows[changed, :columns],
        )
        distances[changed], ids[changed] = merged.distances, merged.ids
        if width == len(self.rows):
            return Nearest(distances=distances, ids=ids), np.ones(n, dtype=np.bool_)
        worst = distances[:, -1]
        # A row left out whose norm exceeds |q| + sqrt(worst) is too far by the triangle
        # inequality, so one outlier in the block doesn't spoil the bound of all queries.
        reach = np.full(n, self.largest)
        if self.metric == "l2":
            reach = np.minimum(reach, (norms + np.sqrt(worst)) * (1 + 2.0**-20))
        settled = worst < approximate[:, -1] - self._error(norms, reach)
        return Nearest(distances=distances, ids=ids), settled

    def _search_all(self, query: Vectors, norm: Floats, before: Nearest) -> Nearest:
        """Merge every row for one query, by float64 distances alone."""
        k = before.ids.shape[1]
        rows = np.arange(len(self.rows))
        exact = self._distances(query, norm, np.zeros_like(rows), rows)
        if k < len(rows):  # ties with the k-th are kept: their ids decide
            rows = np.flatnonzero(exact <= np.partition(exact, k - 1)[k - 1])
        return self._merge(before, exact[None, rows], rows[None])

    def _merge(self, before: Nearest, exact: Floats, rows: Ids) -> Nearest:
        """Best k of `before` and of the samples equal to `rows` [n, c] at distances `exact`."""
        n, k = before.ids.shape
        members = self.members[rows]  # [n, c, w]
        width = members.shape[1] * members.shape[2]
        absent = (members < 0) | np.isinf(exact)[:, :, None]
        new_ids = np.where(absent, -1, members + self.first_id).reshape(n, width)
        new_distances = np.where(absent, np.inf, exact[:, :, None]).reshape(n, width)
        distances = np.concatenate([before.distances, new_distances], axis=1)
        ids = np.concatenate([before.ids, new_ids], axis=1)
        order = np.lexsort((ids, distances), axis=1)[:, :k]
        return Nearest(
            distances=np.take_along_axis(distances, order, axis=1),
            ids=np.take_along_axis(ids, order, axis=1),
        )

    def _prepare(self, vectors: Vectors) -> tuple[Vectors, Floats]:
        """What faiss sees, float32 [n, d], and norms, float64 [n]: before scaling for cosine."""
        if self.metric == "cosine":
            norms = _norms(vectors)
            unit = vectors / np.where(norms > 0, norms, 1.0)[:, None]
            return unit.astype(np.float32), norms
        if self.metric == "inner_product":
            return np.ascontiguousarray(vectors), _norms(vectors)
        with np.errstate(over="ignore"):  # inf here: no error bound, so no use of float32
            centred = vectors - self.centre
        return centred, _norms(centred)

    def _error(self, query_norms: Floats, row_norms: Floats | float) -> Floats:
        """Bound on |float32 - float64 distance|; inf where float32 may overflow."""
        if self.metric == "cosine":
            query_norms, row_norms = np.ones_like(query_norms), np.ones_like(row_norms)
        scale = query_norms * row_norms
        if self.metric == "l2":
            scale = np.square(query_norms + row_norms)
        relative = (self.dim + self._C) * 2.0**-24
        tiny = self.dim * self._TINY * (1.0 + query_norms + row_norms)
        error = relative * scale + tiny
        return np.where(scale < self._LARGEST, error, np.inf)

    def _distances(self, queries: Vectors, norms: Floats, query_of: Ids, row_of: Ids) -> Floats:
        """The definition: float64 distances [p] of the pairs (query_of[i], row_of[i]).

        Sums run over a contiguous last axis, so a pair's bits don't depend on the pairs beside it.
        """
        exact = np.empty(len(query_of))
        step = max(1, _PAIR_VALUES // max(self.dim, 1))
        for start in range(0, len(exact), step):
            some = slice(start, start + step)
            q, x = queries[query_of[some]], self.rows[row_of[some]]
            if self.metric == "l2":
                difference = np.subtract(q, x, dtype=np.float64)
                exact[some] = np.square(difference, out=difference).sum(axis=-1)
            else:
                exact[some] = -np.multiply(q, x, dtype=np.float64).sum(axis=-1)
        if self.metric == "cosine":
            scale = norms[query_of] * self.norms[row_of]
            exact = 1.0 + exact / np.where(scale > 0, scale, np.inf)
        return exact


def _norms(vectors: Vectors) -> Floats:
    """Euclidean norms, float64 [n]."""
    return np.asarray(np.sqrt(np.multiply(vectors, vectors, dtype=np.float64).sum(axis=-1)))


def _distinct(block: Vectors, k: int) -> tuple[Vectors, Ids]:
    """Distinct rows [u, d] of `block` and, for each, the first k rows equal to it [u, w], -1 last.

    Without this step a sample copied more often than there are candidates would never settle.
    """
    words = np.multiply(block.view(np.uint32), _odd_numbers(block.shape[1]), dtype=np.uint64)
    hashes = np.sort(words.sum(axis=1, dtype=np.uint64))
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
