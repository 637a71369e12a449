"""Bounds of epsilon in closed form: no dp_accounting, and nothing of pe_ray.release.accounting.

*From above.* Discrete Gaussian noise of scale sigma makes a release (Delta / sigma)^2 / 2-zCDP for
an L2 sensitivity of Delta. These add up over releases, also if each is chosen by those before it
(Canonne, Kamath, Steinke 2020, "The Discrete Gaussian for Differential Privacy", Theorem 14).
Proposition 7 there makes them (epsilon, delta).

*From below.* To add continuous noise N(0, tau^2) to every released count is post-processing, which
never costs privacy. By Poisson's summation formula the density of the sum of both noises is that of
N(0, sigma^2 + tau^2), up to factors between (1 - 2 e) / (1 + 2 e) and 1 + 2 e. Here e is the sum of
exp(-2 pi^2 s^2 j^2) over j = 1, 2, ..., and 1 / s^2 = 1 / sigma^2 + 1 / tau^2. So with n counts and
K = n ln((1 + 2 e) / (1 - 2 e)), epsilon is at least that of the Gaussian mechanism at delta e^K
(Balle and Wang 2018, Theorem 8), less 2 K.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.optimize import brentq, minimize_scalar
from scipy.special import log_ndtr

from pe_ray.values import LATTICE, Release

_ADDED_VARIANCES = (0.5, 1.0, 2.0)
"""tau^2, in steps of the noise's lattice. Each gives a bound."""
_LARGEST = 700.0


def bracket_epsilon(releases: Sequence[Release], delta: float) -> tuple[float, float]:
    """Return bounds from below and above of the epsilon that the mechanisms of `releases` have.

    From below it is about a unit that reaches the stated sensitivity in all of them. From above it
    is infinity where it would exceed 700: e^epsilon leaves the doubles there, and an accountant's
    figure may be the looser one.
    """
    if any(release.sigma == 0 for release in releases):
        return math.inf, math.inf
    if not releases:
        return 0.0, 0.0
    rho = math.fsum(r.votes_per_unit / (2 * r.sigma**2) for r in releases)
    below = max(_bound_below(releases, delta, added) for added in _ADDED_VARIANCES)
    above = _bound_above(rho, delta)
    return below, above if above <= _LARGEST else math.inf


def _bound_above(rho: float, delta: float) -> float:
    """Return epsilon of rho-zCDP at `delta`: the least bound that an order alpha gives."""

    def bound(log_excess: float) -> float:
        excess = math.exp(log_excess)  # alpha - 1
        rest = math.log(delta) + log_excess + (1 + excess) * math.log1p(1 / excess)
        return (1 + excess) * rho - rest / excess

    return max(0.0, float(minimize_scalar(bound, bounds=(-25.0, 25.0), method="bounded").fun))


def _bound_below(releases: Sequence[Release], delta: float, added: float) -> float:
    mu_squared = error = 0.0
    for release in releases:
        step = 1 / LATTICE if release.is_sums else 1.0
        mu_squared += release.votes_per_unit / (release.sigma**2 + added * step**2)
        spread = 1 / (step**2 / release.sigma**2 + 1 / added)
        first = math.exp(-2 * math.pi**2 * spread)
        series = first / (1 - first)  # at least the sum over j
        if series >= 0.5:
            return 0.0
        error += release.votes_per_unit * 2 * math.atanh(2 * series)
    if error + math.log(delta) >= 0:
        return 0.0
    return max(0.0, _gaussian_epsilon(math.sqrt(mu_squared), delta * math.exp(error)) - 2 * error)


def _gaussian_epsilon(mu: float, delta: float) -> float:
    """Return epsilon at `delta` of the Gaussian mechanism with sensitivity / sigma = `mu`."""

    def excess(epsilon: float) -> float:
        upper = float(log_ndtr(mu / 2 - epsilon / mu))
        ratio = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu)) - upper
        return (upper + math.log(-math.expm1(ratio)) if ratio < 0 else -math.inf) - math.log(delta)

    if excess(0.0) <= 0:
        return 0.0
    most = mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    return float(brentq(excess, 0.0, most * (1 + 1e-9) + 1e-9, xtol=1e-12))
