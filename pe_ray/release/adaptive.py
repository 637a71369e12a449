"""Account for releases that depend on earlier ones: Gaussian DP with an adaptive analyst.

A search decides from released values what to try next, when to stop a trial and how much noise the
final run gets. `accounting.epsilon_of` holds for a list of releases that is fixed in advance, so it
can't be used there. Gaussian DP can: take mechanisms that are mu_i-GDP, each chosen after the
results of those before it. Together they are B-GDP as long as sum(mu_i^2) never exceeds B^2 (Smith
and Thakurta 2022, "Fully Adaptive Composition for Gaussian Differential Privacy", arXiv 2210.17520;
Koskela, Tobaben, Honkela 2023, arXiv 2209.15596).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from pe_ray.release.accounting import (
    check_budget,
    gaussian_dp,
    gaussian_epsilon,
    gaussian_mu,
    kept_back,
    scale_noise,
    sums_epsilon,
)
from pe_ray.values import Release

DELTA_SHARE = 1e-9
"""Share of delta kept back for what the sampler can't draw; epsilon is inf where that is less."""


def mu_of(releases: Sequence[Release]) -> float:
    """Return the mu for which all `releases` together are mu-GDP, however each was chosen."""
    return math.sqrt(math.fsum(_mu_squared(release) for release in releases))


def _mu_squared(release: Release) -> float:
    """Votes: a unit shifts at most votes_per_unit independent counts by 1 each. Sums: 1 in L2."""
    if release.is_sums:
        return 1 / release.sigma**2 if release.sigma else math.inf
    return release.votes_per_unit * gaussian_dp(release.sigma) ** 2


def adaptive_epsilon(releases: Sequence[Release], delta: float) -> float:
    """Return epsilon at `delta` of releases chosen one after the other; inf without noise.

    Guarantee: suppose that an analyst charges each release to a ledger, which keeps this figure
    within epsilon, and chooses each with all results before it at hand. Then the transcript is
    (epsilon, delta)-DP for adding or removing one unit. What the sampler can't draw has less mass
    than `kept_back` on either side, which adds at most 1 + e^epsilon times as much to delta. For
    sums the discrete noise is compared with a rounded Gaussian outcome by outcome (see
    release.accounting), so that holds for an adaptive analyst too.
    """
    if not releases:
        return 0.0
    mu = mu_of(releases)
    if math.isinf(mu):
        return math.inf
    sums = [release.sigma for release in releases if release.is_sums]
    target = delta * (1 - DELTA_SHARE) * (1 - 2.0**-30 * len(sums))
    epsilon = gaussian_epsilon(mu, target) + math.fsum(map(sums_epsilon, sums))
    lost = lost_delta(epsilon, math.fsum(map(kept_back, releases)))
    return math.inf if lost > delta * DELTA_SHARE else epsilon * (1 + 1e-12)


def lost_delta(epsilon: float, mass: float) -> float:
    """Return the delta that outcomes of probability `mass`, on either side, cost at most."""
    return (1 + math.exp(min(epsilon, 700.0))) * mass


def budget_mu(epsilon: float, delta: float) -> float:
    """Return the largest mu whose `adaptive_epsilon` is within `epsilon`, or a hair less.

    The hair leaves room for hundreds of releases of sums with sigma above 1.
    """
    check_budget(epsilon, delta)
    return gaussian_mu(epsilon, delta * (1 - 1e-6)) * (1 - 1e-6)


def with_mu(shape: Sequence[Release], mu: float) -> tuple[Release, ...]:
    """Return the releases with the least noise for which they are mu-GDP; the sigmas are relative.

    Guarantee: mu_of(result) <= mu.
    """
    if math.isinf(mu):
        return tuple(replace(release, sigma=0.0) for release in shape)
    return scale_noise(shape, mu, lambda releases: mu_of(releases) / mu)
