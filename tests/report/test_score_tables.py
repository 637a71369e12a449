"""Spread of votes, on histograms whose answer is known; thumbnails stay small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pe_ray.report.facts import gather
from pe_ray.report.samples import THUMBNAIL, chosen, data_uri, grid, samples_of, thumbnail
from pe_ray.report.score_tables import _spread, _weights, metric_names, rows_of, spreads_of
from pe_ray.values import LabelLayout


def test_spread_of_even_and_single_votes(finished: Path) -> None:
    facts = gather(finished)
    settings = facts.config.selection.model_copy(update={"denoise": "none"})
    facts = replace(facts, config=facts.config.model_copy(update={"selection": settings}))
    layout = LabelLayout(counts=(10, 10))
    released = facts.votes(1)
    assert released is not None
    votes = np.array([5] * 10 + [0] * 9 + [50])
    histogram = replace(released, noisy_votes=votes)
    row = _spread(histogram, layout, _weights(facts, histogram, layout))
    assert row["effective_parents"] == 10 + 1
    assert row["survivors"] == 11
    assert row["noisy_votes"] == 100
    assert row["top_tenth_share"] == pytest.approx(0.55)


def test_rows_and_curves_cover_every_release(finished: Path) -> None:
    facts = gather(finished)
    assert [row["iteration"] for row in rows_of(facts)] == [1, 2, 3]
    for _, curve in spreads_of(facts):
        shares = [share for _, share in curve]
        assert curve[0] == (0.0, 0.0)
        assert curve[-1] == (1.0, pytest.approx(1.0))
        assert shares == sorted(shares)
        assert all(y >= x - 1e-9 for x, y in curve)  # heaviest first: above the diagonal


def test_only_finite_numbers_of_others_are_metrics() -> None:
    rows = [{"iteration": 1, "sigma": 2.0, "fid": 3, "name": "x", "bad": float("nan"), "on": True}]
    assert metric_names(rows) == ["fid"]


def test_images_on_the_page_are_small(finished: Path) -> None:
    image = np.zeros((300, 200, 3), np.uint8)
    assert thumbnail(image).shape == (THUMBNAIL, 64, 3)
    assert thumbnail(image[:12, :12]).shape == (12, 12, 3)
    assert data_uri(grid([[thumbnail(image)] * 3]), THUMBNAIL).startswith("data:image/jpeg;base64,")
    assert data_uri(image[:12, :12], 12).startswith("data:image/png;base64,")
    strips = samples_of(gather(finished), 3)
    assert all(0 < len(strip) <= 12 for strip in strips.values())


@pytest.mark.parametrize(("count", "most", "expected"), [(3, 7, [0, 1, 2]), (1, 4, [0])])
def test_chosen_keeps_both_ends(count: int, most: int, expected: list[int]) -> None:
    assert chosen(count, most) == expected
    many = chosen(1001, 7)
    assert (many[0], many[-1], len(many)) == (0, 1000, 7)
