"""Epsilon against the definition, exact arithmetic, reference figures and the closed form."""

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

_BITS = 400


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


def sums(sigma: float, key: str = "sums") -> Release:
    return Release(key=key, kind="sums", iteration=0, votes_per_unit=1, sigma=sigma)


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


def exact_epsilon(sigma: float, count: int, delta: float) -> float:
    """Epsilon of equal releases by integer convolution of the noise, to 400 bits."""
    with mpmath.workprec(2 * _BITS):
        reach = int(14 * sigma) + 2
        points = range(-reach, reach + 1)
        weights = [mpmath.exp(-(mpmath.mpf(x) ** 2) / (2 * mpmath.mpf(sigma) ** 2)) for x in points]
        total = mpmath.fsum(weights)
        one = [int(mpmath.ldexp(weight / total, _BITS)) for weight in weights]
        sums = one
        for _ in range(count - 1):
            sums = multiply(sums, one)
        wanted, upper, lower = mpmath.mpf(delta), mpmath.mpf(0), mpmath.mpf(0)
        for i in reversed(range(len(sums))):
            loss = (2 * (i - count * reach) + count) / (2 * mpmath.mpf(sigma) ** 2)
            if upper > wanted and mpmath.log((upper - wanted) / lower) >= loss:
                break
            mass = mpmath.ldexp(sums[i], -_BITS)
            upper += mass
            lower += mass * mpmath.exp(-loss)
        return float(max(mpmath.log((upper - wanted) / lower), 0)) if upper > wanted else 0.0


def multiply(left: list[int], right: list[int]) -> list[int]:
    """Polynomial product by one product of long integers (Kronecker), divided by 2**_BITS."""
    size = (2 * _BITS + 64) // 8
    packed = [int.from_bytes(b"".join(v.to_bytes(size, "little") for v in p), "little")
              for p in (left, right)]  # fmt: skip
    count = len(left) + len(right) - 1
    raw = (packed[0] * packed[1]).to_bytes(size * (count + 1), "little")
    cells = [raw[i * size : (i + 1) * size] for i in range(count)]
    return [int.from_bytes(cell, "little") >> _BITS for cell in cells]


@pytest.mark.parametrize(
    ("sigma", "count", "delta", "tolerance"),
    [
        (0.0361, 1, 1e-5, 1e-6),
        (0.3, 1, 1e-5, 1e-6),
        (0.43, 10, 1e-13, 1e-3),
        (0.5, 10, 1e-3, 1e-6),
        (1.0, 1, 0.3, 1e-6),
        (1.0, 1, 0.9, 1e-6),
        (1.0, 40, 1e-13, 2e-3),
        (1.5, 20, 1e-28, 3e-2),
        (1.92, 5, 1e-13, 1e-3),
        (2.0, 10, 1e-5, 1e-6),
        (2.0, 10, 0.5, 1e-6),
        (2.0, 40, 1e-12, 1e-3),
        (20.0, 10, 0.01, 1e-6),
        (7.07, 1, 1e-5, 1e-6),
        (7.07, 10, 1e-5, 1e-6),
        (70.0, 3, 1e-5, 2e-5),
    ],
)
def test_equal_releases_are_tight_and_never_below(
    sigma: float, count: int, delta: float, tolerance: float
) -> None:
    exact = exact_epsilon(sigma, count, delta)
    assert exact <= epsilon_of(run(sigma, count), delta) <= exact * (1 + tolerance) + 1e-12


REFERENCE: list[tuple[list[tuple[float, int]], list[float], float, float]] = [
    ([(7.07, 10)], [], 1e-5, 1.760072895),
    ([(2.0, 10)], [], 1e-13, 12.484017699),
    ([(0.0361, 1)], [], 1e-5, 383.668009736),
    ([(10.0, 1000)], [], 1e-12, 26.719776411),
    ([(0.7, 700)], [], 1e-5, 874.514377926),
    ([(0.08, 7)], [], 1e-9, 546.874999999),
    ([(63.9, 20)], [], 1e-5, 0.230940364),
    ([(64.1, 20)], [], 1e-5, 0.230155553),
    ([(7711.0, 20)], [], 1e-5, 0.001000019398),
    ([(54500.0, 1000)], [], 1e-9, 0.002501441505),
    ([(3.0, 2), (4.5, 1), (7.1, 3)], [], 1e-9, 3.382972288),
    ([(0.4, 1), (0.7, 2)], [], 1e-5, 17.508773270),
    ([(1.0, 1), (300.0, 5)], [], 1e-5, 4.430238056),
    ([(0.05, 1), (1000.0, 1)], [], 1e-5, 200.003666212),
    ([(10 + t / 7, 1) for t in range(12)], [], 1e-5, 1.224300229),
    ([(10 + t / 7, 12) for t in range(12)], [], 1e-13, 8.517293031),
    ([(2000.0 + t, 1) for t in range(40)], [], 1e-5, 0.007352883790),
    ([(20.0, 48)], [8.0], 1.5e-6, 1.580896309),
    ([(40.0, 2)], [3.0], 1e-12, 2.266288442),
    ([(2.0, 2)], [1.0], 1e-5, 5.544830956),
    ([(1.0, 1)], [0.25], 1e-5, 25.400668560),
    ([(500.0, 240)], [100.0], 1e-5, 0.100124170),
]
"""(sigma, ones) of votes, sigmas of sums, delta and epsilon.

The figures come from an earlier implementation: losses on their lattice, each distribution tilted
exponentially before the FFT. Its error was below 1e-8 where all sigmas are equal and moderate, else
below 3e-5."""


@pytest.mark.parametrize(("ones", "of_sums", "delta", "epsilon"), REFERENCE)
def test_reference_figures(
    ones: list[tuple[float, int]], of_sums: list[float], delta: float, epsilon: float
) -> None:
    releases = [votes(sigma, t, limit) for t, (sigma, limit) in enumerate(ones)]
    found = epsilon_of([*releases, *map(sums, of_sums)], delta)
    exact = len(ones) == 1 and not of_sums and ones[0][0] < 64
    close = 1e-4 if epsilon < 20 and delta > 1e-11 else 2e-3
    assert epsilon * (1 - (1e-8 if exact else 3e-5)) <= found <= epsilon * (1 + close)


@pytest.mark.parametrize("delta", [1e-9, 1e-5, 0.3])
@pytest.mark.parametrize(
    "ones",
    [
        [(3.0, 2), (4.5, 1), (7.1, 3)],
        [(0.4, 1), (0.7, 2)],
        [(40.0, 100)],
        [(1.0, 1), (300.0, 5)],
        [(10.0 + t / 7, 1) for t in range(12)],
    ],
)
def test_the_estimate_is_above_the_optimistic_one(
    ones: list[tuple[float, int]], delta: float
) -> None:
    found = epsilon_of([votes(sigma, limit=limit) for sigma, limit in ones], delta)
    bounds = []
    for pessimistic in (False, True):
        composed = pld.identity(2e-4, pessimistic_estimate=pessimistic)
        for sigma, count in ones:
            one = pld.from_discrete_gaussian_mechanism(
                sigma, value_discretization_interval=2e-4, pessimistic_estimate=pessimistic
            )
            composed = composed.compose(one.self_compose(count))
        bounds.append(composed.get_epsilon_for_delta(delta))
    assert bounds[0] * (1 - 1e-9) <= found <= bounds[1] * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize(
    "ones",
    [
        [(7711.0, 20)],
        [(54_500.0, 1000)],
        [(1e6, 1000)],
        [(2000.0 + t, 1) for t in range(40)],
        [(1e3, 100_000)],
    ],
)
def test_wide_noise_approaches_the_closed_form_from_above(ones: list[tuple[float, int]]) -> None:
    mu = math.sqrt(sum(count / sigma**2 for sigma, count in ones))
    found = epsilon_of([votes(sigma, limit=count) for sigma, count in ones], 1e-5)
    closed = gaussian_epsilon(mu, 1e-5)
    # Wide noise differs from the continuous by about 1 / (24 sigma^2) only.
    assert closed <= found <= closed * (1 + 1e-5)


def test_sigmas_that_hardly_differ_cost_what_equal_ones_do() -> None:
    whole = epsilon_of(run(5.0, 8), 1e-5)
    apart = epsilon_of([votes(5.0 * (1 + i * 1e-12)) for i in range(8)], 1e-5)
    assert whole <= apart * (1 + 1e-11) <= whole * (1 + 1e-4)


def test_scales_far_apart() -> None:
    # The wide one adds nothing to speak of; the narrow one has a loss of exactly 1/(2 sigma^2).
    assert 200 <= epsilon_of([votes(0.05), votes(1000.0)], 1e-5) <= 200 * (1 + 2e-3)
    one = epsilon_of([votes(1.0)], 1e-5)
    assert one * (1 - 1e-12) <= epsilon_of([votes(1.0), votes(1e6)], 1e-5) <= one * (1 + 1e-4)


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
    assert bounds[0] * (1 - 1e-9) <= found <= bounds[1] * (1 + 1e-4) + 2e-7


def test_sums_are_calibrated_with_the_votes() -> None:
    budget = Budget(epsilon=1.0, delta=1e-5, unit="record")
    *rest, last = calibrate([*run(1.0, 4), sums(0.5)], budget)
    assert 0.999 < epsilon_of([*rest, last], 1e-5) <= 1.0
    assert rest[0].sigma == pytest.approx(2 * last.sigma, rel=1e-5)
    with pytest.raises(InputError, match=r"privacy\.epsilon"):
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


@settings(max_examples=25)
@given(
    log_epsilon=st.floats(-3, 3),
    log_delta=st.floats(-12.999, -0.0001),
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
        (1.0, 9e-14, "privacy.delta"),
        (1e5, 1e-5, "privacy.epsilon"),
    ]:
        with pytest.raises(InputError, match=match):
            calibrate(run(1.0, 2), Budget(epsilon=epsilon, delta=delta, unit="record"))
    with pytest.raises(InputError, match=r"schedule\.noise"):
        calibrate(run(0.0, 2), Budget(epsilon=1.0, delta=1e-5, unit="record"))
    assert epsilon_of(run(5.0, 2), 1e-60) == math.inf
