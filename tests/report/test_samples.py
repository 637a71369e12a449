"""The samples on a page are few and small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pe_ray.report.facts import gather
from pe_ray.report.samples import (
    THUMBNAIL,
    pick_evenly,
    read_samples,
    reduce_image,
)
from pe_ray.synthetic.population_files import read_population


def test_images_on_the_page_are_small(finished: Path) -> None:
    image = np.zeros((300, 200, 3), np.uint8)
    assert reduce_image(image).shape == (THUMBNAIL, 64, 3)
    assert reduce_image(image[:12, :12]).shape == (12, 12, 3)
    strips = read_samples(gather(finished), 3)
    assert all(0 < len(strip) <= 12 for strip in strips.values())


@pytest.mark.parametrize(("count", "most", "expected"), [(3, 7, [0, 1, 2]), (1, 4, [0])])
def test_both_ends_are_picked(count: int, most: int, expected: list[int]) -> None:
    assert pick_evenly(range(count), most) == expected
    many = pick_evenly(range(1001), 7)
    assert (many[0], many[-1], len(many)) == (0, 1000, 7)


def test_each_label_shows_its_own_samples(finished: Path) -> None:
    facts = gather(finished)
    layout, options = facts.layouts[2], facts.config.generator_at(2).options
    shown = read_samples(facts, 2)
    assert list(shown) == [label for label, count in enumerate(layout.counts) if count]
    for label, images in shown.items():
        ids = pick_evenly(range(*layout.label_range(label)), 12)
        rows = read_population(facts.run.population(2), np.array(ids), options)
        assert np.array_equal(np.stack(images), [reduce_image(one) for one in rows["image"]])
