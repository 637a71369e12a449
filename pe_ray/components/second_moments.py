"""Moments of features: how the sums that a ridge regression needs lie in one flat vector.

A record with features f (L2 norm 1) and label y contributes svec(f f^T), of norm |f|^2, and
f e_y^T, of norm |f|. Their squares are weighted GRAM_SHARE and 1 - GRAM_SHARE, so the whole has
norm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GRAM_SHARE = 0.7
"""Of the squared norm, for f f^T; any from 0.5 to 0.8 did the same (benchmarks/mnist)."""

Floats = NDArray[np.float64]


def svec(vectors: Floats) -> Floats:
    """v v^T of each of `vectors` [n, d] as a vector of the same norm, |v|^2: its upper triangle,
    off-diagonals times sqrt(2), float64 [n, d (d + 1) / 2].
    """
    rows, columns, scale = _triangle(vectors.shape[1])
    return vectors[:, rows] * vectors[:, columns] * scale


def smat(triangle: Floats, size: int) -> Floats:
    """The symmetric matrix [size, size] of which `triangle` is the svec."""
    rows, columns, scale = _triangle(size)
    matrix = np.zeros((size, size))
    matrix[rows, columns] = matrix[columns, rows] = triangle / scale
    return matrix


def _triangle(size: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    rows, columns = np.triu_indices(size)
    return rows, columns, np.where(rows == columns, 1.0, math.sqrt(2.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Layout for features of length `num_features` and labels below `num_labels`."""

    num_features: int
    num_labels: int

    @property
    def num_values(self) -> int:
        """Length of the flat vector."""
        return self._triangle + self.num_features * self.num_labels

    @property
    def _triangle(self) -> int:
        return self.num_features * (self.num_features + 1) // 2

    def pack(self, features: Floats, labels: NDArray[np.int32]) -> Floats:
        """One vector per record, [n, num_values], of features [n, num_features], labels [n]."""
        cross = np.zeros((len(features), self.num_features, self.num_labels))
        cross[np.arange(len(labels)), :, labels] = features * math.sqrt(1 - GRAM_SHARE)
        triangles = svec(features) * math.sqrt(GRAM_SHARE)
        return np.concatenate([triangles, cross.reshape(len(features), -1)], axis=1)

    def unpack(self, sums: Floats) -> tuple[Floats, Floats]:
        """F^T F [num_features, num_features] and F^T Y [num_features, num_labels] of a sum."""
        gram = smat(sums[: self._triangle], self.num_features) / math.sqrt(GRAM_SHARE)
        cross = sums[self._triangle :].reshape(self.num_features, self.num_labels)
        return gram, cross / math.sqrt(1 - GRAM_SHARE)
