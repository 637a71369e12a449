"""The scan on a CPU: scores by matrix products, in float32 or bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_ray.private.bounds import Bounds, Floats, Ids, Pairs, Precision, Prepared, Vectors
from pe_ray.values import DistanceMetric

_TILE_ROWS = 4096
_GROUP = 8  # rows of a tile whose best score is looked at first
_NEVER = -1e38  # score of the rows that fill up the last group
_CROWD = 8  # proposals per query, beyond 4 k, that make bfloat16 slower than float32


class TileScan:
    """Scores by matrix products of 1024 queries and 4096 rows; keeps those above the limit.

    bfloat16 is worth it where the processor multiplies it faster (see `fastest_precision`); data
    that its error bound can't tell apart go on in float32, since exact distances cost more.
    """

    def __init__(self, queries: Prepared, metric: DistanceMetric, precision: Precision) -> None:
        if metric == "inner_product":  # unit queries: then the error has no part of the query
            scale = np.where(queries.norms > 0, queries.norms, 1.0)[:, None]
            unit = (queries.vectors / scale).astype(np.float32)
            self._queries = Prepared(vectors=unit, norms=queries.norms)
        else:
            self._queries = queries
        self._metric = metric
        self._use(precision)

    def _use(self, precision: Precision) -> None:
        self._precision = precision
        self._bounds = Bounds(self._queries, self._metric, precision)
        self._products: _Float32 | _Bfloat16 = (
            _Bfloat16() if precision == "bfloat16" else _Float32()
        )
        self._left = self._products.left(self._queries.vectors)

    def side(self, rows: Prepared) -> list[Prepared]:
        starts = range(0, len(rows.vectors), _TILE_ROWS)
        return [
            Prepared(
                vectors=rows.vectors[start : start + _TILE_ROWS],
                norms=rows.norms[start : start + _TILE_ROWS],
            )
            for start in starts
        ]

    def propose(
        self,
        side: list[Prepared],
        part: slice,
        k: int,
        limits: Callable[[], Floats],
        exact: Callable[[Ids, Ids], Floats],
    ) -> Iterator[Pairs]:
        for number, tile in enumerate(side):
            first, width = number * _TILE_ROWS, len(tile.norms)
            bounded = self._bounds.bounded(part, tile)
            for i in np.flatnonzero(~bounded):
                yield np.full(width, part.start + i), np.arange(first, first + width)
            if not bounded.any():
                continue
            scores = self._scores(part, tile, k)
            limit = limits()[part]
            if width >= k and np.isinf(limit).any():
                queries, rows = scores.best(k)
                found = exact(queries + part.start, rows + first).reshape(-1, k)
                limit = np.minimum(limit, found.max(axis=1))
            queries, rows = scores.at_least(self._lowered(limit, part, tile, bounded))
            if self._precision == "bfloat16" and len(queries) > (4 * k + _CROWD) * len(limit):
                self._use("float32")
                scores = self._scores(part, tile, k)
                queries, rows = scores.at_least(self._lowered(limit, part, tile, bounded))
            real = rows < width
            yield queries[real] + part.start, rows[real] + first

    def _lowered(
        self, limit: Floats, part: slice, tile: Prepared, bounded: NDArray[np.bool_]
    ) -> Floats:
        return np.where(bounded, self._bounds.lowered(limit, part, tile), np.inf)

    def _scores(self, part: slice, tile: Prepared, k: int) -> _Scores:
        width = len(tile.norms)
        size = _GROUP if width >= 2 * _GROUP * k else 1
        vectors = np.zeros((-(-width // size) * size, tile.vectors.shape[1]), dtype=np.float32)
        raised = np.full(len(vectors), _NEVER)
        vectors[:width], raised[:width] = tile.vectors, self._bounds.raised(tile)
        right = self._products.right(vectors, raised)
        values = self._products.scores(self._left[part], right)
        return _Scores(self._products, values.reshape(len(values), size, -1))


class _Scores:
    """Scores of queries and rows: [n, size, groups], where row = member * groups + group."""

    def __init__(self, products: _Float32 | _Bfloat16, values: Any) -> None:
        self._products, self._values = products, values
        self._maxima = products.group_maxima(values)

    def best(self, k: int) -> Pairs:
        """k good rows for each query: the best of the k best groups; queries repeat k times."""
        num, groups = self._maxima.shape
        if k == 1:
            best = self._maxima.argmax(axis=1)
        else:
            best = np.argpartition(self._maxima, groups - k, axis=1)[:, groups - k :].ravel()
        queries = np.repeat(np.arange(num), k)
        members = self._products.members(self._values, queries, best)
        return queries, best + groups * members.argmax(axis=1)

    def at_least(self, lowest: Floats) -> Pairs:
        """Positions (query, row) of the scores that reach the query's lowest."""
        bound = np.nextafter(lowest.astype(np.float32), np.float32(-np.inf))
        groups = self._maxima.shape[1]
        some = np.flatnonzero(self._maxima.max(axis=1) >= bound)
        chosen = self._maxima if len(some) == len(bound) else self._maxima[some]
        at = np.flatnonzero(chosen >= bound[some, None])
        queries, group = some[at // groups], at % groups
        members = self._products.members(self._values, queries, group)
        pair, member = np.nonzero(members >= bound[queries, None])
        return queries[pair], member * groups + group[pair]


class _Float32:
    """Products by numpy: one column more carries what is added to them."""

    def __init__(self) -> None:
        self._scratch = np.empty(0, dtype=np.float32)  # fresh memory costs as much as the product

    def left(self, vectors: Vectors) -> Vectors:
        return np.column_stack([vectors, np.ones(len(vectors), dtype=np.float32)])

    def right(self, vectors: Vectors, added: Floats) -> Vectors:
        return np.column_stack([vectors, added.astype(np.float32)])

    def scores(self, left: Vectors, right: Vectors) -> Vectors:
        size = len(left) * len(right)
        if self._scratch.size < size:
            self._scratch = np.empty(size, dtype=np.float32)
        out = self._scratch[:size].reshape(len(left), len(right))
        with np.errstate(over="ignore", invalid="ignore"):  # of queries without a bound
            return np.matmul(left, right.T, out=out)

    def group_maxima(self, values: Vectors) -> Vectors:
        return np.asarray(values.max(axis=1))

    def members(self, values: Vectors, queries: Ids, groups: Ids) -> Vectors:
        return values[queries, :, groups]


class _Bfloat16:
    """Products by torch, accumulated in float32; three columns more carry what is added."""

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self._scratch = torch.empty(0, dtype=torch.bfloat16)

    def left(self, vectors: Vectors) -> Any:
        ones = np.ones((len(vectors), 3), dtype=np.float32)
        return self._torch.from_numpy(np.column_stack([vectors, ones])).bfloat16()

    def right(self, vectors: Vectors, added: Floats) -> Any:
        rest, columns = added.copy(), []
        for _ in range(3):
            rounded = self._torch.from_numpy(rest).bfloat16()
            columns.append(rounded[:, None])
            rest = rest - rounded.double().numpy()
        return self._torch.cat([self._torch.from_numpy(vectors).bfloat16(), *columns], dim=1)

    def scores(self, left: Any, right: Any) -> Any:
        size = len(left) * len(right)
        if self._scratch.numel() < size:
            self._scratch = self._torch.empty(size, dtype=self._torch.bfloat16)
        out = self._scratch[:size].view(len(left), len(right))
        return self._torch.mm(left, right.T, out=out)

    def group_maxima(self, values: Any) -> Vectors:
        return np.asarray(values.amax(dim=1).float().numpy())

    def members(self, values: Any, queries: Ids, groups: Ids) -> Vectors:
        chosen = values[self._torch.from_numpy(queries), :, self._torch.from_numpy(groups)]
        return np.asarray(chosen.float().numpy())


@cache
def fastest_precision() -> Precision:
    """bfloat16 where this processor multiplies it natively and as the bound assumes."""
    import torch

    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "float32"
    # The bound rests on accumulation in float32: in bfloat16 this sum would stop at 256.
    ones = torch.ones((64, 4096), dtype=torch.bfloat16)
    return "bfloat16" if bool((ones @ ones.T == 4096).all()) else "float32"
