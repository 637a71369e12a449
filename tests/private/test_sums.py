"""A unit moves the sums by a vector of norm at most 1, whatever its records are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pe_ray.components.generators.gaussians import ClassMoments
from pe_ray.components.moments import LabelMoments, RidgeMoments
from pe_ray.plugins import Statistic
from pe_ray.private.record_embeddings import EmbeddedRecords
from pe_ray.private.sums import clip_and_sum, sum_pieces
from pe_ray.values import LATTICE

SHORTER = 1 - 2**-10
VALUES = st.floats(width=32)  # infinities and NaN among them
RIDGE = RidgeMoments(num_features=4, num_labels=3)
BY_LABEL = LabelMoments(num_labels=3, dim=2, radius=0.5, seed=1)
OF_CLASSES = ClassMoments(num_labels=3, dim=4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchanged:
    """The features themselves, so that a test chooses the vectors."""

    num_values: int

    def map_records(self, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return features


def records(num: int, seed: int, users: bool, length: float = 1.0) -> EmbeddedRecords:
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((num, 4))
    features *= length / np.linalg.norm(features, axis=1, keepdims=True)
    return EmbeddedRecords(
        features=features.astype(np.float32),
        labels=rng.integers(0, 3, num).astype(np.int32),
        users=np.array([b"u%d" % u for u in rng.integers(0, 5, num)]) if users else None,
    )


def without(whole: EmbeddedRecords, gone: np.ndarray) -> EmbeddedRecords:
    return EmbeddedRecords(
        features=whole.features[~gone],
        labels=whole.labels[~gone],
        users=None if whole.users is None else whole.users[~gone],
    )


def moved(whole: EmbeddedRecords, statistic: Statistic) -> float:
    """Squared norm, in lattice steps, of what the first unit adds."""
    gone = np.arange(len(whole.labels)) == 0
    if whole.users is not None:
        gone = whole.users == whole.users[0]
    rest = sum_pieces([without(whole, gone)], statistic).steps
    steps = sum_pieces([whole], statistic).steps - rest
    return float((steps.astype(object) ** 2).sum())  # integers of any size: no rounding


@settings(max_examples=200)
@given(data=st.data(), num=st.integers(1, 6), width=st.integers(1, 40), by_user=st.booleans())
def test_adding_any_unit_moves_the_sums_by_one_at_most(
    data: st.DataObject, num: int, width: int, by_user: bool
) -> None:
    flat = data.draw(st.lists(VALUES, min_size=num * width, max_size=num * width))
    users = data.draw(st.lists(st.sampled_from("abc"), min_size=num, max_size=num))
    whole = EmbeddedRecords(
        features=np.array(flat, np.float32).reshape(num, width),
        labels=np.zeros(num, np.int32),
        users=np.array(users, "S1") if by_user else None,
    )
    assert moved(whole, Unchanged(num_values=width)) <= LATTICE**2


@settings(max_examples=50)
@given(
    num=st.integers(1, 30),
    seed=st.integers(0, 2**32 - 1),
    users=st.booleans(),
    length=st.sampled_from([0.1, 1.0, 7.0]),  # features that are too long must not count more
    statistic=st.sampled_from([RIDGE, BY_LABEL, OF_CLASSES]),
)
def test_adding_a_unit_moves_moments_by_one_at_most(
    num: int, seed: int, users: bool, length: float, statistic: Statistic
) -> None:
    assert 0 < moved(records(num, seed, users, length), statistic) <= LATTICE**2


@pytest.mark.parametrize("length", [0.5, 1.0, 3.0, 1e200])
def test_short_vectors_stay_and_long_ones_are_scaled(length: float) -> None:
    vector = np.array([[0.6, -0.8]]) * length
    found = clip_and_sum(vector).steps / LATTICE
    assert found == pytest.approx(SHORTER * vector[0] / max(1.0, length), abs=2 / LATTICE)


@pytest.mark.parametrize("users", [False, True])
def test_chunks_change_nothing_and_keep_users_whole(users: bool) -> None:
    whole = records(40, 1, users)
    expected = sum_pieces([whole], RIDGE).steps
    halves = [without(whole, np.arange(40) < 20), without(whole, np.arange(40) >= 20)]
    chunked = sum_pieces(halves, RIDGE, chunk_bytes=8 * RIDGE.num_values * 3).steps
    # A mean's additions may come in another order.
    assert np.abs(chunked - expected).max() <= (5 if users else 0)


def test_a_user_gives_the_mean_of_its_vectors() -> None:
    whole = records(40, 4, users=True)
    vectors = RIDGE.map_records(whole.features.astype(np.float64), whole.labels)
    assert whole.users is not None
    means = [vectors[whole.users == user].mean(axis=0) for user in np.unique(whole.users)]
    found = sum_pieces([whole], RIDGE).steps / LATTICE
    assert found == pytest.approx(SHORTER * np.sum(means, axis=0), abs=1e-6)


def test_unpacked_sums_are_the_products() -> None:
    whole = records(50, 2, users=False)
    features, hot = whole.features.astype(np.float64), np.eye(3)[whole.labels]
    gram, cross = RIDGE.unpack(sum_pieces([whole], RIDGE).steps / LATTICE)
    assert gram == pytest.approx(SHORTER * features.T @ features, abs=1e-5)
    assert cross == pytest.approx(SHORTER * features.T @ hot, abs=1e-5)
