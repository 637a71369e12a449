"""Scores by iteration: the spread of votes on histograms whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pe_ray.report.facts import gather
from pe_ray.report.score_tables import describe_votes, list_scores
from pe_ray.values import LabelLayout


def test_spread_of_even_and_single_votes(finished: Path) -> None:
    facts = gather(finished)
    settings = facts.config.selection.model_copy(update={"denoise": "none"})
    facts = replace(facts, config=facts.config.model_copy(update={"selection": settings}))
    layout = LabelLayout(counts=(10, 10))
    released = facts.read_votes(1)
    assert released is not None
    votes = np.array([5] * 10 + [0] * 9 + [50])
    histogram = replace(released, noisy_votes=votes)
    row = describe_votes(facts, histogram, layout)
    assert row["effective_parents"] == 10 + 1
    assert row["survivors"] == 11
    assert row["above_noise"] == (votes > 2 * released.release.sigma).sum()
    assert row["noisy_votes"] == 100
    assert row["top_tenth_share"] == pytest.approx(0.55)


def test_rows_cover_every_release(finished: Path) -> None:
    facts = gather(finished)
    rows = list_scores(facts)
    assert [row["iteration"] for row in rows] == [1, 2, 3]
    sigmas = [entry.release.sigma for entry in facts.entries if entry.release.kind == "votes"]
    assert [row["sigma"] for row in rows] == sigmas
    for row in rows:
        assert 0.1 <= row["top_tenth_share"] <= 1
        assert 0 < row["effective_parents"] <= row["survivors"] <= row["num_samples"] == 60
