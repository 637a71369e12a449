"""The teacher's sums: what a unit adds is bounded, and chunks and partitions change nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pe_ray.components.second_moments import Moments
from pe_ray.private import sums
from pe_ray.private.records import EmbeddedRecords
from pe_ray.private.sums import RawSums, sum_partition
from pe_ray.values import LATTICE

SHORTER = 1 - 2**-10  # see private.sums
LAYOUT = Moments(num_features=4, num_labels=3)


def records(num: int, seed: int, users: bool, length: float = 1.0) -> EmbeddedRecords:
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((num, LAYOUT.num_features))
    features *= length / np.linalg.norm(features, axis=1, keepdims=True)
    return EmbeddedRecords(
        features=features.astype(np.float32),
        labels=rng.integers(0, LAYOUT.num_labels, num).astype(np.int32),
        users=np.array([b"u%d" % u for u in rng.integers(0, 5, num)]) if users else None,
    )


def without(whole: EmbeddedRecords, gone: np.ndarray) -> EmbeddedRecords:
    return EmbeddedRecords(
        features=whole.features[~gone],
        labels=whole.labels[~gone],
        users=None if whole.users is None else whole.users[~gone],
    )


def total(*pieces: EmbeddedRecords) -> RawSums:
    return sum_partition(pieces, LAYOUT.pack, LAYOUT.num_values)


@settings(max_examples=50, deadline=None)
@given(
    num=st.integers(1, 30),
    seed=st.integers(0, 2**32 - 1),
    users=st.booleans(),
    length=st.sampled_from([0.1, 1.0, 7.0]),  # features that are too long must not count more
)
def test_a_unit_moves_the_sums_by_one_at_most(
    num: int, seed: int, users: bool, length: float
) -> None:
    whole = records(num, seed, users, length)
    gone = np.arange(num) == 0 if whole.users is None else whole.users == whole.users[0]
    moved = (total(whole).steps - total(without(whole, gone)).steps).astype(object)
    assert (moved**2).sum() <= LATTICE**2


@pytest.mark.parametrize("users", [False, True])
def test_chunks_change_nothing_and_keep_users_whole(
    users: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = records(40, 1, users)
    expected = total(whole).steps
    monkeypatch.setattr(sums, "_CHUNK_BYTES", 8 * LAYOUT.num_values * 3)
    halves = [without(whole, np.arange(40) < 20), without(whole, np.arange(40) >= 20)]
    chunked = total(*halves).steps
    # A mean's additions may come in another order.
    assert np.abs(chunked - expected).max() <= (5 if users else 0)


def test_a_user_gives_the_mean_of_its_records() -> None:
    whole = records(40, 4, users=True)
    packed = LAYOUT.pack(whole.features.astype(np.float64), whole.labels)
    assert whole.users is not None
    means = [packed[whole.users == user].mean(axis=0) for user in np.unique(whole.users)]
    found = total(whole).steps / LATTICE
    assert found == pytest.approx(SHORTER * np.sum(means, axis=0), abs=1e-6)


def test_unpacked_sums_are_the_products() -> None:
    whole = records(50, 2, users=False)
    features, hot = whole.features.astype(np.float64), np.eye(LAYOUT.num_labels)[whole.labels]
    gram, cross = LAYOUT.unpack(total(whole).steps / LATTICE)
    assert gram == pytest.approx(SHORTER * features.T @ features, abs=1e-5)
    assert cross == pytest.approx(SHORTER * features.T @ hot, abs=1e-5)


def test_a_records_vector_has_its_features_norm_squared() -> None:
    packed = LAYOUT.pack(records(20, 3, False).features.astype(np.float64), np.zeros(20, np.int32))
    assert packed.shape == (20, LAYOUT.num_values)
    assert np.linalg.norm(packed, axis=1) == pytest.approx(np.ones(20), abs=1e-6)
