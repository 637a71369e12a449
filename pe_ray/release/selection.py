"""Accounting for the best of a random number of runs (Papernot and Steinke, ICLR 2022).

A mechanism Q (here: draw settings at random, run Private Evolution with them, score the result) is
run K times, K drawn at random, and only the best output leaves. With f the probability generating
function of K and a total order on outputs (here: score, then content), the output y has probability

    A(y) = f(Q(<= y)) - f(Q(< y)) = Q(y) E[f'(X)],  X uniform on [Q(< y), Q(<= y)].

Two bounds on that are offered; both hold, so the smaller one may be claimed.

*Renyi*: their Theorems 2 (truncated negative binomial) and 6 (Poisson) as dp_accounting computes
them. The base is rho-zCDP: a multivariate discrete Gaussian of sensitivity D is
D^2/(2 sigma^2)-zCDP, the Renyi curve of the continuous Gaussian (Canonne, Kamath, Steinke 2020,
Theorem 14). Other releases compose with it, adaptively or not, by adding their curves.

*Privacy profile* (Koskela, Redberg, Wang, ICML 2024, arXiv 2402.06701). Let delta_Q(e) be the
base's profile, over both directions. Couple X for D with X' for D' by the same point t of their
intervals. 1 - X is the probability under D of a randomised test (outputs above y, and y with
probability 1 - t), so for any e1 >= 0

    1 - X' <= e^e1 (1 - X) + d1,  d1 = delta_Q(e1).                                             (1)

Truncated negative binomial: f'(x) is proportional to (g + (1 - g)(1 - x))^-(eta + 1), g = gamma.
By (1) and g <= g + (1 - g)(1 - X), the base of that power is at most C = e^e1 + d1 (1 - g) / g
times larger for X' than for X, so f'(X) <= C^(eta + 1) f'(X').
Poisson: f'(x) is proportional to e^(m x), m the mean, and by (1)
X - X' <= e^e1 - 1 + d1, so f'(X) <= e^(m (e^e1 - 1 + d1)) f'(X').
Call the logarithm of the factor s. Then for any set S of outputs, as f' <= f'(1) = E[K],

    A(S) - e^e A'(S) <= sum over y in S of E[f'(X) (Q(y) - e^(e - s) Q'(y))]
                     <= E[K] delta_Q(e - s).

So the epsilon of A at delta is at most epsilon_Q(delta / E[K]) + s, for every d1; no output at all
(Poisson, K = 0) has the same probability under D and D'. If Q first draws which of several plans it
runs, its profile is at most the largest of theirs, and so is its Renyi curve.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import mpmath
import numpy as np
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant
from scipy.optimize import brentq, minimize_scalar

from pe_ray.errors import InputError
from pe_ray.release.accounting import epsilon_of, kept_back
from pe_ray.release.adaptive import DELTA_SHARE, budget_mu, lost_delta, with_mu
from pe_ray.values import Release

_ORDERS = np.unique(
    np.concatenate([1 + np.arange(1, 100) / 10, np.arange(11, 64), np.geomspace(64, 20_000, 60)])
)
_RHO_SLACK = 2.0**-35
"""Of a release's coordinates (2**20 at most): each one's probabilities are right to a relative
2**-60, and orders are at least 1.1."""
_BITS = 192


@dataclass(frozen=True, slots=True, kw_only=True)
class Repetitions:
    """Distribution of K. shape: eta of the truncated negative binomial (0 logarithmic, 1
    geometric; K >= 1), inf for Poisson (K may be 0). mean: E[K]; the Poisson's parameter.
    """

    mean: float
    shape: float

    @property
    def gamma(self) -> float:
        """The truncated negative binomial's parameter that gives the mean."""
        if self.mean <= 1:
            return 1.0

        def excess(log_gamma: float) -> float:
            log, eta = -log_gamma, self.shape
            odds = math.expm1(log)  # 1 / gamma - 1
            return (odds / log if eta == 0 else -eta * odds / math.expm1(-eta * log)) - self.mean

        return math.exp(brentq(excess, -700.0, -1e-12, xtol=1e-14))

    def draw(self, entropy: Callable[[int], bytes] = os.urandom) -> int:
        """K, by inversion with 192 bits of the system's entropy. `entropy`: for TESTS ONLY."""
        with mpmath.workprec(_BITS + 32):
            uniform = mpmath.mpf(int.from_bytes(entropy(_BITS // 8), "little")) / 2**_BITS
            number, mass = self._first()
            total = mass
            while uniform >= total and mass > 0:
                number += 1
                mass *= self._ratio(number)
                total += mass
        return number

    def _first(self) -> tuple[int, mpmath.mpf]:
        """The least K and its probability."""
        if math.isinf(self.shape):
            return 0, mpmath.exp(-mpmath.mpf(self.mean))
        gamma, eta = mpmath.mpf(self.gamma), mpmath.mpf(self.shape)
        if self.gamma == 1:
            return 1, mpmath.mpf(1)
        if eta == 0:
            return 1, (1 - gamma) / -mpmath.log(gamma)
        return 1, eta * (1 - gamma) / (gamma**-eta - 1)

    def _ratio(self, number: int) -> mpmath.mpf:
        """P(K = number) / P(K = number - 1)."""
        if math.isinf(self.shape):
            return mpmath.mpf(self.mean) / number
        return (1 - mpmath.mpf(self.gamma)) * (number - 1 + mpmath.mpf(self.shape)) / number


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The best of K runs of a mechanism that makes the releases of one of `plans`."""

    repetitions: Repetitions
    plans: tuple[tuple[Release, ...], ...]

    @property
    def rho(self) -> float:
        """The base is rho-zCDP."""
        return max(zcdp(plan) for plan in self.plans)

    @property
    def kept_back(self) -> float:
        """Mass, in one run, of what the sampler can't draw."""
        return max(sum(map(kept_back, plan)) for plan in self.plans)


def zcdp(releases: Sequence[Release]) -> float:
    """The rho for which all `releases` together are rho-zCDP; inf without noise."""
    if any(release.sigma == 0 for release in releases):
        return math.inf
    return math.fsum(0.5 * r.sensitivity**2 / r.sigma**2 + _RHO_SLACK for r in releases)


def renyi_epsilon(selection: Selection, others: Sequence[Release], delta: float) -> float:
    """Epsilon at `delta` of the selection and all `others` together, by Renyi accounting.

    Guarantee: an upper bound for adding or removing one unit, however the others were chosen.
    """
    rho = selection.rho
    if math.isinf(rho) or math.isinf(zcdp(others)):
        return math.inf
    repetitions = selection.repetitions
    accountant = RdpAccountant(_ORDERS)
    accountant.compose(
        dp_event.RepeatAndSelectDpEvent(
            dp_event.ZCDpEvent(rho), repetitions.mean, repetitions.shape
        )
    )
    if others:
        accountant.compose(dp_event.ZCDpEvent(zcdp(others)))
    epsilon = float(accountant.get_epsilon(delta * (1 - DELTA_SHARE)))
    mass = selection.kept_back * repetitions.mean + sum(map(kept_back, others))
    return math.inf if lost_delta(epsilon, mass) > delta * DELTA_SHARE else epsilon * (1 + 1e-12)


@lru_cache(maxsize=256)
def profile_epsilon(selection: Selection, delta: float) -> float:
    """Epsilon at `delta` of the selection alone, from the base's privacy profile.

    Guarantee: an upper bound for adding or removing one unit.
    """
    repetitions, plans = selection.repetitions, selection.plans
    if any(release.sigma == 0 for plan in plans for release in plan):
        return math.inf
    distinct = {tuple(sorted((r.sigma, r.votes_per_unit) for r in plan)): plan for plan in plans}

    def base(at: float) -> float:
        return max(epsilon_of(plan, at) for plan in distinct.values())

    def shift(log_delta: float) -> float:
        """s of the module's docstring for d1 = e^log_delta."""
        chance = math.exp(log_delta)
        epsilon = base(chance)
        if math.isinf(repetitions.shape):
            return repetitions.mean * (math.expm1(min(epsilon, 500.0)) + chance)
        gamma = repetitions.gamma
        factor = math.log1p(chance * (1 - gamma) / gamma * math.exp(-epsilon))
        return (repetitions.shape + 1) * (epsilon + factor)

    best = minimize_scalar(
        shift,
        bounds=(math.log(delta) - 5, math.log(0.999)),
        method="bounded",
        options={"xatol": 0.02},
    )  # any d1 gives a bound: a loose minimum only costs a little epsilon
    return (base(delta / repetitions.mean) + float(best.fun)) * (1 + 1e-12)


def selection_bounds(
    selection: Selection, others: Sequence[Release], delta: float
) -> dict[str, float]:
    """Epsilon of the selection with `others` by every accounting that holds for them.

    Guarantee: each is an upper bound for adding or removing one unit.
    """
    found = {"renyi": renyi_epsilon(selection, others, delta)}
    if not others:
        found["privacy_profile"] = profile_epsilon(selection, delta)
    return found


def calibrate_selection(
    shapes: Sequence[Sequence[Release]],
    repetitions: Repetitions,
    others: Sequence[Release],
    epsilon: float,
    delta: float,
) -> Selection:
    """The selection with the least noise for which the smallest bound is within `epsilon`.

    shapes: releases with relative sigmas, of each plan that a trial may have; all get the same mu.
    """
    most = budget_mu(epsilon, delta)

    def at(log_mu: float) -> Selection:
        mu = math.exp(log_mu)
        return Selection(
            repetitions=repetitions, plans=tuple(with_mu(shape, mu) for shape in shapes)
        )

    def excess(log_mu: float) -> float:
        return min(selection_bounds(at(log_mu), others, delta).values()) - epsilon

    high = math.log(most)
    low = high
    while excess(low) > 0:
        low -= 1
        if low < high - 8:  # 3,000 times the noise: accounting for more takes seconds a step
            raise InputError(
                "tuning.strategy: the budget is too small for a selection; raise privacy.epsilon, "
                "lower tuning.repetitions.mean or use another strategy"
            )
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (low, middle) if excess(middle) > 0 else (middle, high)
    return at(low)
