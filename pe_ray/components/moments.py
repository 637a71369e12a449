"""Moments of features: what one record adds to a release of sums, and how the sums are read.

Both statistics here map a record to a vector of L2 norm at most 1. They use svec(v v^T), the upper
triangle of v v^T with off-diagonals times sqrt(2), whose norm is |v|^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GRAM_SHARE = 0.7
"""Share of the squared norm for f f^T; any from 0.5 to 0.8 did the same (benchmarks/mnist)."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RidgeMoments:
    """F^T F and F^T Y, which a ridge regression of labels on features needs (the teacher's).

    A record with features f (L2 norm 1) and label y adds svec(f f^T) and f e_y^T. Their squares
    are weighted GRAM_SHARE and 1 - GRAM_SHARE, so the whole has norm 1.
    """

    num_features: int
    num_labels: int

    @property
    def num_values(self) -> int:
        """Length of a record's vector."""
        return self._num_pairs + self.num_features * self.num_labels

    @property
    def _num_pairs(self) -> int:
        return self.num_features * (self.num_features + 1) // 2

    def map_records(self, features: Floats, labels: NDArray[np.int32]) -> Floats:
        """Return one vector per record, [n, num_values], for features [n, num_features]."""
        cross = np.zeros((len(features), self.num_features, self.num_labels))
        cross[np.arange(len(labels)), :, labels] = features * math.sqrt(1 - GRAM_SHARE)
        pairs = svec(features) * math.sqrt(GRAM_SHARE)
        return np.concatenate([pairs, cross.reshape(len(features), -1)], axis=1)

    def unpack(self, sums: Floats) -> tuple[Floats, Floats]:
        """Return F^T F [num_features, num_features] and F^T Y [num_features, num_labels]."""
        gram = smat(sums[: self._num_pairs], self.num_features) / math.sqrt(GRAM_SHARE)
        cross = sums[self._num_pairs :].reshape(self.num_features, self.num_labels)
        return gram, cross / math.sqrt(1 - GRAM_SHARE)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelMoments:
    """Counts and means by label and the pooled covariance of projected embeddings (a search's).

    An embedding e is projected to z = P e, P a public Gaussian matrix drawn from `seed`. Then z is
    clipped to norm `radius` and divided by it. With label l the record adds

        (1_l, 1_l (x) z, svec(z z^T)) / sqrt(3),

    1_l the indicator of the label; its norm is sqrt((1 + |z|^2 + |z|^4) / 3) <= 1.
    """

    num_labels: int
    dim: int
    radius: float
    seed: int

    @property
    def num_values(self) -> int:
        """Length of a record's vector."""
        return self.num_labels * (1 + self.dim) + self.dim * (self.dim + 1) // 2

    def map_records(self, features: Floats, labels: NDArray[np.int32]) -> Floats:
        """Return one vector per record, [n, num_values], for embeddings [n, d]."""
        random = np.random.default_rng(self.seed)
        projection = random.standard_normal((features.shape[1], self.dim)) / math.sqrt(self.dim)
        points = features.astype(np.float64) @ projection / self.radius
        lengths = np.sqrt(np.square(points).sum(axis=1, keepdims=True))
        points /= np.maximum(lengths, 1.0)
        vectors = np.zeros((len(points), self.num_values))
        rows = np.arange(len(points))
        vectors[rows, labels] = 1.0
        means = vectors[:, self.num_labels : self.num_labels * (1 + self.dim)]
        means.reshape(len(points), self.num_labels, self.dim)[rows, labels] = points
        vectors[:, self.num_labels * (1 + self.dim) :] = svec(points)
        return vectors / math.sqrt(3.0)

    def distance(self, synthetic: Floats, private: Floats) -> float:
        """Return the squared Frechet distance of two sums, in squared radii.

        It is that of Gaussian mixtures with one component a label and a common covariance,
        weighted by the second's label counts. Both sums may be noisy: counts below 1 carry no
        weight, and negative eigenvalues of covariances count as 0.
        """
        _, means, covariance = self._unpack(synthetic)
        counts, private_means, private_covariance = self._unpack(private)
        weights = np.where(counts >= 1, counts, 0.0)
        apart = np.square(means - private_means).sum(axis=1)
        between = float(weights @ apart / max(weights.sum(), 1.0))
        return between + _bures(covariance, private_covariance)

    def _unpack(self, sums: Floats) -> tuple[Floats, Floats, Floats]:
        """Return counts [labels], means [labels, dim] and pooled covariance [dim, dim]."""
        scaled = sums * math.sqrt(3.0)
        counts = scaled[: self.num_labels]
        safe = np.maximum(counts, 1.0)
        means = scaled[self.num_labels : self.num_labels * (1 + self.dim)]
        means = means.reshape(self.num_labels, self.dim) / safe[:, None]
        means /= np.maximum(np.sqrt(np.square(means).sum(axis=1, keepdims=True)), 1.0)
        second = smat(scaled[self.num_labels * (1 + self.dim) :], self.dim)
        total = safe.sum()
        return counts, means, second / total - (means.T * safe) @ means / total


def svec(vectors: Floats) -> Floats:
    """Return svec(v v^T) of each of `vectors` [n, d], float64 [n, d (d + 1) / 2]."""
    rows, columns, scale = _triangle(vectors.shape[1])
    return vectors[:, rows] * vectors[:, columns] * scale


def smat(triangle: Floats, size: int) -> Floats:
    """Return the symmetric matrix [size, size] whose svec is `triangle`."""
    rows, columns, scale = _triangle(size)
    matrix = np.zeros((size, size))
    matrix[rows, columns] = matrix[columns, rows] = triangle / scale
    return matrix


def _triangle(size: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    rows, columns = np.triu_indices(size)
    return rows, columns, np.where(rows == columns, 1.0, math.sqrt(2.0))


def _bures(first: Floats, second: Floats) -> float:
    """Return tr(A + B - 2 (A^(1/2) B A^(1/2))^(1/2)) of the positive parts A, B of two matrices."""
    root, other = _root(first), _root(second)
    shared = np.linalg.svd(root @ other.T, compute_uv=False).sum()
    return float((root**2).sum() + (other**2).sum() - 2.0 * shared)


def _root(matrix: Floats) -> Floats:
    """Return R, where R^T R is the positive part of a symmetric matrix."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return np.asarray(np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T)
