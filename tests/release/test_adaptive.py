"""Gaussian DP of the discrete Gaussian, and budgets that are spent adaptively."""

from __future__ import annotations

import math
from dataclasses import replace

import mpmath
import pytest

from pe_ray.release.accounting import epsilon_of, gaussian_dp
from pe_ray.release.adaptive import (
    adaptive_epsilon,
    budget_mu,
    cost_of,
    largest_cost,
    mu_of,
    with_mu,
)
from pe_ray.values import Budget, Release

VOTE = Release(key="v", kind="votes", iteration=1, votes_per_unit=1, sigma=1.0)


def delta_of_gaussian(mu: float, epsilon: float) -> mpmath.mpf:
    """Balle and Wang 2018, Theorem 8."""
    upper = mpmath.ncdf(mu / 2 - epsilon / mu)
    return upper - mpmath.exp(epsilon) * mpmath.ncdf(-mu / 2 - epsilon / mu)


def delta_of_discrete(sigma: float, epsilon: float) -> mpmath.mpf:
    """Sum of max(P(x) - e^epsilon P(x + 1), 0), which is the hockey stick divergence."""
    reach = math.ceil(14 * sigma) + 2
    weights = {x: mpmath.exp(-(mpmath.mpf(x) ** 2) / (2 * sigma**2)) for x in range(-reach, reach)}
    total = mpmath.fsum(weights.values())
    return (
        mpmath.fsum(
            max(weights[x] - mpmath.exp(epsilon) * weights[x + 1], 0)
            for x in range(-reach, reach - 1)
        )
        / total
    )


@pytest.mark.parametrize("sigma", [0.3, 0.5, 1.0, 2.0, 7.07])
def test_no_epsilon_of_the_discrete_gaussian_beats_its_mu(sigma: float) -> None:
    mu = gaussian_dp(sigma)
    tightest = 0.0
    with mpmath.workprec(200):
        for step in range(60):
            epsilon = step * 0.1 / sigma
            discrete, gaussian = delta_of_discrete(sigma, epsilon), delta_of_gaussian(mu, epsilon)
            assert discrete <= gaussian
            if discrete > 1e-30:
                tightest = max(tightest, float(discrete / gaussian))
            # 1 / sigma itself wouldn't do, so the correction is needed
        assert any(
            delta_of_discrete(sigma, step * 0.05 / sigma)
            > delta_of_gaussian(1 / sigma, step * 0.05 / sigma)
            for step in range(60)
        )
    assert tightest > 0.9


def test_beyond_summing_the_correction_holds() -> None:
    """The formula for large sigmas is above what summing gives where both can be had."""
    for sigma in (200.0, 500.0, 999.0):
        assert gaussian_dp(sigma) <= (1 + 1 / (12 * sigma**2)) / sigma
    assert gaussian_dp(1001.0) >= 1 / 1001.0


def test_adaptive_epsilon_is_above_the_exact_one_and_close() -> None:
    for sigma, times in ((2.0, 10), (7.07, 10), (30.0, 4)):
        releases = [replace(VOTE, sigma=sigma)] * times
        exact, adaptive = epsilon_of(releases, 1e-5), adaptive_epsilon(releases, 1e-5)
        assert exact <= adaptive <= 1.03 * exact


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 20.0])
def test_a_budget_in_shares_is_never_overspent(epsilon: float) -> None:
    mu = budget_mu(epsilon, 1e-6)
    sums = replace(VOTE, kind="sums")
    spent: list[Release] = []
    for shape, share in (([VOTE, replace(VOTE, sigma=2.0)], 0.3), ([sums], 0.1), ([VOTE], 0.6)):
        made = with_mu(shape, mu * math.sqrt(share))
        assert mu_of(made) <= mu * math.sqrt(share)
        spent += made
    total = adaptive_epsilon(spent, 1e-6)
    assert 0.999 * epsilon < total <= epsilon


def test_no_noise_and_too_much_epsilon_are_infinite() -> None:
    assert math.isinf(adaptive_epsilon([replace(VOTE, sigma=0.0)], 1e-5))
    assert math.isinf(adaptive_epsilon([replace(VOTE, sigma=0.05)], 1e-5))  # the sampler's tails


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 10.0])
def test_the_largest_cost_covers_what_a_budget_allows(epsilon: float) -> None:
    """What is just within the budget is covered, of votes and of sums, and not much else."""
    budget = Budget(epsilon=epsilon, delta=1e-6, unit="record")
    largest, mu = largest_cost(budget), budget_mu(epsilon, 1e-6)
    sums = replace(VOTE, kind="sums")
    for shape in ([VOTE], [VOTE, sums], [sums] * 64, [replace(VOTE, votes_per_unit=10**6)] * 9):
        made = with_mu(shape, mu)
        assert adaptive_epsilon(made, 1e-6) <= epsilon
        assert largest.covers(cost_of(made))
    assert not largest.covers(cost_of(with_mu([VOTE], mu * 1.001)))
    assert not largest.covers(cost_of(with_mu([sums] * 65, mu)))
    assert largest.epsilon(1e-6) <= epsilon * 1.0001
