"""Distances of samples against closed forms, arbitrary precision and brute force."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import sqrtm

from pe_ray.components.metrics import distances
from pe_ray.components.metrics.distances import (
    compare_manifolds,
    frechet_distance,
    kernel_distance,
)

Sample = NDArray[np.float64]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that samples of a test span several."""
    monkeypatch.setattr(distances, "_ROWS", 7)


def normal(num: int, dim: int, seed: int) -> Sample:
    return np.random.default_rng(seed).normal(size=(num, dim))


def white(num: int, dim: int, seed: int) -> Sample:
    """A sample of mean 0 and covariance 1, exactly."""
    raw = normal(num, dim, seed)
    root = np.linalg.cholesky(np.cov(raw, rowvar=False).reshape(dim, dim))
    return np.linalg.solve(root, (raw - raw.mean(axis=0)).T).T


def test_frechet_distance_of_gaussians_whose_covariances_commute() -> None:
    first, second = white(60, 5, seed=0), white(43, 5, seed=1)
    turn = np.linalg.qr(normal(5, 5, seed=2))[0]
    spread1, spread2 = np.array([1.0, 2.0, 0.5, 0, 3]), np.array([2.0, 2.0, 0, 0, 1])
    shift = np.array([3.0, 0, -1, 0.5, 0])
    expected = (shift**2).sum() + ((spread1 - spread2) ** 2).sum()
    found = frechet_distance(first * spread1 @ turn, second * spread2 @ turn + shift)
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("num", "dim"), [(200, 4), (9, 30), (2, 1)])
def test_frechet_distance_of_a_sample_and_itself_is_0_even_if_singular(num: int, dim: int) -> None:
    sample = normal(num, dim, seed=0)
    sample[:, 0] = 3.0
    moved = sample[::-1] + 0.25
    scale = sample.var(axis=0).sum() + 1
    assert abs(frechet_distance(sample, sample[::-1])) < 1e-13 * scale
    assert frechet_distance(sample, moved) == pytest.approx(dim / 16, abs=1e-12 * scale)


def test_frechet_distance_against_the_formula() -> None:
    mix = normal(6, 6, seed=3)
    first, second = normal(90, 6, seed=4) @ mix, normal(70, 6, seed=5) + 0.3
    cov1, cov2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    apart = first.mean(axis=0) - second.mean(axis=0)
    traces = apart @ apart + np.trace(cov1) + np.trace(cov2)
    found = frechet_distance(first, second)
    assert found == pytest.approx(traces - 2 * np.trace(sqrtm(cov1 @ cov2)).real, rel=1e-10)
    assert found == pytest.approx(frechet_distance(second, first), rel=1e-12)
    with mpmath.workdps(40):
        product = mpmath.matrix(cov1.tolist()) * mpmath.matrix(cov2.tolist())
        eigenvalues = mpmath.eig(product, left=False, right=False)
        root = float(sum(mpmath.sqrt(value) for value in eigenvalues).real)
    assert found == pytest.approx(traces - 2 * root, rel=1e-12)


def test_frechet_distance_keeps_its_precision_far_from_the_origin_and_in_float32() -> None:
    first, second = white(500, 3, seed=6), white(400, 3, seed=7) * 2.0
    far = np.array([1e4, -1e4, 0.0])
    assert frechet_distance(first + far, second + far) == pytest.approx(3.0, rel=1e-8)
    small = (first.astype(np.float32), second.astype(np.float32))
    assert frechet_distance(*small) == pytest.approx(3.0, rel=1e-5)


def _brute_kernel(first: Sample, second: Sample) -> float:
    def kernel(x: Sample, y: Sample) -> float:
        return float(x @ y / len(x) + 1) ** 3

    def within(sample: Sample) -> float:
        pairs = itertools.permutations(sample, 2)
        return sum(kernel(x, y) for x, y in pairs) / (len(sample) * (len(sample) - 1))

    between = np.mean([kernel(x, y) for x in first for y in second])
    return within(first) + within(second) - 2 * float(between)


@pytest.mark.parametrize(("num", "other"), [(2, 2), (15, 8), (20, 33)])
def test_kernel_distance_against_every_pair(num: int, other: int) -> None:
    first, second = normal(num, 4, seed=0), normal(other, 4, seed=1) + 0.5
    expected = _brute_kernel(first, second)
    assert kernel_distance(first, second) == pytest.approx(expected, rel=1e-10)
    assert kernel_distance(second, first) == pytest.approx(expected, rel=1e-10)


def test_kernel_distance_is_unbiased() -> None:
    """Its mean over draws of one distribution is 0, within 4 standard errors."""
    found = np.array(
        [kernel_distance(normal(6, 3, 2 * s), normal(9, 3, 2 * s + 1)) for s in range(2000)]
    )
    assert abs(found.mean()) < 4 * found.std() / np.sqrt(len(found))
    assert (found < 0).any()


def _brute_inside(points: Sample, centres: Sample, neighbors: int) -> NDArray[np.bool_]:
    """Tell whether each point lies in the ball around each centre."""

    def radius(index: int) -> float:
        apart = [np.linalg.norm(centres[index] - x) for x in np.delete(centres, index, axis=0)]
        return float(sorted(apart)[neighbors - 1])

    radii = [radius(index) for index in range(len(centres))]
    balls = list(zip(centres, radii, strict=True))
    return np.array([[bool(np.linalg.norm(x - y) <= r) for y, r in balls] for x in points])


@pytest.mark.parametrize("neighbors", [1, 3, 5])
@pytest.mark.parametrize(("num", "other"), [(6, 6), (20, 31), (40, 8)])
def test_manifolds_against_every_pair(num: int, other: int, neighbors: int) -> None:
    synthetic, reference = normal(num, 3, seed=0) * 0.7, normal(other, 3, seed=1)
    inside = _brute_inside(synthetic, reference, neighbors)
    assert compare_manifolds(synthetic, reference, neighbors) == {
        "precision": inside.any(axis=1).mean(),
        "recall": _brute_inside(reference, synthetic, neighbors).any(axis=1).mean(),
        "density": pytest.approx(inside.sum() / (neighbors * num), rel=1e-12),
        "coverage": inside.any(axis=0).mean(),
    }


def test_manifolds_of_a_part_and_of_copies() -> None:
    reference = np.concatenate([normal(30, 2, seed=0), normal(30, 2, seed=1) + 100])
    part = compare_manifolds(reference[:30] + 1e-6, reference, 3)
    assert (part["precision"], part["recall"], part["coverage"]) == (1.0, 0.5, 0.5)
    assert set(compare_manifolds(reference + 1000, reference, 3).values()) == {0.0}
    # Balls of radius 0, around points whose squared norm no product gives exactly.
    copies = np.repeat(normal(9, 50, seed=2) * 1e3, 5, axis=0)
    found = compare_manifolds(copies, copies[::-1], 3)
    assert found == {"precision": 1.0, "recall": 1.0, "density": 5 / 3, "coverage": 1.0}


def test_density_tells_typical_points_from_outliers() -> None:
    """One far outlier makes one wide ball: it spoils precision, and density little."""
    reference = np.concatenate([normal(200, 2, seed=0), [[30.0, 0.0]]])
    between = normal(200, 2, seed=1) * 0.1 + [15.0, 0.0]
    found = compare_manifolds(between, reference, 3)
    assert found["precision"] == 1.0
    assert (
        found["density"] < 0.4 < 0.8 < compare_manifolds(reference[:200], reference, 3)["density"]
    )


def _sum_of_manifolds(first: Sample, second: Sample) -> float:
    return sum(compare_manifolds(first, second, 2).values())


@pytest.mark.parametrize(
    "distance",
    [frechet_distance, kernel_distance, _sum_of_manifolds],
)
def test_blocks_do_not_matter(
    distance: Callable[[Sample, Sample], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = normal(50, 4, seed=0), normal(45, 4, seed=1)
    split = distance(first, second)
    monkeypatch.setattr(distances, "_ROWS", 1000)
    assert distance(first, second) == pytest.approx(split, rel=1e-12)
