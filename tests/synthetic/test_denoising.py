"""Denoising makes weights of every histogram."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pe_ray.components.denoisers import auto_threshold
from pe_ray.config.blocks import SelectionSettings
from pe_ray.synthetic.denoising import fall_back, make_denoiser

histograms = arrays(np.float64, st.integers(1, 40), elements=st.integers(-50, 50).map(float))


def weigh(votes: np.ndarray, sigma: float, **settings: Any) -> np.ndarray:
    return make_denoiser(SelectionSettings(**settings)).weigh(votes, sigma)


@settings(deadline=None)
@given(histograms, st.sampled_from(["threshold", "simplex", "none"]), st.floats(0, 20))
def test_weights_always_make_a_distribution(votes: np.ndarray, name: str, sigma: float) -> None:
    weights = fall_back(weigh(votes, sigma, denoise=name), votes)
    assert np.isfinite(weights).all()
    assert (weights >= 0).all()
    assert weights.sum() > 0


def test_no_survivor_falls_back_to_positive_counts_then_to_all() -> None:
    none = np.zeros(3)
    assert fall_back(none, np.array([2.0, -1.0, 4.0])).tolist() == [2, 0, 4]
    assert fall_back(none, np.array([-2.0, -1.0, 0.0])).tolist() == [1, 1, 1]


@settings(deadline=None)
@given(histograms)
def test_simplex_is_the_nearest_vector_with_the_same_sum(votes: np.ndarray) -> None:
    weights, total = weigh(votes, 0.0, denoise="simplex"), max(0, int(votes.sum()))
    assert weights.sum() == pytest.approx(total, abs=1e-6)
    if total > 0:  # Karush-Kuhn-Tucker: one shift for all that stay, none larger below
        shift = (votes - weights)[weights > 0]
        assert np.ptp(shift) < 1e-6
        assert (votes[weights == 0] <= shift.max() + 1e-6).all()


def test_a_number_is_subtracted_and_clipped_at_0() -> None:
    votes = np.array([-3.0, 0.0, 2.0, 3.0, 10.0])
    assert weigh(votes, 100.0, threshold=2.5).tolist() == [0, 0, 0, 0.5, 7.5]
    assert weigh(votes, 100.0, denoise="none").tolist() == [0, 0, 2, 3, 10]


def test_auto_threshold_removes_pure_noise_and_keeps_signal() -> None:
    rng = np.random.default_rng(0)
    noise = np.round(rng.normal(0, 10, 1000))
    assert auto_threshold(noise, 10.0) > 20
    assert auto_threshold(noise + 500, 10.0) < 1
    assert auto_threshold(noise, 0.0) == 0
