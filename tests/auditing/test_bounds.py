"""The bounds are right: below the truth where it is known, and close to it."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from scipy.special import ndtr, ndtri
from scipy.stats import binom, norm

from pe_ray.auditing.bounds import (
    measured_epsilon,
    refutes_in_one_run,
    refutes_independent,
    right_guesses,
    tradeoff,
)
from pe_ray.release.accounting import epsilon_of
from pe_ray.release.mechanism import discrete_gaussian
from pe_ray.values import Release


def votes(sigma: float, ones: int = 1, iteration: int = 1) -> Release:
    return Release(
        key=f"votes/{iteration:04d}",
        kind="votes",
        iteration=iteration,
        votes_per_unit=ones,
        sigma=sigma,
    )


@pytest.mark.parametrize("sigma", [0.5, 1.08, 3.74])
def test_the_tradeoff_of_one_release_is_exact_at_its_corners(sigma: float) -> None:
    f = tradeoff([votes(sigma)], 1.0)
    support = np.arange(-200, 201)
    pmf = np.exp(-(support**2) / (2 * sigma**2))
    pmf /= pmf.sum()
    for least in range(-2, 5):  # guess "in" from this noisy count on
        alarms = pmf[support >= least].sum()
        misses = pmf[support + 1 < least].sum()
        assert f(alarms) == pytest.approx(misses, abs=2e-6)
        assert f(alarms) <= misses + 1e-12


def test_the_tradeoff_of_many_or_large_sigmas_is_the_gaussian_one() -> None:
    for releases in ([votes(30.0, ones=9)], [votes(9.0, iteration=t) for t in range(9)]):
        mu = math.sqrt(sum(r.votes_per_unit / r.sigma**2 for r in releases))
        for x in (0.01, 0.3, 0.7):
            gaussian = float(ndtr(ndtri(1 - x) - mu))
            assert tradeoff(releases, 1.0)(x) == pytest.approx(gaussian, abs=2e-3)
    mixed = tradeoff([votes(2.0), votes(4.0, iteration=2)], 1.0)
    assert mixed(0.3) == pytest.approx(float(ndtr(ndtri(0.7) - math.sqrt(5) / 4)), abs=6e-3)


def test_less_noise_allows_fewer_errors() -> None:
    for sigma in (1.0, 50.0):
        errors = [tradeoff([votes(sigma)], scale)(0.2) for scale in (0.25, 0.5, 1.0, 2.0)]
        assert errors == sorted(errors)


def simulated(sigma: float, m: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    coins = np.random.default_rng(seed).random(m) < 0.5
    noise = discrete_gaussian(sigma, m, entropy=np.random.default_rng(seed + 1).bytes)
    return coins, noise + coins - 0.5


def both(sigma: float, coins: np.ndarray, scores: np.ndarray, alpha: float) -> tuple[float, float]:
    claim, m, guesses = [votes(sigma)], len(coins), len(coins) // 20
    one = partial(
        refutes_in_one_run,
        m=m,
        guesses=guesses,
        right=right_guesses(scores, coins, guesses),
        alpha=alpha,
    )
    independent = partial(
        refutes_independent,
        included=int(coins.sum()),
        misses=int((scores[coins] <= 0).sum()),
        excluded=int((~coins).sum()),
        false_alarms=int((scores[~coins] > 0).sum()),
        alpha=alpha,
    )
    return measured_epsilon(claim, 1e-5, one), measured_epsilon(claim, 1e-5, independent)


def test_bounds_are_below_the_truth_and_close() -> None:
    sigma = 1.08
    truth = epsilon_of([votes(sigma)], 1e-5)
    for seed in range(5):
        one, independent = both(sigma, *simulated(sigma, 20_000, seed), 1e-3)
        assert 0.35 * truth < one < 0.7 * truth
        assert 0.8 * truth < independent < truth


def test_half_the_noise_is_measured_as_such() -> None:
    sigma = 1.08
    claim, truth = epsilon_of([votes(sigma)], 1e-5), epsilon_of([votes(sigma / 2)], 1e-5)
    one, independent = both(sigma, *simulated(sigma / 2, 20_000, 7), 1e-3)
    assert claim < independent < truth
    assert claim < one < truth


def test_the_one_run_bound_holds_for_a_mechanism_that_fails_all_at_once() -> None:
    """With chance q it tells every coin, else nothing: what makes one run weak evidence.

    It is (0, q)-DP, so f(x) = 1 - q - x; all guesses right has chance q + 2^-m, never below alpha.
    """
    q = 0.01

    def f(x: float) -> float:
        return max(0.0, 1 - q - x)

    assert not refutes_in_one_run(f, 1000, 100, 100, q * 0.999)
    assert refutes_in_one_run(f, 1000, 1000, 1000, 2.5 * q)


def test_the_one_run_bound_holds_for_randomised_response() -> None:
    """Independent answers at epsilon 1: the chance of `right` or more is binomial, exactly."""
    accuracy = math.e / (1 + math.e)

    def f(x: float) -> float:
        return max(0.0, 1 - math.e * x, (1 - x) / math.e)

    for right in (80, 85, 90, 95):
        chance = float(binom.sf(right - 1, 100, accuracy))
        assert not refutes_in_one_run(f, 100, 100, right, chance)


def test_guesses_take_the_extremes() -> None:
    coins = np.array([False, False, True, False, True, True])
    scores = np.array([-2.0, -1.0, -0.5, 0.5, 1.0, 2.0])
    assert right_guesses(scores, coins, 4) == 4
    assert right_guesses(scores, coins, 6) == 4
    assert right_guesses(-scores, coins, 4) == 0


def test_perfect_guesses_measure_much_and_random_ones_nothing() -> None:
    coins = np.arange(2000) % 2 == 0
    one, independent = both(1.08, coins, coins - 0.5, 1e-3)
    assert one > 3
    assert independent > 10
    noise = norm.ppf((np.arange(2000) + 0.5) / 2000)
    assert both(1.08, coins, noise, 1e-3) == (0.0, 0.0)
