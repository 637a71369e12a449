"""Exact k nearest neighbours: faiss proposes in float32, a float64 distance decides.

Pure arithmetic on arrays: the module knows nothing of records and keeps nothing between searches.
Votes give it private embeddings, inside zone 1 only; all other callers give it public ones.

Distances (float64, of float32 vectors q and x, summed in one fixed order):
    l2             sum((q - x)^2)
    cosine         1 - q.x / (|q| |x|); 1 if either is the zero vector
    inner_product  -q.x
The lowest id wins ties. So the result is a function of the data alone: not of blocks, batches,
threads or device.

faiss sees prepared vectors: centred at the block's mean for l2, scaled to norm 1 for cosine. Its
float32 value of a distance errs by at most e. With u = 2^-24, a sum of d products errs by at most
d u / (1 - d u) times the sum of their magnitudes (Higham, Accuracy and Stability of Numerical
Algorithms, 2nd ed., section 3.1). Therefore
    l2             e = 1.01 (d + 16) u (|q| + |x|)^2
    cosine         e = 1.01 (d + 16) u
    inner_product  e = 1.01 (d + 16) u |q| |x|
where 16 covers the roundings of preparation and result, and 1.01 the second order for d < 2^17.
Underflow adds at most 2^-120 per coordinate. A row whose value exceeds the k-th best float64
distance by more than e is no neighbour. Unless that holds for the last row that faiss proposes, it
proposes more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pe_ray.errors import InputError
from pe_ray.values import DistanceMetric

Vectors = NDArray[np.float32]
Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
_Propose = Callable[[Vectors, int], tuple[Vectors, Ids]]
"""Proposes so many rows of a block for each query: faiss's values and the rows, nearest first."""

_BLOCK_BYTES = 64 << 20  # of samples prepared at a time
_QUERIES = 2048  # at a time: their products with the 1024 rows that faiss takes stay in cache
_QUERY_VALUES = 1 << 17  # at a time: for fewer, faiss multiplies no matrices
_PAIRS = 1 << 19  # proposals at a time: about 20 MiB
_PAIR_VALUES = 1 << 16  # float64 values of one batch of differences: they stay in cache
_WIDEST = 2048  # proposals that faiss gives on a GPU; beyond, float64 settles all rows
_LARGEST = 2.0**120  # squared norms beyond may overflow float32


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """Distinct rows [u, d] of samples; members: ids [u, w] of samples equal to each, -1 for none.

    propose: searches the rows as faiss sees them, for l2 centred at `centre`; largest: of their
    norms.
    """

    rows: Vectors
    norms: Floats
    members: Ids
    centre: Vectors
    propose: _Propose
    largest: float


class NearestSearch:
    """The k nearest samples of `queries` [n, d] among all blocks added so far.

    All values must be finite. `on_gpu` lets faiss use a GPU where it finds one: the speed changes,
    the result doesn't. The result is ordered by (distance, id):

    distances: float64 [n, k], ascending; inf where fewer than k samples exist.
    ids: int64 [n, k]; -1 where fewer than k samples exist.

    Guarantee: row i of the result depends on query i and on the samples alone, so a private record
    moves only its own row. With private queries the result is un-noised: zone 1 only.
    """

    def __init__(
        self, queries: Vectors, k: int, metric: DistanceMetric, *, on_gpu: bool = False
    ) -> None:
        self._queries, self._k, self._metric = queries, k, metric
        self._norms = _norms(queries, metric)
        self._search, self._widest = _searcher(on_gpu, k)
        self.distances = np.full((len(queries), k), np.inf)
        self.ids = np.full((len(queries), k), -1, dtype=np.int64)

    def add(self, samples: Vectors, first_id: int) -> None:
        """Take in samples [m, d] with ids first_id, first_id + 1, ...

        Blocks may come in any order and size; each id at most once.
        """
        dim = max(1, samples.shape[1])
        if self._k == 0 or len(self._queries) == 0:
            return
        for part in _slices(len(samples), _BLOCK_BYTES // (4 * dim)):
            block = self._block(np.ascontiguousarray(samples[part]), first_id + part.start)
            todo = np.arange(len(self._queries))
            for width in self._widths(len(block.rows)):
                most = _PAIRS // (width * block.members.shape[1])
                step = min(max(_QUERIES, _QUERY_VALUES // dim), most)
                unsure = [
                    self._offer(todo[some], block, width) for some in _slices(len(todo), step)
                ]
                todo = np.concatenate([todo[:0], *unsure])

    def _block(self, samples: Vectors, first_id: int) -> _Block:
        rows, members = _distinct(samples, self._k)
        norms = _norms(rows, self._metric)
        centre = np.zeros(rows.shape[1], dtype=np.float32)
        if self._metric == "l2":  # an offset of all vectors would drown their differences
            centre = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        prepared, prepared_norms = self._prepare(rows, norms, centre)
        return _Block(
            rows=rows,
            norms=norms,
            members=np.where(members >= 0, members + first_id, -1),
            centre=centre,
            propose=self._search(prepared, self._metric),
            largest=float(prepared_norms.max()),
        )

    def _widths(self, num_rows: int) -> Iterator[int]:
        """Yield how many rows to propose: a few more than k, then more and more, in the end all."""
        width = self._k + 2 + self._k // 8
        while width < num_rows and width <= self._widest:
            yield width
            width *= 4
        yield num_rows

    def _prepare(self, vectors: Vectors, norms: Floats, centre: Vectors) -> tuple[Vectors, Floats]:
        """Return vectors as faiss sees them, float32 [n, d], and their norms or a bit more, [n]."""
        with np.errstate(over="ignore", invalid="ignore"):  # `_beyond` sees what overflowed
            if self._metric == "l2":
                vectors = vectors - centre
            elif self._metric == "cosine":
                scale, unit = np.where(norms > 0, norms, 1.0)[:, None], np.empty_like(vectors)
                vectors = np.divide(vectors, scale, out=unit, casting="same_kind")
            squares = np.einsum("ij,ij->i", vectors, vectors)
        return np.ascontiguousarray(vectors), 1.01 * np.sqrt(squares.astype(np.float64))

    def _offer(self, todo: Ids, block: _Block, width: int) -> Ids:
        """Merge the nearest of `width` proposed rows into the results of the queries `todo`.

        Returns the queries for which other rows may be as near; their results stay as they were.
        """
        k, all_rows = self._k, width == len(block.rows)
        queries, norms = self._prepare(self._queries[todo], self._norms[todo], block.centre)
        if all_rows:
            rows = np.broadcast_to(np.arange(width), (len(todo), width))
            values = np.full(rows.shape, -np.inf, dtype=np.float32)
        else:
            values, rows = block.propose(queries, width)
        known, distances = self.distances[todo], np.full(rows.shape, np.inf)
        limits = known[:, -1]
        for columns in (slice(0, k), slice(k, width)):  # the first k make the limit for the others
            near = values[:, columns] <= self._beyond(limits, norms, block)[:, None]
            query_of, row_of = todo[np.nonzero(near)[0]], rows[:, columns][near]
            distances[:, columns][near] = self._exact(query_of, row_of, block)
            candidates = np.concatenate([known, distances], axis=1)
            limits = np.partition(candidates, k - 1, axis=1)[:, k - 1]
        sure = (values[:, -1] > self._beyond(limits, norms, block)) | all_rows
        most = int((distances <= limits[:, None]).sum(axis=1).max())
        best = np.argsort(distances, axis=1)[sure, :most]
        members = block.members[np.take_along_axis(rows[sure], best, axis=1)]
        self._merge(todo[sure], np.take_along_axis(distances[sure], best, axis=1), members)
        return todo[~sure]

    def _beyond(self, limits: Floats, norms: Floats, block: _Block) -> Floats:
        """Return faiss's value [n] above which a row is farther than the distances `limits`."""
        dim, largest = block.rows.shape[1], block.largest
        rounding = 1.01 * (dim + 16) * 2.0**-24
        tiny = dim * 2.0**-120 * (1.0 + norms + largest)
        if self._metric == "l2":
            # By the triangle inequality a row of norm above |q| + sqrt(limit) is too far, so one
            # outlier doesn't spoil the bound for all.
            reach = np.minimum(largest, norms + np.sqrt(limits) * (1 + 2.0**-20))
            found = limits + rounding * (norms + reach) ** 2 + tiny
        elif self._metric == "cosine":
            found = limits - 1.0 + rounding + tiny
        else:
            found = limits + rounding * norms * largest + tiny
        return np.where((norms + largest) ** 2 < _LARGEST, found, np.inf)

    def _exact(self, query_of: Ids, row_of: Ids, block: _Block) -> Floats:
        """Return the distances [p] of the pairs (query_of[i], row_of[i])."""
        found = _pair_sums(self._queries, block.rows, query_of, row_of, self._metric)
        if self._metric == "cosine":
            scale = self._norms[query_of] * block.norms[row_of]
            found = 1.0 + found / np.where(scale > 0, scale, np.inf)
        return found

    def _merge(self, queries: Ids, distances: Floats, ids: Ids) -> None:
        """Merge samples `ids` [n, p, w] (-1 for none) at `distances` [n, p] from `queries` [n]."""
        flat = len(queries), ids.shape[1] * ids.shape[2]
        distances = np.where(ids < 0, np.inf, distances[:, :, None]).reshape(flat)
        distances = np.hstack([self.distances[queries], distances])
        ids = np.hstack([self.ids[queries], ids.reshape(flat)])
        order = np.lexsort((ids, distances), axis=1)[:, : self._k]
        self.distances[queries] = np.take_along_axis(distances, order, axis=1)
        self.ids[queries] = np.take_along_axis(ids, order, axis=1)


def nearest_others(vectors: Vectors, k: int, metric: DistanceMetric) -> Iterator[tuple[slice, Ids]]:
    """Yield (rows, ids): the k nearest other rows of some rows, int64 [rows, k]; k < n.

    The memory is that of a search for a few thousand rows.
    """
    for part in _slices(len(vectors), rows_at_once(k)):
        yield part, find_others(vectors[part], part.start, [vectors], k, metric)


def rows_at_once(k: int) -> int:
    """Return how many rows `find_others` may be asked for at a time."""
    return min(4 * _QUERIES, 4 * _PAIRS // (k + 1))


def find_others(
    queries: Vectors, first: int, blocks: Iterable[Vectors], k: int, metric: DistanceMetric
) -> Ids:
    """Return the k nearest other rows of rows first, first + 1, ..., int64 [len(queries), k].

    queries: these rows. blocks: all rows, in order, more than k.
    """
    search, start = NearestSearch(queries, k + 1, metric), 0
    for block in blocks:
        search.add(block, start)
        start += len(block)
    ids = search.ids
    own = ids == np.arange(first, first + len(queries))[:, None]
    own[~own.any(axis=1), -1] = True  # k + 1 others are as near as the row itself
    return np.asarray(ids[~own].reshape(-1, k))


def _searcher(on_gpu: bool, k: int) -> tuple[Callable[[Vectors, DistanceMetric], _Propose], int]:
    """Return what faiss searches a block with, and the most rows that it proposes.

    On a GPU, if asked for and found, a block is copied there once, not with each batch of queries.
    """
    import faiss

    def search_here(rows: Vectors, metric: DistanceMetric) -> _Propose:
        kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
        return lambda queries, width: _signed(faiss.knn(queries, rows, width, metric=kind), metric)

    if not (on_gpu and faiss.get_num_gpus() > 0):
        return search_here, max(_WIDEST, 2 * k)
    gpu = faiss.StandardGpuResources()

    def search_there(rows: Vectors, metric: DistanceMetric) -> _Propose:
        make = faiss.GpuIndexFlatL2 if metric == "l2" else faiss.GpuIndexFlatIP
        index = make(gpu, rows.shape[1])
        index.add(rows)
        return lambda queries, width: _signed(index.search(queries, width), metric)

    ones = np.full((1, 256), 1.0 + 2.0**-12, dtype=np.float32)
    if search_there(ones, "inner_product")(ones, 1)[0][0, 0] > -256 * ones[0, 0]:  # 256 in TF32
        raise InputError(
            "resources.gpus_per_worker: this GPU multiplies in less than float32 for faiss; "
            "set NVIDIA_TF32_OVERRIDE=0 for the workers"
        )
    return search_there, _WIDEST


def _signed(found: tuple[Vectors, Ids], metric: DistanceMetric) -> tuple[Vectors, Ids]:
    """Return faiss's answer with values that grow with the distance."""
    values, rows = found
    return (values if metric == "l2" else -values), rows


def _pair_sums(
    left: Vectors, right: Vectors, left_of: Ids, right_of: Ids, metric: DistanceMetric
) -> Floats:
    """Sum over pairs (left_of[i], right_of[i]), float64 [p]: (q - x)^2 for l2, else -q.x.

    Sums run over a contiguous last axis, so a pair's bits don't depend on the pairs around it.
    """
    found = np.empty(len(left_of))
    for some in _slices(len(found), _PAIR_VALUES // max(1, left.shape[1])):
        q, x = left[left_of[some]], right[right_of[some]]
        if metric == "l2":
            difference = np.subtract(q, x, dtype=np.float64)
            found[some] = np.square(difference, out=difference).sum(axis=-1)
        else:
            found[some] = -np.multiply(q, x, dtype=np.float64).sum(axis=-1)
    return found


def _norms(vectors: Vectors, metric: DistanceMetric) -> Floats:
    """Return Euclidean norms, float64 [n]; zeros for the metrics that don't need them."""
    if metric != "cosine":
        return np.zeros(len(vectors))
    every = np.arange(len(vectors))
    return np.sqrt(-_pair_sums(vectors, vectors, every, every, metric))


def _slices(num: int, step: int) -> Iterator[slice]:
    """Cut `num` into slices of about the same length, from `step` to twice that if it's enough."""
    parts = max(1, num // max(1, step)) if num else 0
    return (slice(num * i // parts, num * (i + 1) // parts) for i in range(parts))


def _distinct(block: Vectors, k: int) -> tuple[Vectors, Ids]:
    """Return the distinct rows [u, d], and the first k rows equal to each [u, w], -1 last.

    Without this step every copy of a sample would be proposed wherever one is.
    """
    words = block.view(np.uint64 if block.shape[1] % 2 == 0 else np.uint32)
    steps = np.arange(1, words.shape[1] + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    hashes = words.astype(np.uint64, copy=False) @ ((steps ^ (steps >> np.uint64(29))) | 1)
    order = np.argsort(hashes, kind="stable")
    alike = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    if len(alike) == 0:
        return block, np.arange(len(block))[:, None]
    first = np.ones(len(block), dtype=np.bool_)
    first[alike + 1] = (words[order[alike]] != words[order[alike + 1]]).any(axis=1)
    starts, group = np.flatnonzero(first), np.cumsum(first) - 1
    place = np.arange(len(order)) - starts[group]
    kept = place < k
    members = np.full((len(starts), min(k, int(place.max()) + 1)), -1, dtype=np.int64)
    members[group[kept], place[kept]] = order[kept]
    return block[order[starts]], members
