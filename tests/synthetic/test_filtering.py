"""Rows that an expansion leaves out."""

from __future__ import annotations

import numpy as np
import pytest

from pe_ray.synthetic.filtering import Filters

ORIGINALS = np.random.default_rng(0).integers(0, 256, (6, 9, 8, 3), dtype=np.uint8)


def test_nothing_is_dropped_by_default() -> None:
    images = np.zeros_like(ORIGINALS)
    assert Filters().choose(images, images).all()


def test_images_of_one_colour_and_variations_that_are_none_are_failures() -> None:
    images = ORIGINALS[::-1].copy()
    images[0] = [10, 20, 30]
    images[1] = 0
    images[2, 1:] = images[2, 0, 0]  # two colours
    images[4] = ORIGINALS[4]
    filters = Filters(failed=True)
    assert filters.choose(images, ORIGINALS).tolist() == [False, False, True, True, False, True]
    assert filters.choose(images, None).tolist() == [False, False, True, True, True, True]


@pytest.mark.parametrize("levels", [1, 3])
def test_images_near_to_their_sample_or_to_a_row_before_are_dropped(levels: int) -> None:
    images = ORIGINALS[::-1].copy()
    images[1] = np.where(ORIGINALS[1] < 128, ORIGINALS[1] + levels, ORIGINALS[1] - levels)
    images[3] = np.where(images[0] < 128, images[0] + levels, images[0] - levels)
    images[5] = images[3]  # near to one that is dropped, and to the first
    for near, expected in ((levels, [1, 1, 1, 1, 1, 0]), (levels + 0.5, [1, 0, 1, 0, 1, 0])):
        kept = Filters(near=near).choose(images, ORIGINALS)
        assert kept.tolist() == list(map(bool, expected))
