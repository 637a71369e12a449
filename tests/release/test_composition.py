"""The composed bound against exact arithmetic and between dp_accounting's two estimates."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld

from pe_ray.release.accounting import gaussian_epsilon
from pe_ray.release.composition import _gram_quadrature, composed_epsilon

_BITS = 400


def claimed(times: list[tuple[float, int]], delta: float) -> float:
    mu = math.sqrt(sum(count / sigma**2 for sigma, count in times))
    return composed_epsilon(times, delta, gaussian_epsilon(mu, delta))


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
            sums = _multiply(sums, one)
        wanted, upper, lower = mpmath.mpf(delta), mpmath.mpf(0), mpmath.mpf(0)
        for i in reversed(range(len(sums))):
            loss = (2 * (i - count * reach) + count) / (2 * mpmath.mpf(sigma) ** 2)
            if upper > wanted and mpmath.log((upper - wanted) / lower) >= loss:
                break
            mass = mpmath.ldexp(sums[i], -_BITS)
            upper += mass
            lower += mass * mpmath.exp(-loss)
        return float(max(mpmath.log((upper - wanted) / lower), 0)) if upper > wanted else 0.0


def _multiply(left: list[int], right: list[int]) -> list[int]:
    """Polynomial product by one product of long integers (Kronecker), divided by 2**_BITS."""
    size = (2 * _BITS + 64) // 8
    packed = [int.from_bytes(b"".join(v.to_bytes(size, "little") for v in p), "little")
              for p in (left, right)]  # fmt: skip
    count = len(left) + len(right) - 1
    raw = (packed[0] * packed[1]).to_bytes(size * (count + 1), "little")
    cells = [raw[i * size : (i + 1) * size] for i in range(count)]
    return [int.from_bytes(cell, "little") >> _BITS for cell in cells]


@pytest.mark.parametrize(
    ("sigma", "count", "delta"),
    [
        (0.0361, 1, 1e-5),
        (0.3, 1, 1e-5),
        (0.5, 10, 1e-3),
        (1.0, 1, 0.3),
        (1.0, 1, 0.9),
        (1.0, 40, 1e-13),
        (1.5, 20, 1e-28),
        (2.0, 10, 1e-5),
        (2.0, 10, 0.5),
        (2.0, 40, 1e-12),
        (20.0, 10, 0.01),
        (7.07, 1, 1e-5),
        (7.07, 10, 1e-5),
    ],
)
def test_equal_releases_are_exact_and_never_below(sigma: float, count: int, delta: float) -> None:
    exact = exact_epsilon(sigma, count, delta)
    assert exact <= claimed([(sigma, count)], delta) <= exact * (1 + 1e-6) + 1e-12


@pytest.mark.parametrize(
    ("sigma", "count", "rounded_up", "continuous"),
    [(2.0, 1, 2.0113, 1.9931), (7.07, 1, 0.49738, 0.49706), (7.07, 10, 1.76055, 1.76035)],
)
def test_published_figures(sigma: float, count: int, rounded_up: float, continuous: float) -> None:
    """rounded_up: dp_accounting's pessimistic estimate at its usual interval of 1e-4."""
    found = claimed([(sigma, count)], 1e-5)
    assert gaussian_epsilon(math.sqrt(count) / sigma, 1e-5) == pytest.approx(continuous, abs=1e-5)
    one = pld.from_discrete_gaussian_mechanism(sigma, value_discretization_interval=1e-4)
    estimate = one.self_compose(count).get_epsilon_for_delta(1e-5)
    assert estimate == pytest.approx(rounded_up, abs=6e-5)
    assert estimate - count * 1e-4 <= found <= estimate * (1 + 1e-9)


@pytest.mark.parametrize("delta", [1e-9, 1e-5, 0.3])
@pytest.mark.parametrize(
    "times",
    [
        [(3.0, 2), (4.5, 1), (7.1, 3)],
        [(0.4, 1), (0.7, 2)],
        [(40.0, 100)],
        [(1.0, 1), (300.0, 5)],
        [(10.0 + t / 7, 1) for t in range(12)],
    ],
)
def test_between_the_estimates_of_dp_accounting(
    times: list[tuple[float, int]], delta: float
) -> None:
    found = claimed(times, delta)
    bounds = []
    for pessimistic in (False, True):
        composed = pld.identity(2e-4, pessimistic_estimate=pessimistic)
        for sigma, count in times:
            one = pld.from_discrete_gaussian_mechanism(
                sigma, value_discretization_interval=2e-4, pessimistic_estimate=pessimistic
            )
            composed = composed.compose(one.self_compose(count))
        bounds.append(composed.get_epsilon_for_delta(delta))
    assert bounds[0] * (1 - 1e-9) <= found <= bounds[1] * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize(
    "times",
    [
        [(7711.0, 20)],
        [(54_500.0, 1000)],
        [(1e6, 1000)],
        [(2000.0 + t, 1) for t in range(40)],
        [(1e3, 100_000)],
    ],
)
def test_wide_noise_approaches_the_closed_form_from_above(times: list[tuple[float, int]]) -> None:
    mu = math.sqrt(sum(count / sigma**2 for sigma, count in times))
    closed = gaussian_epsilon(mu, 1e-5)
    # Wide noise differs from the continuous by about 1 / (24 sigma^2) only.
    assert closed * (1 - 1e-7) <= claimed(times, 1e-5) <= closed * (1 + 1e-4)


def test_splitting_equals_the_exact_lattice() -> None:
    whole = claimed([(5.0, 8)], 1e-5)
    apart = claimed([(5.0 * (1 + i * 1e-12), 1) for i in range(8)], 1e-5)
    assert whole <= apart * (1 + 1e-11) <= whole * (1 + 1e-4)


def test_scales_far_apart() -> None:
    # The wide one adds nothing to speak of; the narrow one has a loss of exactly 1/(2 sigma^2).
    assert claimed([(0.05, 1), (1000.0, 1)], 1e-5) == pytest.approx(200.0, rel=1e-4)
    assert claimed([(1.0, 1), (1e6, 1)], 1e-5) == pytest.approx(claimed([(1.0, 1)], 1e-5), rel=1e-4)


def test_quadrature_is_exact_on_runs_of_integers() -> None:
    counts = np.array([1.0, 2.0, 5.0, 8.0, 9.0, 64.0])
    nodes, weights = _gram_quadrature(counts)
    for row, count in enumerate(counts.astype(int)):
        integers = np.arange(count) - (count - 1) / 2
        for power in range(0, 16, 2):
            found = (weights[row] * nodes[row] ** power).sum()
            assert found == pytest.approx((integers**power).sum(), rel=1e-10, abs=1e-12)
