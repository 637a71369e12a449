"""Parents are drawn in proportion, label by label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from small_runs import run_in

from pe_ray import Config
from pe_ray.config.blocks import SelectionConfig, SelectionSettings
from pe_ray.run_context import RunContext
from pe_ray.synthetic.denoising import denoise, fall_back
from pe_ray.synthetic.embedding import embed
from pe_ray.synthetic.population import (
    Offspring,
    Population,
    apportion,
    initial_offspring,
    lookahead_draws,
)
from pe_ray.synthetic.selection import draw_parents, select_parents
from pe_ray.values import LabelLayout, NoisyHistogram, Release

histograms = arrays(np.float64, st.integers(1, 40), elements=st.integers(-50, 50).map(float))


@settings(deadline=None)
@given(histograms, st.integers(1, 60), st.integers(0, 2**31))
def test_systematic_draws_are_within_one_of_their_expectation(
    votes: np.ndarray, num: int, seed: int
) -> None:
    weights = fall_back(np.maximum(votes, 0), votes)
    drawn = draw_parents(weights, num, "systematic", seed)
    expected = num * weights / weights.sum()
    assert (np.abs(np.bincount(drawn, minlength=len(weights)) - expected) < 1 + 1e-6).all()
    assert (np.diff(drawn) >= 0).all()


def test_rank_and_multinomial() -> None:
    weights = np.array([1.0, 5.0, 0.0, 3.0, 5.0])
    assert draw_parents(weights, 3, "rank", 0).tolist() == [1, 3, 4]
    assert draw_parents(weights, 7, "rank", 0).tolist() == [0, 1, 1, 2, 3, 4, 4]
    drawn = draw_parents(weights, 14_000, "multinomial", 1)
    assert np.bincount(drawn, minlength=5) / 1000 == pytest.approx([1, 5, 0, 3, 5], rel=0.15)


def voted(
    tree: dict[str, Any], folder: Path, counts: tuple[int, ...]
) -> tuple[RunContext, Population]:
    tree["private"]["labels"], tree["privacy"]["label_fractions"] = ["a", "b"], "uniform"
    tree["schedule"]["num_samples"] = 8
    run = run_in(folder, Config.from_dict(tree))
    layout = LabelLayout(counts=counts)
    return run, Population(iteration=0, layout=layout, directory=folder)


def test_families_keep_their_parent_and_label(tree: dict[str, Any], tmp_path: Path) -> None:
    tree["selection"] = {"keep_selected": True, "next_variation_fold": 2}
    run, population = voted(tree, tmp_path, (2, 3))
    weights = np.array([0.0, 4.0, 0.0, 0.0, 9.0])
    offspring = select_parents(run, population, weights, LabelLayout(counts=(3, 4)))
    assert offspring.parents.tolist() == [1, 1, 1, 4, 4, 4, 4]
    assert offspring.copies.tolist() == [0, 1, 2, 0, 1, 2, 0]
    first = initial_offspring(LabelLayout(counts=(3, 2)), 1)
    assert first.parents.tolist() == [0, 0, 1, 2, 2]
    assert first.copies.tolist() == [0, 1, 0, 0, 1]


def test_a_label_without_survivors_draws_from_its_positive_counts(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    tree["selection"] = {"denoise": "threshold", "threshold": 1000.0}
    run, population = voted(tree, tmp_path, (3, 2))
    release = Release(key="votes/0001", kind="votes", iteration=1, votes_per_unit=1, sigma=0.0)
    histogram = NoisyHistogram(release=release, noisy_votes=np.array([0, 7, -5, -2, -9]))
    weights = denoise(run, embed(run, population), histogram)
    offspring = select_parents(run, population, weights, LabelLayout(counts=(4, 4)))
    assert offspring.parents.tolist() == [1, 1, 1, 1, 3, 3, 4, 4]


def test_overrides_change_one_iteration_only() -> None:
    settings = SelectionConfig(
        method="rank",
        overrides={2: {"denoise": "simplex", "keep_selected": True, "next_variation_fold": 3}},
    )
    assert settings.at(1) == settings.at(3) == SelectionSettings(method="rank")
    assert settings.at(2) == SelectionSettings(
        method="rank", denoise="simplex", keep_selected=True, next_variation_fold=3
    )
    with pytest.raises(ValueError, match="treshold"):
        SelectionConfig(overrides={1: {"treshold": 2}}).at(1)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12).filter(any), st.integers(12, 500))
def test_apportioning_is_exact_and_loses_no_label(shares: list[float], num: int) -> None:
    counts = apportion(num, shares).counts
    assert sum(counts) == num
    assert all((count > 0) == (share > 0) for count, share in zip(counts, shares, strict=True))


def test_a_parents_first_variations_are_its_lookahead_draws() -> None:
    offspring = Offspring(
        layout=LabelLayout(counts=(8,)),
        parents=np.array([2, 2, 2, 2, 5, 5, 7, 7]),
        copies=np.array([0, 1, 2, 3, 1, 2, 0, 1], dtype=np.int32),
    )
    assert lookahead_draws(offspring, 2).tolist() == [-1, 0, 1, -1, 0, 1, -1, 0]
