"""Epsilon and delta of discrete Gaussian releases, and the noise that a budget asks for.

*Votes.* A unit (record or user) adds at most k = `votes_per_unit` ones, each to a different bin.
So a release costs at most k discrete Gaussian mechanisms of sensitivity 1, and a run is the
composition of its releases. dp_accounting composes their privacy loss distributions (PLD) with
pessimistic rounding. Adding and removing a unit are mirror images with one PLD.

*Wide noise.* The discrete Gaussian is mu-GDP with mu just above 1 / sigma (see `gaussian_dp`). From
sigma = 64 on the excess is about 1e-5 or less, so mu-GDP stands for the mechanism.

*Sums.* A unit moves many integers at once, by a vector of L2 norm at most 2**26 (1 in units of the
release). The noise is compared with a continuous Gaussian R = N(0, s^2), s = 2**26 sigma, rounded
to integers. Adding R is post-processing of the Gaussian mechanism. For the discrete Gaussian D the
integral of the density over [x - 1/2, x + 1/2] shows that ln(R(x) / D(x)) is between -1 / (8 s^2)
and x^2 / (8 s^4). Take n sums and noise within T standard deviations, hence within T + 1 / sigma of
the neighbour's. Where R has (epsilon, delta), D has epsilon + n (1 + (T + 1 / sigma)^2) / (8 s^2)
and delta (1 + 2**-30) + 2 n exp(-T^2 / 2).

*The sampler* is close to the ideal discrete Gaussian (see release.mechanism). Per coordinate it
changes each probability ratio by a relative 2**-59 and adds less than 2**-120 to delta.

*Float rounding.* In 1,300 random compositions of n coordinates the error of delta was below
0.7 (n + 2) 2**-52. Three times as much, `_ROUNDING` (n + 2), is kept back; the 1e-30 of noise that
dp_accounting cuts off are part of it. The mu-GDP bound needs no FFT. It is taken where it is the
smaller one, as for thousands of ones at delta 1e-13.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from pe_ray.errors import InputError
from pe_ray.release.mechanism import MAX_SIGMA, MIN_SIGMA
from pe_ray.values import LATTICE, MAX_SUMS, Budget, Release

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

MIN_DELTA = 1e-13
"""Least delta of a budget. Below it the PLDs' rounding matters."""
_WIDE_SIGMA = 64.0
_SUMMED_SIGMA = 1000.0
_GRID = 5e-3
"""Grid step where sigmas differ, in standard deviations of a typical release's loss."""
_TAIL = 1e-18
_ROUNDING = 2.0**-51
_MIXED_MARGIN = 3e-5
"""Share of epsilon left unused when sigmas differ. The grid depends on all of them, so the bound of
the first releases alone can be looser, and the ledger must not refuse them."""
_MIN_SUMS_SIGMA = 0.25  # keeps the comparison with the continuous Gaussian tight: epsilon + 2e-7
_MAX_SUMS_SIGMA = MAX_SIGMA / LATTICE
_SUMS_DEVIATIONS = 14.0


def epsilon_of(releases: Sequence[Release], delta: float) -> float:
    """Return epsilon at `delta` of all `releases` together; inf if one of them has no noise.

    Guarantee: all the releases together are (epsilon, delta)-DP for adding or removing one unit,
    given that each is drawn by release.mechanism with its sigma and respects its votes_per_unit.
    The figure is an upper bound, tight to about 1e-5 for delta above 1e-10.
    """
    votes: Counter[float] = Counter()
    sums = []
    for release in releases:
        if release.is_sums:
            sums.append(release.sigma)
        else:
            votes[release.sigma] += release.votes_per_unit
    if 0 in (*votes, *sums):
        return math.inf
    target = (delta - math.fsum(map(kept_back, releases))) * (1 - 2.0**-30 * (1 + len(sums)))
    if target <= 0:
        return math.inf
    epsilon = _compose(tuple(sorted(votes.items())), tuple(sorted(sums)), target)
    return epsilon * (1 + 1e-12) + votes.total() * 2.0**-59 + math.fsum(map(sums_epsilon, sums))


@lru_cache(maxsize=1024)
def _compose(votes: tuple[tuple[float, int], ...], sums: tuple[float, ...], delta: float) -> float:
    """Return epsilon of (sigma, number of ones) pairs and of sums as Gaussian mechanisms."""
    narrow = tuple((sigma, count) for sigma, count in votes if sigma < _WIDE_SIGMA)
    wide = math.fsum(
        [
            *(count * gaussian_dp(sigma) ** 2 for sigma, count in votes if sigma >= _WIDE_SIGMA),
            *(1 / sigma**2 for sigma in sums),
        ]
    )
    rest = math.fsum(count * gaussian_dp(sigma) ** 2 for sigma, count in narrow)
    bound = gaussian_epsilon(math.sqrt(wide + rest), delta)
    target = delta - (2 + sum(count for _, count in narrow)) * _ROUNDING
    if not narrow or bound == 0 or target <= 0:
        return bound
    return min(bound, float(_loss_distribution(narrow, wide).get_epsilon_for_delta(target)))


@lru_cache(maxsize=16)
def _loss_distribution(
    narrow: tuple[tuple[float, int], ...], wide: float
) -> PrivacyLossDistribution:
    """Compose the PLDs of the discrete Gaussians with that of a sqrt(`wide`)-GDP mechanism.

    Losses of one sigma are odd multiples of 1 / (2 sigma^2), so that grid rounds nothing. Otherwise
    rounding adds at most step^2 / 4 to each coordinate's variance 1 / sigma^2.
    """
    from dp_accounting.pld.privacy_loss_distribution import (
        from_discrete_gaussian_mechanism,
        from_gaussian_mechanism,
    )

    count = sum(times for _, times in narrow)
    mu = math.sqrt(wide + math.fsum(times / sigma**2 for sigma, times in narrow))
    exact = len(narrow) == 1 and wide == 0
    step = 0.5 / narrow[0][0] ** 2 if exact else _GRID * mu / math.sqrt(count + 1)
    with np.errstate(over="ignore"):  # losses above 700 of tiny sigmas
        parts = [
            from_discrete_gaussian_mechanism(
                sigma, value_discretization_interval=step, use_connect_dots=True
            ).self_compose(times, _TAIL)
            for sigma, times in narrow
        ]
    if wide:
        parts.append(
            from_gaussian_mechanism(1 / math.sqrt(wide), value_discretization_interval=step)
        )
    total = parts[0]
    for part in parts[1:]:
        total = total.compose(part, _TAIL)
    return total


@lru_cache(maxsize=1024)
def gaussian_dp(sigma: float) -> float:
    """Return the mu for which one count with discrete Gaussian noise of `sigma` is mu-GDP.

    The trade-off curve between X and X + 1 is a polygon whose corners are the tests {X >= k}. The
    curve of two Gaussians mu apart is convex, so it lies below if it does at the corners:
    z(k) - z(k - 1) <= mu for all k, where z(k) is the normal quantile of P(X < k). Up to sigma =
    1000 the largest difference is found by summing, over all k that the sampler can draw. Beyond,
    Euler and Maclaurin's formula gives z(k) = x / sigma (1 + 1 / (24 sigma^2)) at x = k - 1/2, with
    a relative error of the correction below 1 % for |x| <= 14 sigma. Twice the correction is taken.

    Guarantee: an upper bound, the sampler's precision included.
    """
    from scipy.special import ndtri_exp

    if sigma == 0:
        return math.inf
    if sigma > _SUMMED_SIGMA:
        return (1 + 1 / (12 * sigma**2)) / sigma + 2.0**-55
    last = math.ceil(sigma * math.sqrt(2 * 129 * math.log(2)))
    points = np.arange(1, 2 * last + 20, dtype=np.float64)
    logs = -0.5 * (points / sigma) ** 2
    tails = np.logaddexp.accumulate(logs[::-1])[::-1]  # ln of the sums over j >= k
    upper = tails - np.logaddexp(0.0, math.log(2) + tails[0])
    quantiles = -ndtri_exp(upper[:last])
    steps = np.diff(np.concatenate([[-quantiles[0]], quantiles]))
    return float(steps.max()) * (1 + 1e-10) + 2.0**-55


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return epsilon of mu-Gaussian DP at `delta` (Balle and Wang 2018, Theorem 8).

    For mu = sqrt(sum of k_t / sigma_t^2) this is the continuous mechanism's closed form. The
    discrete mechanism's epsilon can be larger.
    """
    if mu == 0:
        return 0.0
    from dp_accounting import gaussian_mechanism

    with np.errstate(divide="ignore"):
        return float(gaussian_mechanism.get_epsilon_gaussian(1 / mu, delta, tol=1e-14))


def gaussian_mu(epsilon: float, delta: float) -> float:
    """Return the largest mu whose `gaussian_epsilon` is within `epsilon`, or a hair less."""
    from dp_accounting import gaussian_mechanism

    sigma = gaussian_mechanism.get_sigma_gaussian(epsilon, delta, tol=1e-14)
    return (1 - 1e-10) / float(sigma)


def kept_back(release: Release) -> float:
    """Return the delta that a release costs whatever its noise.

    Outcomes that the sampler can't draw for both neighbours count as infinite losses. So does noise
    of sums beyond 14 standard deviations.
    """
    return 2.0**-100 if release.is_sums else release.votes_per_unit * 2.0**-120


def sums_epsilon(sigma: float) -> float:
    """Return the epsilon by which sums exceed the Gaussian mechanism's, the sampler included."""
    reach = _SUMS_DEVIATIONS + 1 / sigma
    return MAX_SUMS * ((1 + reach**2) / (8 * (sigma * LATTICE) ** 2) + 2.0**-59)


def check_budget(epsilon: float, delta: float) -> None:
    """Refuse a budget that no noise can be calibrated to."""
    if not epsilon > 0:
        raise InputError(f"privacy.epsilon: {epsilon:g} is not above 0")
    if not MIN_DELTA <= delta < 1:
        raise InputError(f"privacy.delta: {delta:g} is not in [{MIN_DELTA:g}, 1); raise it")


def check(release: Release) -> None:
    """Refuse a release whose noise `epsilon_of` can't account for."""
    of_sums = release.is_sums
    low, high = (_MIN_SUMS_SIGMA, _MAX_SUMS_SIGMA) if of_sums else (MIN_SIGMA, MAX_SIGMA)
    if release.votes_per_unit < 1 or (of_sums and release.votes_per_unit != 1):
        raise InputError(f"privacy: {release.key} has a sensitivity that can't be accounted for")
    if not (release.sigma == 0 or low <= release.sigma <= high):
        raise InputError(
            f"privacy.epsilon: {release.key} takes noise of sigma {release.sigma:g}, outside "
            f"{low:g} to {high:g}; change epsilon (inf for no noise), or the shares of the budget"
        )


def calibrate(shape: Sequence[Release], budget: Budget) -> tuple[Release, ...]:
    """Return the releases with the least noise that the budget allows; the sigmas are relative.

    Neither the discrete mechanism's epsilon nor the continuous closed form exceeds the budget. The
    second condition matters for sigma far below 1. There the discrete noise is 0 almost surely and
    its epsilon about 1 / (2 sigma^2), less than the closed form, so a budget would buy less noise
    than the field expects.

    Guarantee: epsilon_of(result, budget.delta) <= budget.epsilon.
    """
    if math.isinf(budget.epsilon):
        return tuple(replace(release, sigma=0.0) for release in shape)
    if not shape:
        return ()
    check_budget(budget.epsilon, budget.delta)
    mixed = len({(release.is_sums, release.sigma) for release in shape}) > 1
    epsilon = budget.epsilon * (1 - _MIXED_MARGIN) if mixed else budget.epsilon
    return scale_noise(
        shape,
        gaussian_mu(epsilon, budget.delta),
        lambda releases: epsilon_of(releases, budget.delta) / epsilon,
    )


def scale_noise(
    shape: Sequence[Release], mu: float, spent: Callable[[Sequence[Release]], float]
) -> tuple[Release, ...]:
    """Multiply the sigmas by the smallest common factor for which `spent` is at most 1.

    The factor is right to about one part in 100,000, and never below that of continuous noise,
    whose parameter is `mu`. Sigmas are rounded up to 6 digits. `spent` falls as noise grows, about
    as 1 / sigma.
    """
    from scipy.optimize import brentq

    if any(not 0 < release.sigma < math.inf for release in shape):
        raise InputError("schedule.noise: every relative sigma must be a number above 0")

    def at(factor: float) -> tuple[Release, ...]:
        return tuple(replace(r, sigma=_round_up(r.sigma * factor)) for r in shape)

    def excess(factor: float) -> float:
        return spent(at(factor)) - 1

    factor = math.sqrt(math.fsum(r.votes_per_unit / r.sigma**2 for r in shape)) / mu
    above = excess(factor)
    if above > 0:
        step = max(1e-5, 1.2 * above)
        while excess(factor * (1 + step)) > 0:
            step *= 4
        factor = float(brentq(excess, factor, factor * (1 + step), rtol=2e-6, xtol=1e-300))
        while excess(factor) > 0:
            factor *= 1 + 2e-6
    releases = at(factor)
    for release in releases:
        check(release)
    return releases


def _round_up(sigma: float) -> float:
    """Return `sigma` with 6 significant digits, never less than it was."""
    exponent = math.floor(math.log10(sigma)) - 5
    digits = math.ceil(sigma / 10.0**exponent)
    while float(f"{digits}e{exponent}") < sigma:
        digits += 1
    return float(f"{digits}e{exponent}")
