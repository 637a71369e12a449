"""Distances between two samples of embeddings, [n, d] and [m, d]: pure functions, bounded memory.

Besides the samples they hold a few blocks of 2,048 rows in float64 and d x d matrices.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Sample = NDArray[np.float32] | NDArray[np.float64]
Block = NDArray[np.float64]

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
    dim = first.shape[1]
    return sum(
        float(((rows @ columns.T / dim + 1.0) ** 3).sum())
        for rows in _blocks(first)
        for columns in _blocks(second)
    )


def _kernel_diagonal(sample: Sample) -> float:
    dim = sample.shape[1]
    return sum(float((((rows**2).sum(axis=1) / dim + 1.0) ** 3).sum()) for rows in _blocks(sample))


def precision_and_recall(
    synthetic: Sample, reference: Sample, neighbors: int
) -> tuple[float, float]:
    """Return improved precision and recall (Kynkaanniemi et al. 2019, eq. 1 and 2).

    A sample's manifold is the union of balls around its points, each reaching to the point's
    `neighbors`-th nearest other point of the sample. Precision: share of synthetic points in the
    reference's manifold; recall: share of reference points in the synthetic one. Each sample
    needs more than `neighbors` points.
    """
    return (
        _covered(synthetic, reference, _radii(reference, neighbors)),
        _covered(reference, synthetic, _radii(synthetic, neighbors)),
    )


def _radii(sample: Sample, neighbors: int) -> Block:
    """Return each point's squared distance to its `neighbors`-th nearest other point, [n]."""
    radii = []
    for number, rows in enumerate(_blocks(sample)):
        nearest = np.full((len(rows), neighbors), np.inf)
        for other, columns in enumerate(_blocks(sample)):
            apart = _squared_distances(rows, columns)
            if other == number:
                np.fill_diagonal(apart, np.inf)
            pool = np.concatenate([nearest, apart], axis=1)
            nearest = np.partition(pool, neighbors - 1, axis=1)[:, :neighbors]
        radii.append(nearest.max(axis=1))
    return np.concatenate(radii)


def _covered(points: Sample, centres: Sample, radii: Block) -> float:
    """Return the share of points within any centre's radius; `radii`: squared, [m]."""
    inside = 0
    for rows in _blocks(points):
        hit = np.zeros(len(rows), dtype=bool)
        for columns, radius in zip(_blocks(centres), _blocks(radii), strict=True):
            # Distances come from products: rounding must not put a copy of the centre of a ball
            # of radius 0 outside it.
            reach = radius + 1e-12 * (columns**2).sum(axis=1)
            hit |= (_squared_distances(rows, columns) <= reach).any(axis=1)
        inside += int(hit.sum())
    return inside / len(points)


def _squared_distances(rows: Block, columns: Block) -> Block:
    products = rows @ columns.T
    sizes = (rows**2).sum(axis=1)[:, None] + (columns**2).sum(axis=1)
    return np.asarray(np.maximum(sizes - 2.0 * products, 0.0))


def _blocks(sample: Sample) -> Iterator[Block]:
    for start in range(0, len(sample), _ROWS):
        yield sample[start : start + _ROWS].astype(np.float64)
