"""Lower bounds on epsilon from guesses about canaries that a run included by fair coins.

Every bound answers one question: the ledger claims noise of certain sigmas; by which factor must
they be scaled down before what was seen becomes plausible? The claim's trade-off function f (least
rate of misses at each rate of false alarms; Dong, Roth, Su 2022) is that of the composed discrete
Gaussians at the scaled sigmas, the family that f-DP auditing needs as its hypothesis. The measured
epsilon is what the ledger would print for those sigmas.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from dp_accounting.pld import privacy_loss_distribution as pld
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import binomtest

from pe_ray.release.accounting import epsilon_of
from pe_ray.values import Release

Tradeoff = Callable[[float], float]
Refuted = Callable[[Tradeoff], bool]

_CONTINUOUS = 10.0  # from this sigma on the lattice changes mu by less than 1 in 2,000
_LOSSES = 400  # points of the loss grid in one mu
_STEPS = 12  # halvings of the logarithm of a scale: to 1 part in 800
_LEAST, _MOST = 2.0**-6, 2.0**3  # scales looked at


def tradeoff(releases: Sequence[Release], scale: float) -> Tradeoff:
    """Return f of all `releases`, sigmas scaled by `scale`: false alarms -> least misses."""
    times = Counter((r.sigma * scale, r.votes_per_unit) for r in releases)
    merged: Counter[float] = Counter()
    for (sigma, ones), count in times.items():
        merged[sigma] += ones * count
    return _tradeoff(tuple(sorted(merged.items())))


@lru_cache(maxsize=512)
def _tradeoff(times: tuple[tuple[float, int], ...]) -> Tradeoff:
    least = times[0][0]
    mu = math.sqrt(math.fsum(count / sigma**2 for sigma, count in times))
    if least >= _CONTINUOUS:
        mu *= 1 + 1 / (12 * least**2)
        return lambda x: float(ndtr(ndtri(1.0 - x) - mu))
    # A part of the loss lattice where there is one, so that f's corners are on the grid.
    step = min(mu, 1.0) / _LOSSES
    if len(times) == 1:
        step = 0.5 / least**2 / math.ceil(0.5 / least**2 / step)
    step = max(step, mu * (mu / 2 + 8) / 50_000)
    composed = None
    for sigma, count in times:
        one = pld.from_discrete_gaussian_mechanism(
            sigma, value_discretization_interval=step, use_connect_dots=True
        ).self_compose(count)
        composed = one if composed is None else composed.compose(one)
    assert composed is not None
    epsilons = step * np.arange(math.ceil(mu * (mu / 2 + 8) / step) + 2)
    deltas = np.asarray(composed.get_delta_for_epsilon(epsilons))
    steep, flat = np.exp(np.minimum(epsilons, 700.0)), np.exp(-epsilons)

    def function(x: float) -> float:
        lines = max(float((1 - deltas - steep * x).max()), float((flat * (1 - deltas - x)).max()))
        return max(lines, 0.0)

    return function


def measured_epsilon(releases: Sequence[Release], delta: float, refuted: Refuted) -> float:
    """Return epsilon at `delta` of the smallest scale that `refuted` still refutes; 0 if none."""
    low, high = math.log(_LEAST), math.log(_MOST)
    if not refuted(tradeoff(releases, math.exp(high))):
        return 0.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (
            (low, middle) if refuted(tradeoff(releases, math.exp(middle))) else (middle, high)
        )
    return epsilon_of([replace(r, sigma=r.sigma * math.exp(high)) for r in releases], delta)


def refutes_in_one_run(f: Tradeoff, m: int, guesses: int, right: int, alpha: float) -> bool:
    """Tell whether `right` right guesses of `guesses` have a chance below `alpha` for every f-DP
    run.
    """
    wrong_mass, right_mass = alpha * (guesses - right) / m, alpha * right / m
    for count in range(right - 1, -1, -1):
        needed = f(1.0 - right_mass)
        if needed <= wrong_mass:
            return False
        right_mass += count / (guesses - count) * (needed - wrong_mass)
        wrong_mass = needed
        if right_mass + wrong_mass > guesses / m:
            return True
    return False


def refutes_independent(
    f: Tradeoff, included: int, misses: int, excluded: int, false_alarms: int, alpha: float
) -> bool:
    """Tell whether the `misses` of `included` and `false_alarms` of `excluded` are too few.

    Clopper and Pearson's (1934) upper bounds, each at alpha / 2, against f. Assumes that given the
    coins the canaries' scores are independent and, among included and among excluded ones, alike.
    """
    if not included or not excluded:
        return False
    most_misses, most_alarms = (
        binomtest(hits, trials, alternative="less").proportion_ci(1 - alpha / 2).high
        for hits, trials in ((misses, included), (false_alarms, excluded))
    )
    return bool(most_misses < f(most_alarms))


def right_guesses(scores: NDArray[np.float64], coins: NDArray[np.bool_], guesses: int) -> int:
    """Count the right guesses of `guesses`: in for the higher half of the scores, out for the
    lower.
    """
    order = np.argsort(scores, kind="stable")
    lowest = guesses // 2
    highest = guesses - lowest
    return int((~coins[order[:lowest]]).sum() + coins[order[len(order) - highest :]].sum())
