"""Means by label and pooled covariance of embeddings, as sums that one row moves by at most 1.

A row with label l and embedding e is mapped to z = P e (P a public Gaussian projection), clipped
to norm `radius` and divided by it, and then to the vector

    (1_l, 1_l (x) z, svec(z z^T)) / sqrt(3),

1_l the indicator of the label, svec (pe_ray.components.second_moments) of norm |z|^2. The whole
has L2 norm sqrt((1 + |z|^2 + |z|^4) / 3) <= 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_ray.components.second_moments import Floats, smat, svec


@dataclass(frozen=True, slots=True, kw_only=True)
class MomentsSpec:
    """What is summed; all public."""

    num_labels: int
    dim: int
    radius: float
    seed: int

    @property
    def num_values(self) -> int:
        """Length of the vector."""
        return self.num_labels * (1 + self.dim) + self.dim * (self.dim + 1) // 2


def moment_vectors(
    features: NDArray[np.floating[Any]], labels: NDArray[np.int32], spec: MomentsSpec
) -> Floats:
    """The vectors, float64 [n, num_values], of embeddings [n, d] with labels [n]."""
    width, dim = features.shape[1], spec.dim
    projection = np.random.default_rng(spec.seed).standard_normal((width, dim)) / math.sqrt(dim)
    points = features.astype(np.float64) @ projection / spec.radius
    lengths = np.sqrt(np.square(points).sum(axis=1, keepdims=True))
    points /= np.maximum(lengths, 1.0)
    vectors = np.zeros((len(points), spec.num_values))
    rows = np.arange(len(points))
    vectors[rows, labels] = 1.0
    means = vectors[:, spec.num_labels : spec.num_labels * (1 + dim)]
    means.reshape(len(points), spec.num_labels, dim)[rows, labels] = points
    vectors[:, spec.num_labels * (1 + dim) :] = svec(points)
    return vectors / math.sqrt(3.0)


def moments_distance(synthetic: Floats, private: Floats, spec: MomentsSpec) -> float:
    """Squared Frechet distance of two such sums, in squared radii: that of Gaussian mixtures with
    one component a label, its covariance common to all, weighted by the second's label counts.

    Both may be noisy: counts below 1 carry no weight, covariances lose negative eigenvalues.
    """
    _, means, covariance = _moments(synthetic, spec)
    counts, private_means, private_covariance = _moments(private, spec)
    weights = np.where(counts >= 1, counts, 0.0)
    apart = np.square(means - private_means).sum(axis=1)
    return float(weights @ apart / max(weights.sum(), 1.0)) + _bures(covariance, private_covariance)


def _moments(sums: Floats, spec: MomentsSpec) -> tuple[Floats, Floats, Floats]:
    """Counts [labels], means [labels, dim] and pooled covariance [dim, dim]."""
    scaled = sums * math.sqrt(3.0)
    counts = scaled[: spec.num_labels]
    safe = np.maximum(counts, 1.0)
    means = scaled[spec.num_labels : spec.num_labels * (1 + spec.dim)]
    means = means.reshape(spec.num_labels, spec.dim) / safe[:, None]
    means /= np.maximum(np.sqrt(np.square(means).sum(axis=1, keepdims=True)), 1.0)
    second = smat(scaled[spec.num_labels * (1 + spec.dim) :], spec.dim)
    total = safe.sum()
    return counts, means, second / total - (means.T * safe) @ means / total


def _bures(first: Floats, second: Floats) -> float:
    """Squared Bures distance of the positive parts: tr(A + B - 2 (A^(1/2) B A^(1/2))^(1/2))."""
    a, b = _positive(first), _positive(second)
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    shared = np.linalg.eigvalsh(root @ b @ root)
    return float(np.trace(a) + np.trace(b) - 2.0 * np.sqrt(np.maximum(shared, 0.0)).sum())


def _positive(matrix: Floats) -> Floats:
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return np.asarray((vectors * np.maximum(values, 0.0)) @ vectors.T)
