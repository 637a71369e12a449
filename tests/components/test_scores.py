"""Scores against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from pe_ray.components.scores import ClassifierAccuracy, frechet_distance


def test_frechet_distance_of_gaussians_with_common_axes() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(4000, 3))
    base = np.linalg.solve(
        np.linalg.cholesky(np.cov(base, rowvar=False)), (base - base.mean(0)).T
    ).T
    spread, shift = np.array([1.0, 2.0, 0.5]), np.array([3.0, 0.0, -1.0])
    expected = (shift**2).sum() + ((spread - 1) ** 2).sum()
    assert frechet_distance(base, base * spread + shift) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(base, base) == pytest.approx(0, abs=1e-9)


def test_accuracy_is_high_for_separable_and_chance_for_shuffled_labels() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(400, dtype=np.int32) % 2
    images = rng.integers(0, 60, (400, 4, 4, 1), dtype=np.uint8)
    images[labels == 1, :2] += 150
    metric = ClassifierAccuracy(ClassifierAccuracy.Options(size=4))
    right = metric.score(images[:200], labels[:200], images[200:], labels[200:])
    wrong = metric.score(images[:200], rng.permutation(labels[:200]), images[200:], labels[200:])
    assert right["accuracy_train_synthetic"] > 0.99
    assert 0.1 < wrong["accuracy_train_synthetic"] < 0.9
