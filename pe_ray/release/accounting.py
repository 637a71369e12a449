"""(epsilon, delta) of the discrete Gaussian releases that are really made, and back to sigma.

A unit (record or user) adds at most k = `votes_per_unit` ones, each to a different bin. Its
presence shifts at most k independent coordinates by 1 each, so one release is at worst the k-fold
composition of the discrete Gaussian mechanism of sensitivity 1, and a run is the composition of
its releases. dp_accounting composes their privacy loss distributions, rounded pessimistically
(connect-the-dots, Doroshenko et al. 2022): every figure is an upper bound.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from dp_accounting.pld import privacy_loss_distribution as pld
from scipy.optimize import brentq
from scipy.special import log_ndtr

from pe_ray.errors import InputError
from pe_ray.values import Budget, Release

GRID_STEPS = 1000
"""Steps of the loss grid per epsilon, for one release; finer for more. Ten times as many move the
result by less than one part in 10,000."""


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon of mu-Gaussian DP at `delta`; mu = sqrt(sum of k_t / sigma_t^2).

    Continuous closed form (Balle and Wang 2018, Theorem 8; Dong, Roth, Su 2022, Corollary 2.13),
    in logarithms so that no epsilon overflows. A cross-check and a first guess, not the claim.
    """

    def excess(epsilon: float) -> float:
        return _log_delta(epsilon, mu) - math.log(delta)

    if mu == 0 or excess(0.0) <= 0:
        return 0.0
    high = mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta)) + 1.0
    return float(brentq(excess, 0.0, high, xtol=1e-300, rtol=1e-13))


def _log_delta(epsilon: float, mu: float) -> float:
    first = float(log_ndtr(mu / 2 - epsilon / mu))
    second = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    ratio = second - first
    return first + math.log(-math.expm1(ratio)) if ratio < 0 else -math.inf


def _mu(releases: Sequence[Release]) -> float:
    """Gaussian DP parameter of the continuous counterpart; 0 for nothing released."""
    return math.sqrt(math.fsum(release.votes_per_unit / release.sigma**2 for release in releases))


def epsilon_of(releases: Sequence[Release], delta: float) -> float:
    """Epsilon spent at `delta` by all `releases` together; inf if one of them has no noise.

    Guarantee: all the releases together are (epsilon, delta)-DP for adding or removing one unit,
    given that each is drawn by release.gaussian with its sigma and respects its votes_per_unit.
    """
    if not releases:
        return 0.0
    if any(release.sigma == 0 for release in releases):
        return math.inf
    times: Counter[float] = Counter()
    for release in releases:
        times[release.sigma] += release.votes_per_unit
    guess = gaussian_epsilon(_mu(releases), delta)
    interval = max(guess, 1e-6) / (GRID_STEPS * math.sqrt(times.total()))
    composed = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # expm1 of a large loss: meant to be inf
        for sigma, count in times.items():
            one = pld.from_discrete_gaussian_mechanism(
                sigma, value_discretization_interval=interval, use_connect_dots=True
            )
            several = one.self_compose(count) if count > 1 else one
            composed = several if composed is None else composed.compose(several)
        assert composed is not None
        return float(composed.get_epsilon_for_delta(delta))


def calibrate(shape: Sequence[Release], budget: Budget) -> tuple[Release, ...]:
    """The releases with the least noise that the budget allows.

    The sigmas given are relative; they are multiplied by the smallest common scale for which the
    discrete mechanism's epsilon and the continuous closed form are both within the budget. The
    second matters only where sigma is far below 1: there the discrete mechanism adds no noise at
    all almost surely, and its epsilon jumps.

    Guarantee: epsilon_of(result, budget.delta) <= budget.epsilon.
    """
    if math.isinf(budget.epsilon):
        return tuple(replace(release, sigma=0.0) for release in shape)
    unit_mu = _mu(shape)

    def excess(log_mu: float) -> float:
        return gaussian_epsilon(math.exp(log_mu), budget.delta) - budget.epsilon

    low, high = -40.0, 10.0
    if excess(high) < 0 or excess(low) > 0:
        raise InputError(f"privacy.epsilon: {budget.epsilon:g} at this delta is out of range")
    scale = unit_mu / math.exp(brentq(excess, low, high, xtol=1e-12))
    for _ in range(100):
        releases = tuple(
            replace(release, sigma=_round_up(release.sigma * scale)) for release in shape
        )
        epsilon = epsilon_of(releases, budget.delta)
        if epsilon <= budget.epsilon:
            return releases
        scale *= max(1 + 2e-6, min(epsilon / budget.epsilon, 1.1))
    raise InputError(f"privacy.epsilon: no noise found for {budget.epsilon:g}; raise it or delta")


def _round_up(sigma: float) -> float:
    """`sigma` with 6 significant digits, never less than it was."""
    unit = 10.0 ** (math.floor(math.log10(sigma)) - 5)
    return float(f"{math.ceil(sigma / unit) * unit:.6g}")
