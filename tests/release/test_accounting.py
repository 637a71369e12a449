"""Epsilon against the closed form and against the definition."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mpmath
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from hypothesis import given, settings
from hypothesis import strategies as st

from pe_ray.errors import InputError
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
    """The larger of sum over x of max(0, P(x) - e^epsilon P(x -+ 1)), from the definition."""
    with mpmath.workprec(200):
        reach = int(20 * sigma) + 5
        weight = {
            x: mpmath.exp(-(mpmath.mpf(x) ** 2) / (2 * mpmath.mpf(sigma) ** 2))
            for x in range(-reach - 1, reach + 2)
        }
        total = sum(weight.values())
        factor = mpmath.exp(epsilon)
        inside = range(-reach, reach + 1)
        added = sum(max(weight[x] - factor * weight[x - 1], 0) for x in inside)
        removed = sum(max(weight[x] - factor * weight[x + 1], 0) for x in inside)
        return float(max(added, removed) / total)


@pytest.mark.parametrize("sigma", [0.5, 2.0, 7.07, 40.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
def test_one_release_is_a_tight_upper_bound(sigma: float, delta: float) -> None:
    epsilon = epsilon_of([votes(sigma)], delta)
    assert exact_delta(sigma, epsilon) <= delta
    assert exact_delta(sigma, epsilon * (1 - 1e-6)) > delta


@pytest.mark.parametrize(
    ("sigma", "iterations", "epsilon"),
    [(2.0, 1, 2.0113398), (2.0, 10, 7.4952537), (50**0.5, 1, 0.4972620), (50**0.5, 10, 1.7597559)],
)
def test_discrete_mechanism(sigma: float, iterations: int, epsilon: float) -> None:
    assert epsilon_of(run(sigma, iterations), 1e-5) == pytest.approx(epsilon, rel=1e-7)


def sums(sigma: float, key: str = "sums") -> Release:
    return Release(key=key, kind="sums", iteration=0, votes_per_unit=1, sigma=sigma)


@pytest.mark.parametrize("sigma", [0.25, 1.0, 4.14, 300.0])
@pytest.mark.parametrize("delta", [0.1, 1e-5, 1e-12])
def test_sums_cost_what_the_gaussian_mechanism_costs(sigma: float, delta: float) -> None:
    closed = gaussian_epsilon(1 / sigma, delta)
    assert closed <= epsilon_of([sums(sigma)], delta) <= closed * (1 + 1e-6) + 2e-7
    two = gaussian_epsilon(math.sqrt(2) / sigma, delta)
    assert two <= epsilon_of([sums(sigma, "a"), sums(sigma, "b")], delta) <= two * (1 + 1e-6) + 4e-7


@pytest.mark.parametrize("delta", [0.1, 1e-5, 1e-12])
@pytest.mark.parametrize("sigmas", [(40.0, 40.0, 3.0), (2.0, 2.0, 1.0), (30.0, 20.0, 200.0)])
def test_votes_and_sums_compose(sigmas: tuple[float, ...], delta: float) -> None:
    """Against dp_accounting, with the sums as the Gaussian mechanism that they stand for."""
    *of_votes, of_sums = sigmas
    releases = [*(votes(sigma, t) for t, sigma in enumerate(of_votes)), sums(of_sums)]
    found, bounds = epsilon_of(releases, delta), []
    for pessimistic in (False, True):
        composed = pld.from_gaussian_mechanism(
            of_sums, value_discretization_interval=2e-4, pessimistic_estimate=pessimistic
        )
        for sigma in of_votes:
            composed = composed.compose(
                pld.from_discrete_gaussian_mechanism(
                    sigma, value_discretization_interval=2e-4, pessimistic_estimate=pessimistic
                )
            )
        bounds.append(composed.get_epsilon_for_delta(delta))
    assert bounds[0] * (1 - 1e-9) <= found <= bounds[1] * (1 + 1e-9) + 2e-7


def test_sums_are_calibrated_with_the_votes() -> None:
    budget = Budget(epsilon=1.0, delta=1e-5, unit="record")
    *rest, last = calibrate([*run(1.0, 4), sums(0.5)], budget)
    assert 0.999 < epsilon_of([*rest, last], 1e-5) <= 1.0
    assert rest[0].sigma == pytest.approx(2 * last.sigma, rel=1e-5)
    with pytest.raises(InputError, match="outside"):
        calibrate([sums(1.0)], Budget(epsilon=300.0, delta=1e-5, unit="record"))
    assert epsilon_of([votes(5.0), sums(0.0)], 1e-5) == math.inf


def test_the_lattice_is_as_close_to_the_gaussian_as_claimed() -> None:
    """The docstring's bound on ln(R(x) / D(x)), from their definitions, on a coarse lattice."""
    scale = 6.0
    with mpmath.workprec(300):
        s = mpmath.mpf(scale)
        total = mpmath.fsum(mpmath.exp(-(x**2) / (2 * s**2)) for x in range(-300, 301))
        for x in (0, 1, 6, 30, 84):
            rounded = mpmath.ncdf((x + 0.5) / s) - mpmath.ncdf((x - 0.5) / s)
            if x > 20:  # the upper tail by symmetry, where ncdf is near 1
                rounded = mpmath.ncdf(-(x - 0.5) / s) - mpmath.ncdf(-(x + 0.5) / s)
            ratio = mpmath.log(rounded / (mpmath.exp(-(x**2) / (2 * s**2)) / total))
            assert -1 / (8 * s**2) <= ratio <= x**2 / (8 * s**4) + mpmath.mpf(10) ** -60


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
        assert releases[0].sigma == pytest.approx(sigma, rel=2e-3)
    less = run(releases[0].sigma * 0.9999, iterations)
    mu = math.sqrt(iterations) / less[0].sigma
    assert max(epsilon_of(less, delta), gaussian_epsilon(mu, delta)) > epsilon


def test_relative_noise_is_kept() -> None:
    budget = Budget(epsilon=1.0, delta=1e-5, unit="record")
    first, second = calibrate([votes(2.0, 1), votes(1.0, 2)], budget)
    assert first.sigma == pytest.approx(2 * second.sigma, rel=1e-5)


def test_no_noise_at_infinite_epsilon() -> None:
    budget = Budget(epsilon=math.inf, delta=1e-5, unit="record")
    assert [release.sigma for release in calibrate(run(1.0, 3), budget)] == [0.0] * 3


@settings(max_examples=25, deadline=None)
@given(
    log_epsilon=st.floats(-3, 3),
    log_delta=st.floats(-25, -0.0001),
    iterations=st.sampled_from([1, 2, 9, 100, 1000]),
    limit=st.sampled_from([1, 8]),
)
def test_calibration_holds_and_is_tight_everywhere(
    log_epsilon: float, log_delta: float, iterations: int, limit: int
) -> None:
    budget = Budget(epsilon=10**log_epsilon, delta=10**log_delta, unit="record")
    shape = [votes(1.0, iteration, limit) for iteration in range(iterations)]
    sigma = calibrate(shape, budget)[0].sigma
    spent = epsilon_of([votes(sigma, t, limit) for t in range(iterations)], budget.delta)
    assert spent <= budget.epsilon
    less = sigma * (1 - 5e-5)
    closed = gaussian_epsilon(math.sqrt(iterations * limit) / less, budget.delta)
    spent = epsilon_of([votes(less, t, limit) for t in range(iterations)], budget.delta)
    assert max(spent, closed) > budget.epsilon


@pytest.mark.parametrize(("epsilon", "delta"), [(1e-3, 1e-5), (1.0, 0.5), (300, 1e-9)])
def test_no_early_release_of_a_calibrated_schedule_is_refused(epsilon: float, delta: float) -> None:
    shape = [votes(1.5 - t / 6, t) for t in range(6)]
    releases = calibrate(shape, Budget(epsilon=epsilon, delta=delta, unit="record"))
    spent = [epsilon_of(releases[:count], delta) for count in range(1, 7)]
    assert spent == sorted(spent)
    assert spent[-1] <= epsilon
    assert spent[-1] > epsilon * 0.999 or gaussian_epsilon(mu_of(releases), delta) > epsilon * 0.999


def mu_of(releases: Sequence[Release]) -> float:
    return math.sqrt(sum(release.votes_per_unit / release.sigma**2 for release in releases))


@pytest.mark.parametrize("mu", [1e-5, 0.01, 0.3, 3.0, 40.0, 400.0])
@pytest.mark.parametrize("delta", [1e-30, 1e-9, 1e-5, 0.1, 0.9])
def test_closed_form_solves_its_equation_in_high_precision(mu: float, delta: float) -> None:
    epsilon = gaussian_epsilon(mu, delta)
    with mpmath.workdps(900):

        def divergence(value: float) -> mpmath.mpf:
            m, e = mpmath.mpf(mu), mpmath.mpf(value)
            root = mpmath.sqrt(2)
            upper = mpmath.erfc((e / m - m / 2) / root) / 2
            return upper - mpmath.exp(e) * mpmath.erfc((e / m + m / 2) / root) / 2

        if epsilon == 0:
            assert divergence(0.0) <= delta * (1 + 1e-9)
        else:
            assert divergence(epsilon * (1 - 1e-7)) > delta > divergence(epsilon * (1 + 1e-7))


def test_impossible_budgets_are_named() -> None:
    for epsilon, delta, match in [
        (0.0, 1e-5, "privacy.epsilon"),
        (1.0, 0.0, "privacy.delta"),
        (1.0, 1.0, "privacy.delta"),
        (1.0, 1e-60, "too small"),
        (1e5, 1e-5, "outside"),
    ]:
        with pytest.raises(InputError, match=match):
            calibrate(run(1.0, 2), Budget(epsilon=epsilon, delta=delta, unit="record"))
    with pytest.raises(InputError, match="relative sigma"):
        calibrate(run(0.0, 2), Budget(epsilon=1.0, delta=1e-5, unit="record"))
    assert epsilon_of(run(5.0, 2), 1e-60) == math.inf
