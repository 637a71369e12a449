"""Distances between two samples of embeddings, [n, d] and [m, d]: pure functions.

Besides the samples they hold a few blocks of 2,048 rows in float64, of [2048, m] and of [d, d].
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Sample = NDArray[np.float32] | NDArray[np.float64]
Block = NDArray[np.float64]
Counts = NDArray[np.int64]

_ROWS = 2048


def frechet_distance(first: Sample, second: Sample) -> float:
    """Return the squared Frechet distance between Gaussians fitted to two samples of at least 2.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), with unbiased covariances (Heusel et al. 2017,
    eq. 6). With C = R^T R, the trace of the root is the sum of the singular values of R1 R2^T. So
    no root of a product is needed, and no complex numbers appear.
    """
    mean1, mean2 = _mean(first), _mean(second)
    factor1, factor2 = _factor(first, mean1), _factor(second, mean2)
    shared = np.linalg.svd(factor1 @ factor2.T, compute_uv=False).sum()
    apart = mean1 - mean2
    return float(apart @ apart + (factor1**2).sum() + (factor2**2).sum() - 2.0 * shared)


def _mean(sample: Sample) -> Block:
    return np.asarray(sum(block.sum(axis=0) for block in _blocks(sample)) / len(sample))


def _factor(sample: Sample, mean: Block) -> Block:
    """Return R, [at most d, d], with R^T R the sample's covariance."""
    num, dim = sample.shape
    if num <= dim:
        return np.asarray((sample - mean) / np.sqrt(num - 1))
    covariance = np.zeros((dim, dim))
    for block in _blocks(sample):
        covariance += (block - mean).T @ (block - mean)
    values, vectors = np.linalg.eigh(covariance / (num - 1))
    # Eigenvalues that are 0 but for rounding would add its root, 1e-8, for each dead feature.
    rounding = dim * np.finfo(np.float64).eps * values[-1]
    return np.asarray(np.sqrt(np.where(values > rounding, values, 0.0))[:, None] * vectors.T)


def kernel_distance(first: Sample, second: Sample) -> float:
    """Estimate the squared maximum mean discrepancy of two samples of at least 2, without bias.

    The kernel is k(x, y) = (x.y / d + 1)^3 (KID: Binkowski et al. 2018, section 4). The estimate
    may be negative.
    """
    within = [
        (_kernel_sum(sample, sample) - _kernel_diagonal(sample)) / (len(sample) * (len(sample) - 1))
        for sample in (first, second)
    ]
    return float(sum(within) - 2.0 * _kernel_sum(first, second) / (len(first) * len(second)))


def _kernel_sum(first: Sample, second: Sample) -> float:
    from sklearn.metrics.pairwise import polynomial_kernel

    columns = second.astype(np.float64)
    return sum(float(polynomial_kernel(rows, columns, degree=3).sum()) for rows in _blocks(first))


def _kernel_diagonal(sample: Sample) -> float:
    dim = sample.shape[1]
    return sum(float((((rows**2).sum(axis=1) / dim + 1.0) ** 3).sum()) for rows in _blocks(sample))


def compare_manifolds(synthetic: Sample, reference: Sample, neighbors: int) -> dict[str, float]:
    """Return improved precision and recall, density and coverage.

    A sample's manifold is the union of balls around its points, each reaching to the point's
    `neighbors`-th nearest other point of the sample. Each sample needs more than `neighbors`
    points.

    precision: share of synthetic points in the reference's manifold; recall: share of reference
    points in the synthetic one (Kynkaanniemi et al. 2019, eq. 1 and 2). density: balls of the
    reference that a synthetic point lies in, in the mean, over `neighbors`; may exceed 1. coverage:
    share of the reference's balls with a synthetic point in them (Naeem et al. 2020, eq. 3 and 4).
    """
    per_synthetic, per_ball = _count_inside(synthetic, reference, neighbors)
    per_reference, _ = _count_inside(reference, synthetic, neighbors)
    return {
        "precision": float((per_synthetic > 0).mean()),
        "recall": float((per_reference > 0).mean()),
        "density": float(per_synthetic.mean() / neighbors),
        "coverage": float((per_ball > 0).mean()),
    }


def _count_inside(points: Sample, centres: Sample, neighbors: int) -> tuple[Counts, Counts]:
    """Count the balls around `centres` that each point is in, [n], and the points in each, [m]."""
    from sklearn.metrics.pairwise import euclidean_distances
    from sklearn.neighbors import NearestNeighbors

    columns = centres.astype(np.float64)
    search = NearestNeighbors(n_neighbors=neighbors, algorithm="brute", metric="sqeuclidean")
    radii = search.fit(columns).kneighbors()[0][:, -1]
    # Distances come from products: rounding must not put a copy of the centre of a ball of radius
    # 0 outside it.
    reach = radii + 1e-12 * (columns**2).sum(axis=1)
    per_point, per_ball = [], np.zeros(len(columns), dtype=np.int64)
    for rows in _blocks(points):
        inside = euclidean_distances(rows, columns, squared=True) <= reach
        per_point.append(inside.sum(axis=1))
        per_ball += inside.sum(axis=0)
    return np.concatenate(per_point), per_ball


def _blocks(sample: Sample) -> Iterator[Block]:
    for start in range(0, len(sample), _ROWS):
        yield sample[start : start + _ROWS].astype(np.float64)
