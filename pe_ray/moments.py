"""Moments of features: how the sums that a ridge regression needs lie in one flat vector.

A record with features f (L2 norm 1) and label y contributes the upper triangle of f f^T, its
off-diagonals times sqrt(2), so that the triangle's norm is that of the matrix, |f|^2; and f e_y^T,
of norm |f|. Their squares are weighted GRAM_SHARE and 1 - GRAM_SHARE, so the whole has norm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GRAM_SHARE = 0.7
"""Of the squared norm, for f f^T; any from 0.5 to 0.8 did the same (benchmarks/mnist)."""

Floats = NDArray[np.float64]


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
        rows, columns = np.triu_indices(self.num_features)
        scale = np.where(rows == columns, 1.0, math.sqrt(2.0)) * math.sqrt(GRAM_SHARE)
        cross = np.zeros((len(features), self.num_features, self.num_labels))
        cross[np.arange(len(labels)), :, labels] = features * math.sqrt(1 - GRAM_SHARE)
        triangle = features[:, rows] * features[:, columns] * scale
        return np.concatenate([triangle, cross.reshape(len(features), -1)], axis=1)

    def unpack(self, sums: Floats) -> tuple[Floats, Floats]:
        """F^T F [num_features, num_features] and F^T Y [num_features, num_labels] of a sum."""
        rows, columns = np.triu_indices(self.num_features)
        scale = np.where(rows == columns, 1.0, math.sqrt(2.0)) * math.sqrt(GRAM_SHARE)
        gram = np.zeros((self.num_features, self.num_features))
        gram[rows, columns] = gram[columns, rows] = sums[: self._triangle] / scale
        cross = sums[self._triangle :].reshape(self.num_features, self.num_labels)
        return gram, cross / math.sqrt(1 - GRAM_SHARE)
