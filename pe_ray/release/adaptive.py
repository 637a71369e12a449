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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pe_ray.release.accounting import (
    check_budget,
    gaussian_dp,
    gaussian_epsilon,
    gaussian_mu,
    kept_back,
    scale_noise,
    sums_epsilon,
)
from pe_ray.values import MAX_SUMS, Budget, Release

DELTA_SHARE = 1e-9
"""Share of delta kept back for what the sampler can't draw; epsilon is inf where that is less."""
_MOST_SUMS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What releases cost an adaptive analyst. Each part adds up over releases.

    mu_squared: see `mu_of`. num_sums: releases of sums. sums_epsilon: by how much they exceed the
    Gaussian mechanism. lost: probability of what the sampler can't draw.
    """

    mu_squared: float = 0.0
    num_sums: int = 0
    sums_epsilon: float = 0.0
    lost: float = 0.0

    def epsilon(self, delta: float) -> float:
        """Return epsilon at `delta`; inf without noise. See `adaptive_epsilon`."""
        if math.isinf(self.mu_squared):
            return math.inf
        target = delta * (1 - DELTA_SHARE) * (1 - 2.0**-30 * self.num_sums)
        epsilon = gaussian_epsilon(math.sqrt(self.mu_squared), target) + self.sums_epsilon
        lost = lost_delta(epsilon, self.lost)
        return math.inf if lost > delta * DELTA_SHARE else epsilon * (1 + 1e-12)

    def covers(self, other: Cost) -> bool:
        """Tell whether no part of `other` is larger."""
        return all(getattr(other, name) <= getattr(self, name) for name in self.__slots__)


def cost_of(releases: Iterable[Release]) -> Cost:
    """Return what `releases` cost together."""
    return add_costs(map(_cost, releases))


def add_costs(costs: Iterable[Cost]) -> Cost:
    """Return the sum, in which the order doesn't matter."""
    costs = list(costs)
    return Cost(
        mu_squared=math.fsum(cost.mu_squared for cost in costs),
        num_sums=sum(cost.num_sums for cost in costs),
        sums_epsilon=math.fsum(cost.sums_epsilon for cost in costs),
        lost=math.fsum(cost.lost for cost in costs),
    )


def _cost(release: Release) -> Cost:
    """Votes: a unit shifts at most votes_per_unit independent counts by 1 each. Sums: 1 in L2."""
    sigma, lost = release.sigma, kept_back(release)
    if not sigma:
        return Cost(mu_squared=math.inf, num_sums=int(release.is_sums), lost=lost)
    if not release.is_sums:
        return Cost(mu_squared=release.votes_per_unit * gaussian_dp(sigma) ** 2, lost=lost)
    return Cost(mu_squared=1 / sigma**2, num_sums=1, sums_epsilon=sums_epsilon(sigma), lost=lost)


def largest_cost(budget: Budget) -> Cost:
    """Return what releases may cost at most whose `adaptive_epsilon` is within `budget`.

    Guarantee: its mu_squared and sums_epsilon are upper bounds, since sums of mu_i each cost no
    more than one of sqrt(sum(mu_i^2)). More than 64 sums, or a billion ones, are not covered.
    """
    mu = gaussian_mu(budget.epsilon, budget.delta) * (1 + 1e-9)
    excess = sums_epsilon(1 / mu) + _MOST_SUMS * MAX_SUMS * 2.0**-59
    return Cost(mu_squared=mu**2, num_sums=_MOST_SUMS, sums_epsilon=excess, lost=2.0**-90)


def mu_of(releases: Iterable[Release]) -> float:
    """Return the mu for which all `releases` together are mu-GDP, however each was chosen."""
    return math.sqrt(cost_of(releases).mu_squared)


def adaptive_epsilon(releases: Iterable[Release], delta: float) -> float:
    """Return epsilon at `delta` of releases chosen one after the other; inf without noise.

    Guarantee: suppose that an analyst charges each release to a ledger, which keeps this figure
    within epsilon, and chooses each with all results before it at hand. Then the transcript is
    (epsilon, delta)-DP for adding or removing one unit. What the sampler can't draw has less mass
    than `kept_back` on either side, which adds at most 1 + e^epsilon times as much to delta. For
    sums the discrete noise is compared with a rounded Gaussian outcome by outcome (see
    release.accounting), so that holds for an adaptive analyst too.
    """
    return cost_of(releases).epsilon(delta)


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
