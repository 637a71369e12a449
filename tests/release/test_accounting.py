"""Epsilon against the closed form and against the definition."""

from __future__ import annotations

import math

import mpmath
import pytest

from pe_ray.release.accounting import calibrate, epsilon_of, gaussian_epsilon
from pe_ray.values import Budget, Release


def votes(sigma: float, iteration: int = 1, limit: int = 1) -> Release:
    return Release(
        key=f"votes/{iteration}",
        kind="votes",
        iteration=iteration,
        votes_per_unit=limit,
        sigma=sigma,
    )


def run(sigma: float, iterations: int) -> list[Release]:
    return [votes(sigma, iteration) for iteration in range(iterations)]


@pytest.mark.parametrize(
    ("iterations", "epsilon"),
    [(1, 0.496975), (2, 0.725522), (3, 0.905837), (5, 1.19937), (10, 1.76006), (20, 2.59438)],
)
def test_closed_form(iterations: int, epsilon: float) -> None:
    mu = math.sqrt(iterations / 50)
    assert gaussian_epsilon(mu, 1e-5) == pytest.approx(epsilon, rel=5e-6)


def exact_delta(sigma: float, epsilon: float) -> float:
    """sum over x of max(0, P(x) - e^epsilon P(x - 1)), from the definition."""
    with mpmath.workprec(200):
        reach = int(20 * sigma) + 5
        weight = {
            x: mpmath.exp(-(mpmath.mpf(x) ** 2) / (2 * mpmath.mpf(sigma) ** 2))
            for x in range(-reach - 1, reach + 1)
        }
        total = sum(weight.values())
        factor = mpmath.exp(epsilon)
        gains = (weight[x] - factor * weight[x - 1] for x in range(-reach, reach + 1))
        return float(sum(gain for gain in gains if gain > 0) / total)


@pytest.mark.parametrize("sigma", [0.5, 2.0, 7.07, 40.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
def test_one_release_is_a_tight_upper_bound(sigma: float, delta: float) -> None:
    epsilon = epsilon_of([votes(sigma)], delta)
    assert exact_delta(sigma, epsilon) <= delta * (1 + 1e-6)
    assert exact_delta(sigma, epsilon * 0.999) > delta


@pytest.mark.parametrize(
    ("sigma", "iterations", "epsilon"),
    [(2.0, 1, 2.0113), (2.0, 10, 7.4953), (7.07, 1, 0.49738), (7.07, 10, 1.76055)],
)
def test_discrete_mechanism(sigma: float, iterations: int, epsilon: float) -> None:
    assert epsilon_of(run(sigma, iterations), 1e-5) == pytest.approx(epsilon, rel=5e-4)


def test_k_votes_are_k_compositions() -> None:
    assert epsilon_of([votes(5.0, limit=4)], 1e-5) == epsilon_of(run(5.0, 4), 1e-5)
    assert epsilon_of([votes(0.0)], 1e-5) == math.inf
    assert epsilon_of([], 1e-5) == 0


@pytest.mark.parametrize(
    ("epsilon", "iterations", "delta", "sigma"),
    [
        (1.0, 5, 1e-3, 5.75711),
        (0.01, 1, 1e-3, 93.9),
        (0.001, 20, 1e-5, 7711),
        (500.0, 1, 1e-5, 0.0361),
        (1000.0, 7, 1e-9, None),
        (1e-3, 1, 0.9, None),
        (2.0, 300, 1e-6, None),
    ],
)
def test_calibration(epsilon: float, iterations: int, delta: float, sigma: float | None) -> None:
    budget = Budget(epsilon=epsilon, delta=delta, unit="record")
    releases = calibrate(run(1.0, iterations), budget)
    assert epsilon_of(releases, delta) <= epsilon
    if sigma is not None:
        assert releases[0].sigma == pytest.approx(sigma, rel=1e-3)
    if 0.01 <= epsilon <= 10:
        assert epsilon_of(run(releases[0].sigma * 0.995, iterations), delta) > epsilon


def test_relative_noise_is_kept() -> None:
    budget = Budget(epsilon=1.0, delta=1e-5, unit="record")
    first, second = calibrate([votes(2.0, 1), votes(1.0, 2)], budget)
    assert first.sigma == pytest.approx(2 * second.sigma, rel=1e-5)
