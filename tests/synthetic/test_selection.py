"""Denoising and drawing are defined for every histogram."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pe_ray.config.blocks import SelectionConfig, SelectionSettings
from pe_ray.synthetic.population import (
    Offspring,
    Population,
    apportion,
    initial_offspring,
    lookahead_draws,
    next_offspring,
)
from pe_ray.synthetic.selection import (
    auto_threshold,
    denoiser,
    draw,
    simplex,
    votes_of,
    with_fallback,
)
from pe_ray.values import LabelLayout, NoisyHistogram, Release

histograms = arrays(np.int64, st.integers(1, 40), elements=st.integers(-50, 50))


@settings(deadline=None)
@given(histograms, st.sampled_from(["threshold", "simplex", "none"]), st.floats(0, 20))
def test_weights_always_make_a_distribution(votes: np.ndarray, name: str, sigma: float) -> None:
    weights = with_fallback(denoiser(name, "auto")(votes, sigma), votes)
    assert np.isfinite(weights).all()
    assert (weights >= 0).all()
    assert weights.sum() > 0


def test_no_survivor_falls_back_to_positive_counts_then_to_all() -> None:
    none = np.zeros(3)
    assert with_fallback(none, np.array([2, -1, 4])).tolist() == [2, 0, 4]
    assert with_fallback(none, np.array([-2, -1, 0])).tolist() == [1, 1, 1]


@settings(deadline=None)
@given(histograms)
def test_simplex_is_the_nearest_vector_with_the_same_sum(votes: np.ndarray) -> None:
    weights, total = simplex(votes), max(0, int(votes.sum()))
    assert weights.sum() == pytest.approx(total, abs=1e-6)
    if total > 0:  # Karush-Kuhn-Tucker: one shift for all that stay, none larger below
        shift = (votes - weights)[weights > 0]
        assert np.ptp(shift) < 1e-6
        assert (votes[weights == 0] <= shift.max() + 1e-6).all()


def test_a_number_is_subtracted_and_clipped_at_0() -> None:
    votes = np.array([-3, 0, 2, 3, 10])
    assert denoiser("threshold", 2.5)(votes, 100.0).tolist() == [0, 0, 0, 0.5, 7.5]
    assert denoiser("none", 2.5)(votes, 100.0).tolist() == [0, 0, 2, 3, 10]


def test_auto_threshold_removes_pure_noise_and_keeps_signal() -> None:
    rng = np.random.default_rng(0)
    noise = np.round(rng.normal(0, 10, 1000)).astype(np.int64)
    assert auto_threshold(noise, 10.0) > 20
    assert auto_threshold(noise + 500, 10.0) < 1
    assert auto_threshold(noise, 0.0) == 0


@settings(deadline=None)
@given(histograms, st.integers(1, 60), st.integers(0, 2**31))
def test_systematic_draws_are_within_one_of_their_expectation(
    votes: np.ndarray, num: int, seed: int
) -> None:
    weights = with_fallback(np.maximum(votes, 0).astype(float), votes)
    drawn = draw(weights, num, "systematic", seed)
    expected = num * weights / weights.sum()
    assert (np.abs(np.bincount(drawn, minlength=len(weights)) - expected) < 1 + 1e-6).all()
    assert (np.diff(drawn) >= 0).all()


def test_rank_and_multinomial() -> None:
    weights = np.array([1.0, 5.0, 0.0, 3.0, 5.0])
    assert draw(weights, 3, "rank", 0).tolist() == [1, 3, 4]
    assert draw(weights, 7, "rank", 0).tolist() == [0, 1, 1, 2, 3, 4, 4]
    drawn = draw(weights, 14_000, "multinomial", 1)
    assert np.bincount(drawn, minlength=5) / 1000 == pytest.approx([1, 5, 0, 3, 5], rel=0.15)


def histogram(votes: list[int]) -> NoisyHistogram:
    release = Release(key="votes/0001", kind="votes", iteration=1, votes_per_unit=1, sigma=0.0)
    return NoisyHistogram(release=release, noisy_votes=np.array(votes))


def test_families_keep_their_parent_and_label() -> None:
    population = Population(iteration=0, layout=LabelLayout(counts=(2, 3)), directory=None)  # type: ignore[arg-type]
    chosen = SelectionSettings(denoise="none", keep_selected=True, next_variation_fold=2)
    votes = votes_of(histogram([0, 4, 0, 0, 9]), population.layout)
    offspring = next_offspring(population, votes, LabelLayout(counts=(3, 4)), chosen, 0)
    assert offspring.parents.tolist() == [1, 1, 1, 4, 4, 4, 4]
    assert offspring.copies.tolist() == [0, 1, 2, 0, 1, 2, 0]
    first = initial_offspring(LabelLayout(counts=(3, 2)), 1)
    assert first.parents.tolist() == [0, 0, 1, 2, 2]
    assert first.copies.tolist() == [0, 1, 0, 0, 1]


def test_a_label_without_survivors_draws_from_its_positive_counts() -> None:
    population = Population(iteration=0, layout=LabelLayout(counts=(3, 2)), directory=None)  # type: ignore[arg-type]
    chosen = SelectionSettings(denoise="threshold", threshold=1000.0)
    layout = LabelLayout(counts=(4, 4))
    votes = votes_of(histogram([0, 7, -5, -2, -9]), population.layout)
    offspring = next_offspring(population, votes, layout, chosen, 0)
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
