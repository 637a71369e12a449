"""Sums that a search pays for: a unit moves them by at most 1."""

from __future__ import annotations

import numpy as np
import pytest

from pe_ray.components.metrics.moments import MomentsSpec, moment_vectors, moments_distance
from pe_ray.private.sums import clipped_sums

SPEC = MomentsSpec(num_labels=3, dim=4, radius=1.5, seed=1)


def sample(num: int, shift: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, num).astype(np.int32)
    features = rng.normal(size=(num, 6)) * 0.2 + shift + labels[:, None] * 0.2
    return features.astype(np.float32), labels


def test_a_moment_vector_has_norm_at_most_1_and_reaches_it() -> None:
    features, labels = sample(500)
    vectors = moment_vectors(features * 50, labels, SPEC)
    norms = np.sqrt((vectors**2).sum(axis=1))
    assert norms.max() == pytest.approx(1.0)
    assert norms.max() <= 1 + 1e-9
    assert np.sqrt((moment_vectors(features, labels, SPEC) ** 2).sum(axis=1)).min() < 1


@pytest.mark.parametrize("of_users", [False, True])
def test_removing_a_unit_moves_the_sums_by_at_most_1(of_users: bool) -> None:
    features, labels = sample(60)
    users = np.array([b"%d" % (n % 7) for n in range(60)]) if of_users else None
    gone = np.arange(60) == 3 if users is None else users == b"3"
    whole = clipped_sums(moment_vectors(features * 9, labels, SPEC), users)
    kept = None if users is None else users[~gone]
    rest = clipped_sums(moment_vectors(features[~gone] * 9, labels[~gone], SPEC), kept)
    moved = np.sqrt((((whole.steps - rest.steps) / 2**26) ** 2).sum())
    assert 0.5 < moved <= 1


def test_the_distance_tells_a_shifted_sample_and_is_0_for_itself() -> None:
    first = moment_vectors(*sample(4000), SPEC).sum(axis=0)
    again = moment_vectors(*sample(4000, seed=1), SPEC).sum(axis=0)
    apart = moment_vectors(*sample(4000, shift=0.3), SPEC).sum(axis=0)
    assert moments_distance(first, first, SPEC) == pytest.approx(0, abs=1e-6)
    near, far = moments_distance(again, first, SPEC), moments_distance(apart, first, SPEC)
    assert 0 <= near < far / 20
    noisy = first + np.random.default_rng(0).normal(size=first.shape) * 20
    assert moments_distance(again, noisy, SPEC) < moments_distance(apart, noisy, SPEC)
