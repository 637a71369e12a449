"""Accounting where later releases depend on earlier ones: Gaussian DP with an adaptive analyst.

A search decides from released values what to try next, when to stop a trial and how much noise the
final run gets. The exact composition of release.composition holds for a list of releases that was
fixed in advance, so it can't be used there. Gaussian DP can: mechanisms that are mu_i-GDP, chosen
one after the other by whatever was released before, are together B-GDP as long as sum(mu_i^2) never
exceeds B^2 (Smith and Thakurta 2022, "Fully Adaptive Composition for Gaussian Differential
Privacy", arXiv 2210.17520; Koskela, Tobaben, Honkela 2023, arXiv 2209.15596).

The discrete Gaussian is mu-GDP for a mu slightly above 1 / sigma, worked out in `gaussian_dp`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri_exp

from pe_ray.release.accounting import (
    check,
    gaussian_epsilon,
    kept_back,
    round_up,
    sums_epsilon,
)
from pe_ray.values import Release

DELTA_SHARE = 1e-9
"""Share of delta kept back for what the sampler can't draw; epsilon is inf where that is less."""
_TAIL_BITS = 129
_SUMMED_SIGMA = 1000.0


@lru_cache(maxsize=1024)
def gaussian_dp(sigma: float) -> float:
    """The mu for which one count with discrete Gaussian noise of `sigma` is mu-GDP, rounded up.

    The trade-off curve between X and X + 1 is a polygon whose corners are the tests {X >= k}, so
    it lies above that of two Gaussians mu apart (which is convex) if its corners do:
    z(k) - z(k - 1) <= mu for all k, where z(k) is the normal quantile of P(X < k). Up to sigma =
    1000 the largest difference is found by summing, over all k that the sampler can draw. Beyond,
    Euler and Maclaurin's formula gives z(k) = x / sigma (1 + 1 / (24 sigma^2)) at x = k - 1/2, with
    a relative error of the correction below 1 % for |x| <= 14 sigma; twice the correction is taken.
    """
    if sigma == 0:
        return math.inf
    if sigma > _SUMMED_SIGMA:
        return (1 + 1 / (12 * sigma**2)) / sigma + 2.0**-55
    last = math.ceil(sigma * math.sqrt(2 * _TAIL_BITS * math.log(2)))
    points = np.arange(1, 2 * last + 20, dtype=np.float64)
    logs = -0.5 * (points / sigma) ** 2
    tails = np.logaddexp.accumulate(logs[::-1])[::-1]  # ln of the sums over j >= k
    upper = tails - np.logaddexp(0.0, math.log(2) + tails[0])
    quantiles = -ndtri_exp(upper[:last])
    steps = np.diff(np.concatenate([[-quantiles[0]], quantiles]))
    return float(steps.max()) * (1 + 1e-10) + 2.0**-55


def mu_of(releases: Sequence[Release]) -> float:
    """The mu for which all `releases` together are mu-GDP, however each was chosen."""
    return math.sqrt(math.fsum(_mu_squared(release) for release in releases))


def adaptive_epsilon(releases: Sequence[Release], delta: float) -> float:
    """Epsilon at `delta` of releases that were chosen one after the other; inf without noise.

    Guarantee: an analyst who charges releases with a ledger that refuses to let this figure exceed
    epsilon, and chooses each with all results before it at hand, gets an (epsilon, delta)-DP
    transcript for adding or removing one unit. What the sampler can't draw has less mass than
    `kept_back` on either side, which adds at most 1 + e^epsilon times as much to delta. For sums
    the discrete noise stands in for a rounded Gaussian as release.accounting has it: outcome by
    outcome, so that holds for an adaptive analyst too.
    """
    if not releases:
        return 0.0
    mu = mu_of(releases)
    if math.isinf(mu):
        return math.inf
    sums = [release.sigma for release in releases if release.kind == "sums"]
    target = delta * (1 - DELTA_SHARE) * (1 - 2.0**-30 * len(sums))
    epsilon = gaussian_epsilon(mu, target) + math.fsum(map(sums_epsilon, sums))
    lost = lost_delta(epsilon, math.fsum(map(kept_back, releases)))
    return math.inf if lost > delta * DELTA_SHARE else epsilon * (1 + 1e-12)


def lost_delta(epsilon: float, mass: float) -> float:
    """Delta that outcomes of probability `mass`, on either side, cost at most."""
    return (1 + math.exp(min(epsilon, 700.0))) * mass


def budget_mu(epsilon: float, delta: float) -> float:
    """The largest mu whose `adaptive_epsilon` is within `epsilon` (a hair below it).

    The hair leaves room for hundreds of releases of sums with sigma above 1.
    """

    def excess(log_mu: float) -> float:
        return gaussian_epsilon(math.exp(log_mu), delta * (1 - 1e-6)) / epsilon - 1

    low = high = 0.0
    while excess(low) > 0:
        low -= 4
    while excess(high) < 0:
        high += 4
    return math.exp(brentq(excess, low, high, xtol=1e-12)) * (1 - 1e-6)


def with_mu(shape: Sequence[Release], mu: float) -> tuple[Release, ...]:
    """The releases, their relative sigmas scaled so that together they are just about mu-GDP.

    Guarantee: mu_of(result) <= mu.
    """
    if math.isinf(mu):
        return tuple(replace(release, sigma=0.0) for release in shape)

    def at(log_scale: float) -> tuple[Release, ...]:
        scale = math.exp(log_scale)
        return tuple(replace(r, sigma=round_up(r.sigma * scale)) for r in shape)

    def excess(log_scale: float) -> float:
        return math.log(mu_of(at(log_scale)) / mu)

    first = math.log(math.sqrt(sum(r.votes_per_unit / r.sigma**2 for r in shape)) / mu)
    last = first + 1e-4
    while excess(last) > 0:
        last += 0.5
    scale = brentq(excess, first - 1e-4, last, xtol=1e-7) if excess(first - 1e-4) > 0 else first
    while excess(scale) > 0:
        scale += 1e-7
    releases = at(scale)
    for release in releases:
        check(release)
    return releases


def _mu_squared(release: Release) -> float:
    """Votes: a unit shifts at most votes_per_unit independent counts by 1 each. Sums: 1 in L2."""
    if release.kind == "sums":
        return 1 / release.sigma**2 if release.sigma else math.inf
    return release.votes_per_unit * gaussian_dp(release.sigma) ** 2
