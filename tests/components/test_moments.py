"""What a record adds to sums has the norm that is stated, and a distance tells samples apart."""

from __future__ import annotations

import numpy as np
import pytest

from pe_ray.components.moments import LabelMoments, RidgeMoments

RIDGE = RidgeMoments(num_features=4, num_labels=3)
BY_LABEL = LabelMoments(num_labels=3, dim=4, radius=1.5, seed=1)


def sample(num: int, shift: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, num).astype(np.int32)
    features = rng.normal(size=(num, 6)) * 0.2 + shift + labels[:, None] * 0.2
    return features, labels


def test_a_vector_of_ridge_moments_has_its_features_norm_squared() -> None:
    features = np.random.default_rng(3).standard_normal((20, 4))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    vectors = RIDGE.map_records(features, np.arange(20, dtype=np.int32) % 3)
    assert vectors.shape == (20, RIDGE.num_values)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(20), abs=1e-6)


def test_a_vector_of_label_moments_has_norm_at_most_1_and_reaches_it() -> None:
    features, labels = sample(500)
    norms = np.linalg.norm(BY_LABEL.map_records(features * 50, labels), axis=1)
    assert norms.max() == pytest.approx(1.0)
    assert norms.max() <= 1 + 1e-9
    assert np.linalg.norm(BY_LABEL.map_records(features, labels), axis=1).min() < 1


def test_the_distance_tells_a_shifted_sample_and_is_0_for_itself() -> None:
    def sums(seed: int = 0, shift: float = 0.0) -> np.ndarray:
        return BY_LABEL.map_records(*sample(4000, shift, seed)).sum(axis=0)

    first, again, apart = sums(), sums(seed=1), sums(shift=0.3)
    assert BY_LABEL.distance(first, first) == pytest.approx(0, abs=1e-6)
    near, far = BY_LABEL.distance(again, first), BY_LABEL.distance(apart, first)
    assert 0 <= near < far / 20
    noisy = first + np.random.default_rng(0).normal(size=first.shape) * 20
    assert BY_LABEL.distance(again, noisy) < BY_LABEL.distance(apart, noisy)
