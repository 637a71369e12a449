"""Steps and noise schedules against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pe_ray.components.generators.ddim import compute_signal, space_steps


def test_spacings_worked_out_by_hand() -> None:
    assert space_steps(4000, "10") == [0, 444, 889, 1333, 1777, 2222, 2666, 3110, 3555, 3999]
    assert space_steps(4000, "ddim10") == list(range(0, 4000, 400))
    # 7 steps in two sections: 0..3 and 4..6; 2 of the first, 3 of the second
    assert space_steps(7, "2,3") == [0, 3, 4, 5, 6]
    assert space_steps(5, "") == [0, 1, 2, 3, 4]
    assert space_steps(9, "1") == [0]
    assert space_steps(4, "3") == [0, 2, 3]  # 1.5 is rounded to even


@given(st.integers(1, 500), st.integers(1, 500))
def test_even_spacing_reaches_both_ends(num_steps: int, wanted: int) -> None:
    if wanted > num_steps:
        with pytest.raises(ValueError, match="take"):
            space_steps(num_steps, str(wanted))
        return
    steps = space_steps(num_steps, str(wanted))
    assert len(set(steps)) == wanted
    assert steps == sorted(steps)
    assert steps[0] == 0
    assert wanted == 1 or steps[-1] == num_steps - 1
    gaps = np.diff(steps)
    assert wanted == 1 or gaps.max() - gaps.min() <= 1


@given(st.integers(1, 500), st.integers(1, 60))
def test_ddim_spacing_is_the_least_whole_stride(num_steps: int, wanted: int) -> None:
    strides = [s for s in range(1, num_steps + 1) if -(-num_steps // s) == wanted]
    if strides:
        assert space_steps(num_steps, f"ddim{wanted}") == list(range(0, num_steps, strides[0]))
    else:
        with pytest.raises(ValueError, match="stride"):
            space_steps(num_steps, f"ddim{wanted}")


def test_schedules_fall_from_the_image_to_noise() -> None:
    for schedule in ("cosine", "linear"):
        for num_steps in (1000, 4000):
            shares = compute_signal(schedule, num_steps)
            assert shares.shape == (num_steps,)
            assert (np.diff(shares) < 0).all()
            assert shares[0] > 0.999
            assert shares[-1] < 1e-4
    middle = np.cos((0.5 + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    assert compute_signal("cosine", 4000)[1999] == pytest.approx(middle, rel=1e-9)
    first, second = compute_signal("linear", 1000)[:2]
    assert 1 - first == pytest.approx(1e-4)
    assert 1 - second / first == pytest.approx(1e-4 + (0.02 - 1e-4) / 999)
