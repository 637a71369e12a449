"""Which rows of a block can be among the k best, by fast arithmetic with a proven error.

Every vector gets a score for every query, larger for nearer, an affine function of the distance:

    l2             q.x - |x|^2 / 2   of vectors centred at a common point
    cosine         q.x               of unit vectors
    inner_product  q.x               of a unit query

Error bound. Let u = 2^-24 (float32), v = 2^-8 (bfloat16) be the unit roundoffs. A sum of d
products, accumulated in float32 in any order, errs by at most gamma_d sum |q_i x_i|, with
gamma_d = d u / (1 - d u) (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed.,
section 3.1). With what rounding the inputs and the result adds, a computed score errs by at most

    e_dot |q| |x| + e_bias b,   b = |x|^2 / 2 for l2, else 0, with
    float32   e_dot = e_bias = (d + 16) u
    bfloat16  e_dot = 3 v + (d + 16) u   (v for each input, v for the result),
              e_bias = v + (d + 16) u    (b is added as three bfloat16 numbers: 2^-24 b)

The 16 covers the roundings of centring, scaling and norms; a factor 1.01 the second-order terms
for d < 2^17; `_TINY` per coordinate underflow, flushed or gradual. That must be separable into a
part of the query and a part of the row: |q| |x| <= (r |q|^2 + |x|^2 / r) / 2 for any r > 0 (r is
the ratio of typical norms). The row's part is added to its score, the query's part is taken off
its limit; so a row may be left out if its raised score is below the lowered limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pe_ray.values import DistanceMetric

Vectors = NDArray[np.float32]
Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
Pairs = tuple[Ids, Ids]
Precision = Literal["float32", "bfloat16", "faiss-gpu"]

_TINY = 2.0**-120
_LARGEST = 2.0**120  # of squared norms: beyond, float32 may overflow and no bound holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Vectors as a scan sees them, float32 [n, d], and their norms, float64 [n]."""

    vectors: Vectors
    norms: Floats


def prepared(vectors: Vectors, centre: Vectors, metric: DistanceMetric) -> Prepared:
    """Centred (l2), scaled to norm 1 (cosine) or unchanged (inner product)."""
    if metric == "l2":
        with np.errstate(over="ignore"):  # inf here: no bound, so no use of float32
            vectors = vectors - centre
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.sqrt(np.multiply(vectors, vectors, dtype=np.float64).sum(axis=-1))
    if metric == "cosine":
        vectors = (vectors / np.where(norms > 0, norms, 1.0)[:, None]).astype(np.float32)
        norms = (norms > 0).astype(np.float64)
    return Prepared(vectors=np.ascontiguousarray(vectors), norms=norms)


class Scan(Protocol):
    """A way to propose rows."""

    def side(self, rows: Prepared) -> Any:
        """The rows [u, d] of a block, made ready for `propose`."""
        ...

    def propose(
        self,
        side: Any,
        part: slice,
        k: int,
        limits: Callable[[], Floats],
        exact: Callable[[Ids, Ids], Floats],
    ) -> Iterator[Pairs]:
        """Pairs (query, row) for the queries of `part`, a batch at a time.

        limits() gives each query's k-th best distance so far (inf for none), [n], and reflects
        the batches taken; exact gives distances of pairs.

        Guarantee: a row that is never proposed to a query is farther from it than k rows that
        are, or than its limit. Each pair depends on one private record alone; zone 1 only.
        """
        ...


class Bounds:
    """Scores, limits and their errors, for one metric, precision and set of queries."""

    def __init__(self, queries: Prepared, metric: DistanceMetric, precision: Precision) -> None:
        self.metric = metric
        dim = queries.vectors.shape[1]
        rounding = 1.01 * (dim + 16) * 2.0**-24
        coarse = 1.01 * 2.0**-8 if precision == "bfloat16" else 0.0
        self.dot, self.bias = rounding + 3 * coarse, rounding + coarse
        self.tiny = dim * _TINY
        self.norms = queries.norms
        self.typical = _typical(queries.norms)

    def raised(self, rows: Prepared) -> Floats:
        """What is added to a row's product with a query: -b and the row's part of the error."""
        norms = rows.norms
        if self.metric == "l2":
            half = norms**2 / 2
            error = self.dot * half / self._ratio(rows) + self.bias * half
            return np.asarray(1.1 * error - half)
        return np.asarray(1.1 * self.dot * norms)

    def lowered(self, limits: Floats, part: slice, rows: Prepared) -> Floats:
        """The score [n] below which a row is farther than the distances `limits` [n]."""
        norms = self.norms[part]
        tiny = self.tiny * (1.0 + norms + rows.norms.max())
        if self.metric == "l2":
            squares = norms**2
            error = 1.1 * self.dot * self._ratio(rows) * squares / 2 + 4 * 2.0**-24 * squares
            return np.asarray((squares - limits) / 2 - error - tiny)
        if self.metric == "cosine":
            return np.asarray(1.0 - limits - tiny - 2.0**-40)
        scale = np.where(norms > 0, norms, 1.0)
        found = -limits / scale
        return np.asarray(found - np.abs(found) * 2.0**-40 - self.tiny * (1.0 + rows.norms.max()))

    def bounded(self, part: slice, rows: Prepared) -> NDArray[np.bool_]:
        """Which queries [n] the bound holds for, with these rows."""
        with np.errstate(over="ignore", invalid="ignore"):
            scale = (self.norms[part] + 1.0 + rows.norms.max()) ** 2
        return np.asarray(scale < _LARGEST)

    def _ratio(self, rows: Prepared) -> float:
        """Typical norm of a row over that of a query, to be multiplied with the query's square."""
        return _typical(rows.norms) / self.typical


def _typical(norms: Floats) -> float:
    """Median norm; 1 where that is 0 or overflowed."""
    middle = float(np.median(norms))
    return middle if 0 < middle < _LARGEST else 1.0
