"""A unit moves the sums by a vector of norm at most 1, whatever its records are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pe_ray.private.sums import clipped_sums
from pe_ray.values import LATTICE

SHORTER = 1 - 2**-10
VALUES = st.floats(width=64)  # infinities and NaN among them


@settings(max_examples=200, deadline=None)
@given(data=st.data(), num=st.integers(1, 6), width=st.integers(1, 40), by_user=st.booleans())
def test_adding_a_unit_moves_the_sums_by_one_at_most(
    data: st.DataObject, num: int, width: int, by_user: bool
) -> None:
    flat = data.draw(st.lists(VALUES, min_size=num * width, max_size=num * width))
    vectors = np.array(flat).reshape(num, width)
    users = np.array(data.draw(st.lists(st.sampled_from("abc"), min_size=num, max_size=num)), "S1")
    gone = (users == users[0]) if by_user else np.arange(num) == 0
    whole = clipped_sums(vectors, users if by_user else None)
    rest = clipped_sums(vectors[~gone], users[~gone] if by_user else None)
    moved = (whole.steps - rest.steps).astype(object)  # integers of any size: no rounding
    assert (moved**2).sum() <= LATTICE**2


@pytest.mark.parametrize("length", [0.5, 1.0, 3.0, 1e200])
def test_short_vectors_stay_and_long_ones_are_scaled(length: float) -> None:
    vector = np.array([[0.6, -0.8]]) * length
    found = clipped_sums(vector, None).steps / LATTICE
    assert found == pytest.approx(SHORTER * vector[0] / max(1.0, length), abs=2 / LATTICE)


def test_a_user_adds_the_mean_of_clipped_vectors() -> None:
    vectors = np.array([[10.0, 0.0], [0.0, 0.5], [0.5, 0.0]])
    found = clipped_sums(vectors, np.array([b"a", b"a", b"b"])).steps / LATTICE
    assert found == pytest.approx([SHORTER, SHORTER * 0.25], abs=3 / LATTICE)
