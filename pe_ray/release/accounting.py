"""(epsilon, delta) of the discrete Gaussian releases that are really made, and back to sigma.

A unit (record or user) adds at most k = `votes_per_unit` ones, each to a different bin. Its
presence shifts at most k independent coordinates by 1 each, so one release is at worst the k-fold
composition of the discrete Gaussian mechanism of sensitivity 1 (fewer ones are a composition with
fewer factors), and a run is the composition of its releases. Adding and removing are mirror images
with one privacy loss distribution. release.composition composes it; the closed form is
dp_accounting's, and the tests hold every figure between dp_accounting's bounds.

A release of sums moves many integers at once, by a vector of L2 norm up to 2**26 (norm 1 in units
of the release), so its noise is compared with a continuous Gaussian instead. Let R be N(0, s^2)
rounded to integers, s = 2**26 sigma: adding it to integers is post-processing of the Gaussian
mechanism. The discrete Gaussian D has ln(R(x) / D(x)) between -1 / (8 s^2) and x^2 / (8 s^4), from
the integral of the density over [x - 1/2, x + 1/2]. With n sums and noise within T standard
deviations, hence T + 1 / sigma of the neighbour's, everything that R does with (epsilon, delta) D
does with epsilon + n (1 + (T + 1 / sigma)^2) / (8 s^2) and delta (1 + 2**-30) + 2 n exp(-T^2 / 2).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from dp_accounting import gaussian_mechanism
from scipy.optimize import brentq

from pe_ray.errors import InputError
from pe_ray.release.composition import SLACK_PER_COORDINATE, composed_epsilon
from pe_ray.release.gaussian import MAX_SIGMA, MIN_SIGMA
from pe_ray.values import LATTICE, MAX_SUMS, Budget, Release

_MIXED_MARGIN = 3e-5
"""Share of epsilon left unused when sigmas differ: the bound is then tight to about 1e-5 only, and
a run must not be refused an early release because its bound happens to be the looser one."""
_MIN_SUMS_SIGMA = 0.25  # keeps the comparison with the continuous Gaussian tight: epsilon + 2e-7
_MAX_SUMS_SIGMA = MAX_SIGMA / LATTICE
_SUMS_DEVIATIONS = 14.0
_SUMS_DELTA = 2.0**-100
"""Delta kept back for each release of sums: noise beyond 14 standard deviations (2**-120) and the
sampler's infinite losses (2**-107)."""


def epsilon_of(releases: Sequence[Release], delta: float) -> float:
    """Epsilon spent at `delta` by all `releases` together; inf if one of them has no noise.

    Deltas below `release.composition.SLACK_PER_COORDINATE` (2**-120) per release are inf too:
    the noise's finite randomness can't promise them.

    Guarantee: all the releases together are (epsilon, delta)-DP for adding or removing one unit,
    given that each is drawn by release.gaussian with its sigma and respects its votes_per_unit.
    An upper bound: exact where all sigmas are equal and moderate, else within about 1e-4.
    """
    times: Counter[float] = Counter()
    sums = []
    for release in releases:
        if release.kind == "sums":
            sums.append(release.sigma)
        else:
            times[release.sigma] += release.votes_per_unit
    return _epsilon(tuple(sorted(times.items())), tuple(sorted(sums)), delta)


@lru_cache(maxsize=256)
def _epsilon(times: tuple[tuple[float, int], ...], sums: tuple[float, ...], delta: float) -> float:
    if not 0 < delta < 1:
        raise InputError(f"privacy.delta: {delta:g} is not between 0 and 1")
    if not times and not sums:
        return 0.0
    if 0 in (*(sigma for sigma, _ in times), *sums):
        return math.inf
    target = (delta - len(sums) * _SUMS_DELTA) * (1 - 2.0**-30 * len(sums))
    if target <= 0:
        return math.inf
    of_sums = _mu([(sigma, 1) for sigma in sums])
    guess = gaussian_epsilon(math.hypot(_mu(times), of_sums), target)
    return composed_epsilon(times, target, guess, of_sums**2) + sum(map(sums_epsilon, sums))


def sums_epsilon(sigma: float) -> float:
    """Epsilon kept back for a release of sums: discrete noise and the sampler's precision."""
    reach = _SUMS_DEVIATIONS + 1 / sigma
    return MAX_SUMS * ((1 + reach**2) / (8 * (sigma * LATTICE) ** 2) + 2.0**-59)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon of mu-Gaussian DP at `delta`; mu = sqrt(sum of k_t / sigma_t^2).

    Continuous closed form (Balle and Wang 2018, Theorem 8; Dong, Roth, Su 2022, Corollary 2.13),
    in logarithms, so no epsilon overflows. A cross-check and a first guess, not the claim: the
    discrete mechanism's epsilon can be the larger one.
    """
    if mu == 0:
        return 0.0
    with np.errstate(divide="ignore"):
        return float(gaussian_mechanism.get_epsilon_gaussian(1 / mu, delta, tol=1e-14))


def check(release: Release) -> None:
    """Raise InputError unless `release` has noise that `epsilon_of` can account for, or none."""
    of_sums = release.kind == "sums"
    low, high = (_MIN_SUMS_SIGMA, _MAX_SUMS_SIGMA) if of_sums else (MIN_SIGMA, MAX_SIGMA)
    if release.votes_per_unit < 1 or (of_sums and release.votes_per_unit != 1):
        raise InputError(f"privacy: {release.key} has a sensitivity that can't be accounted for")
    if not (release.sigma == 0 or low <= release.sigma <= high):
        raise InputError(
            f"privacy.epsilon: {release.key} takes noise of sigma {release.sigma:g}, outside "
            f"{low:g} to {high:g}; change epsilon (inf for no noise), or the shares of the budget"
        )


def calibrate(shape: Sequence[Release], budget: Budget) -> tuple[Release, ...]:
    """The releases with the least noise that the budget allows.

    The sigmas given are relative; they are multiplied by the smallest common scale (to about one
    part in 100,000) for which the discrete mechanism's epsilon and the continuous closed form are
    both within the budget, and rounded up to 6 digits. The second condition matters where sigma is
    far below 1: there the discrete noise is 0 almost surely and its epsilon about 1/(2 sigma^2),
    below the continuous one, so the first alone would buy less noise with a budget than the field
    expects of it.

    Guarantee: epsilon_of(result, budget.delta) <= budget.epsilon.
    """
    if math.isinf(budget.epsilon):
        return tuple(replace(release, sigma=0.0) for release in shape)
    if not shape:
        return ()
    if not budget.epsilon > 0:
        raise InputError(f"privacy.epsilon: {budget.epsilon:g} is not above 0")
    if not 0 < budget.delta < 1:
        raise InputError(f"privacy.delta: {budget.delta:g} is not between 0 and 1")
    if any(not 0 < release.sigma < math.inf for release in shape):
        raise InputError("schedule.noise: every relative sigma must be a number above 0")
    if sum(map(kept_back, shape)) > budget.delta:
        raise InputError(f"privacy.delta: {budget.delta:g} is too small to be promised; raise it")
    mixed = len({(release.kind == "sums", release.sigma) for release in shape}) > 1
    epsilon = budget.epsilon * (1 - _MIXED_MARGIN) if mixed else budget.epsilon
    unit_mu = _mu([(release.sigma, release.votes_per_unit) for release in shape])

    def at(scale: float) -> tuple[Release, ...]:
        return tuple(replace(r, sigma=round_up(r.sigma * scale)) for r in shape)

    def excess(scale: float) -> float:
        return epsilon_of(at(scale), budget.delta) - epsilon

    least = unit_mu / _gaussian_mu(epsilon, budget.delta)
    releases = at(_smallest(excess, least, epsilon))
    for release in releases:
        check(release)
    return releases


def kept_back(release: Release) -> float:
    """Delta that a release costs whatever its noise."""
    return _SUMS_DELTA if release.kind == "sums" else release.votes_per_unit * SLACK_PER_COORDINATE


def _smallest(excess: Callable[[float], float], least: float, epsilon: float) -> float:
    """A scale >= `least` with excess <= 0, close to the first such; excess falls with scale.

    excess: epsilon spent at that scale, less `epsilon`.
    """
    above = excess(least)
    if above <= 0:
        return least
    step = max(1e-5, 1.2 * above / epsilon)  # epsilon falls at least as 1 / scale, nearly always
    while excess(least * (1 + step)) > 0:
        step *= 4
    scale = float(brentq(excess, least, least * (1 + step), rtol=2e-6, xtol=1e-300))
    while excess(scale) > 0:
        scale *= 1 + 2e-6
    return scale


def _gaussian_mu(epsilon: float, delta: float) -> float:
    """The mu whose closed form gives `epsilon`; a hair below, so that rounding can't exceed it."""

    def excess(log_mu: float) -> float:
        return gaussian_epsilon(math.exp(log_mu), delta) / epsilon - 1

    low = high = 0.0
    while excess(low) > 0:
        low -= 4
    while excess(high) < 0:
        high += 4
    return math.exp(brentq(excess, low, high, xtol=1e-12)) * (1 - 1e-11)


def _mu(times: Sequence[tuple[float, int]]) -> float:
    """Gaussian DP parameter of the continuous counterpart of (sigma, count) pairs."""
    return math.sqrt(math.fsum(count / sigma**2 for sigma, count in times))


def round_up(sigma: float) -> float:
    """`sigma` with 6 significant digits, never less than it was."""
    exponent = math.floor(math.log10(sigma)) - 5
    digits = math.ceil(sigma / 10.0**exponent)
    while float(f"{digits}e{exponent}") < sigma:
        digits += 1
    return float(f"{digits}e{exponent}")
