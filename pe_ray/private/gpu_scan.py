"""The scan on a GPU: faiss proposes its best rows in float32 and an error bound certifies them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pe_ray.errors import InputError
from pe_ray.private.bounds import Bounds, Floats, Ids, Pairs, Prepared
from pe_ray.values import DistanceMetric

_SPARE = 3  # candidates beyond k; a query needs one to be certified
_WIDEN = 4
_MOST = 1024  # candidates that faiss gives on a GPU (2048 at most, by its documentation)


class GpuScan:
    """faiss.knn_gpu with more and more candidates, until no row left out can be among the best."""

    def __init__(self, queries: Prepared, metric: DistanceMetric) -> None:
        self._faiss = _faiss()
        self._resources = self._faiss.StandardGpuResources()
        self._queries, self._metric = queries, metric
        self._bounds = Bounds(queries, metric, "faiss-gpu")
        self._check()

    def _check(self) -> None:
        """Refuse a GPU whose products are coarser than float32 (TF32): the bound needs them."""
        ones = np.full((1, 256), 1.0 + 2.0**-12, dtype=np.float32)
        product, _ = self._faiss.knn_gpu(
            self._resources, ones, ones, 1, metric=self._faiss.METRIC_INNER_PRODUCT
        )
        exact = 256 * (1.0 + 2.0**-12) ** 2
        if abs(float(product[0, 0]) - exact) > self._bounds.dot * exact:
            raise InputError(
                "resources.gpus_per_worker: this GPU multiplies in less than float32 for faiss; "
                "set NVIDIA_TF32_OVERRIDE=0 for the workers"
            )

    def side(self, rows: Prepared) -> Prepared:
        return rows

    def propose(
        self,
        side: Prepared,
        part: slice,
        k: int,
        limits: Callable[[], Floats],
        exact: Callable[[Ids, Ids], Floats],
    ) -> Iterator[Pairs]:
        bounded = self._bounds.bounded(part, side)
        todo = np.flatnonzero(bounded) + part.start
        everything = np.flatnonzero(~bounded) + part.start
        width = min(k + _SPARE, len(side.vectors))
        while len(todo):
            if width > _MOST:
                everything = np.concatenate([everything, todo])
                break
            scores, rows = self._search(self._queries.vectors[todo], side, width)
            yield np.repeat(todo, width), rows.ravel()
            if width == len(side.vectors):
                break
            settled = scores[:, -1] < self._needed(limits()[todo], todo, side)
            todo, width = todo[~settled], min(_WIDEN * width, len(side.vectors))
        for query in everything:
            yield np.full(len(side.vectors), query), np.arange(len(side.vectors))

    def _search(self, queries: Any, side: Prepared, width: int) -> tuple[Floats, Ids]:
        """Scores (descending) and rows of faiss's `width` best, [n, width]."""
        faiss = self._faiss
        by_distance = self._metric == "l2"
        kind = faiss.METRIC_L2 if by_distance else faiss.METRIC_INNER_PRODUCT
        values, rows = faiss.knn_gpu(self._resources, queries, side.vectors, width, metric=kind)
        scores = -values.astype(np.float64) if by_distance else values.astype(np.float64)
        return scores, rows.astype(np.int64)

    def _needed(self, limits: Floats, queries: Ids, side: Prepared) -> Floats:
        """The score below which everything is farther than `limits` [n], error included."""
        norms, largest = self._bounds.norms[queries], float(side.norms.max())
        dot, tiny = self._bounds.dot, self._bounds.tiny * (1.0 + norms + largest)
        if self._metric == "l2":
            # A row whose norm exceeds |q| + sqrt(limit) is too far by the triangle inequality, so
            # one outlier doesn't spoil the bound of all.
            reach = np.minimum(largest, (norms + np.sqrt(limits)) * (1 + 2.0**-20))
            return np.asarray(-limits - dot * (norms + reach) ** 2 - tiny)
        if self._metric == "cosine":
            return np.asarray(1.0 - limits - dot - tiny)
        return np.asarray(-limits - dot * norms * largest - tiny)


def _faiss() -> Any:
    import faiss

    return faiss
