"""Privacy loss of composed discrete (and continuous) Gaussian mechanisms, as a tight upper bound.

The same mathematics as dp_accounting's privacy loss distributions: losses on a grid, split
pessimistically ("connect the dots", Doroshenko et al. 2022), convolved by FFT. Three things differ,
because dp_accounting's figures are infinite for delta below about 1e-15 and take seconds for large
sigmas: the grid is the loss lattice itself where that is possible, blocks of a large sigma's
support are summed by quadrature, and each distribution is tilted exponentially before the FFT, so
that its rounding error is relative to the delta asked for.

With P the noise, the loss of drawing x is ln(P(x) / P(x + 1)) = (x + 1/2) / sigma^2. That of the
continuous Gaussian mechanism with parameter mu is normal, with mean mu^2 / 2 and variance mu^2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from pe_ray.errors import InputError

Floats = NDArray[np.float64]

SLACK_PER_COORDINATE = 2.0**-120
"""Delta kept back for each noised coordinate: covers infinite losses of the sampler (2**-127)."""
_LOSS_SLACK = 2.0**-59
"""Loss kept back for each noised coordinate: the sampler's relative precision."""
_TAIL_SHARE = 1e-9
"""Share of delta given to what is cut off: both tails of each release, the upper of the sum."""
_FLOAT_SHARE = 1e-9
_FLOAT_SHARE_PER_COORDINATE = 1e-13
"""Shares of delta given to rounding: of the FFT, and of the power that composes."""
_TOLERANCE = 1e-5
"""Relative error of epsilon meant for the splitting."""
_NODES = 8
_MAX_GRID = 2**23
_EXACT_GRID = 2**19
_FINE_GRID = 2**18
_FINE_GROUPS = 32
_GAUSSIAN_GRID = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Losses:
    """A distribution of losses step * (first + index), composed `times` times.

    index: int64 [n], from 0, ascending, without the empty grid points; logs: float64 [n], log
    probabilities.
    """

    step: float
    first: int
    index: NDArray[np.int64]
    logs: Floats
    times: int

    @property
    def losses(self) -> Floats:
        return self.step * (self.first + self.index.astype(np.float64))

    def log_mgf(self, order: float) -> float:
        """times * ln E[exp(order * loss)]."""
        exponents = self.logs + order * self.losses
        highest = float(exponents.max())
        return self.times * (highest + math.log(float(np.exp(exponents - highest).sum())))


def composed_epsilon(
    times: Sequence[tuple[float, int]], delta: float, guess: float, mu_squared: float = 0.0
) -> float:
    """Epsilon at `delta` of `count` unit-sensitivity discrete Gaussians for each (sigma, count),
    composed with continuous Gaussian mechanisms whose squared parameters sum to `mu_squared`.

    guess: the continuous closed form of all of them, which places the grid and the tilt; for the
    discrete ones it may be far off.

    Guarantee: an upper bound on the epsilon of the composition, for adding and for removing.
    """
    if not times:
        return guess * (1 + 1e-12)
    total = sum(count for _, count in times) + int(mu_squared > 0)
    target = delta - total * SLACK_PER_COORDINATE
    if target <= 0:
        return math.inf
    mu = math.sqrt(math.fsum([mu_squared, *(count / sigma**2 for sigma, count in times)]))
    step = _step(times, mu, mu_squared > 0, min(max(guess / mu, 1e-3), 1.0))
    # P(|x| > cut) <= 2 exp(-cut^2 / (2 sigma^2)) by sub-Gaussianity (Canonne et al. 2020).
    deviation = math.sqrt(2 * math.log(2 * total / (_TAIL_SHARE * target)))
    parts = [_losses(sigma, count, step, deviation) for sigma, count in times]
    if mu_squared > 0:
        parts.append(_gaussian_losses(math.sqrt(mu_squared), step, deviation))
    tilt = max(guess / mu**2 - 0.5, 0.0)
    target *= 1 - 2 * _TAIL_SHARE - _FLOAT_SHARE - total * _FLOAT_SHARE_PER_COORDINATE
    epsilon = _solve(parts, tilt, mu, target, delta * _TAIL_SHARE)
    return epsilon * (1 + 1e-12) + total * _LOSS_SLACK if epsilon > 0 else 0.0


def _step(times: Sequence[tuple[float, int]], mu: float, gaussian: bool, ratio: float) -> float:
    """Grid step: half the loss lattice's (no error) if all sigmas are equal and it isn't too fine.

    Otherwise splitting adds up to step^2 / 6 per coordinate, on average, to the variance mu^2.
    """
    total = sum(count for _, count in times) + int(gaussian)
    step = mu * math.sqrt(24 * _TOLERANCE * ratio / total)
    if len(times) == 1 and not gaussian:
        lattice = 0.5 / times[0][0] ** 2
        if lattice * _EXACT_GRID > 30 * mu or lattice > step:
            return lattice
    if len(times) <= _FINE_GROUPS:
        step = min(step, 30 * mu / _FINE_GRID)
    return max(step, 30 * mu / (_GAUSSIAN_GRID if gaussian else _MAX_GRID))


def _losses(sigma: float, times: int, step: float, deviation: float) -> _Losses:
    """Losses of one discrete Gaussian, on the grid."""
    points, logs = _support(sigma, step, math.ceil(deviation * sigma) + 1)
    return _split((points + 0.5) / sigma**2, logs, step, times)


def _gaussian_losses(mu: float, step: float, deviation: float) -> _Losses:
    """Losses of a continuous Gaussian mechanism, N(mu^2 / 2, mu^2), on the grid.

    Each cell's integral is summed over Gauss-Legendre nodes inside it: a cell is at most 0.016
    standard deviations wide, where eight nodes (four below 0.001) are exact to about 1e-15.
    """
    middle, reach = mu**2 / 2, math.ceil((deviation + 1) * mu / step)
    cells = np.arange(math.floor(middle / step) - reach, math.ceil(middle / step) + reach)
    nodes, weights = np.polynomial.legendre.leggauss(_NODES if step > 1e-3 * mu else _NODES // 2)
    losses = ((cells[:, None] + (nodes + 1) / 2) * step).ravel()
    logs = np.tile(np.log(weights / 2 * step / (mu * math.sqrt(2 * math.pi))), len(cells))
    return _split(losses, logs - 0.5 * ((losses - middle) / mu) ** 2, step, 1)


def _split(losses: Floats, logs: Floats, step: float, times: int) -> _Losses:
    """Ascending losses with log probabilities, each split between its grid neighbours.

    A loss l in [a, a + step] becomes a with chance 1 - c and a + step with c, c = (1 - exp(a - l))
    / (1 - exp(-step)): total mass and the mean of exp(-loss) stay, so the likelihood ratio's
    distribution is a mean-preserving spread, and each hockey-stick divergence can only grow.
    """
    cells = np.floor(losses / step)
    upper = np.clip(np.expm1(cells * step - losses) / math.expm1(-step), 0.0, 1.0)
    first = int(cells[0])
    lower = (cells - first).astype(np.int64)
    masses = np.exp(logs)
    mass = np.bincount(lower, masses * (1 - upper), int(lower[-1]) + 2)
    mass += np.bincount(lower + 1, masses * upper, len(mass))
    index = np.flatnonzero(mass)
    return _Losses(step=step, first=first, index=index, logs=np.log(mass[index]), times=times)


def _support(sigma: float, step: float, cut: int) -> tuple[Floats, Floats]:
    """Points in [-cut, cut], ascending, and log probabilities that stand for the integers there.

    Where a grid cell holds several integers they are summed in blocks of at most sigma / 16, none
    across a cell's edge, by 8-node quadrature for equidistant points: exact for polynomials of
    degree 15, hence to about 1e-15 for the Gaussian times the smooth splitting chance.
    """
    if step * sigma**2 < 2 or cut < 4096:
        points = np.arange(-cut, cut + 1, dtype=np.float64)
        return points, -0.5 * (points / sigma) ** 2 - _log_normalizer(sigma)
    reach = math.ceil((cut + 1) / sigma**2 / step)
    edges = np.ceil(np.arange(-reach, reach + 1) * (step * sigma**2) - 0.5)
    blocks = np.arange(-cut, cut + 1, max(1, int(sigma / 16)), dtype=np.float64)
    starts = np.unique(np.concatenate([edges[(edges > -cut) & (edges <= cut)], blocks]))
    counts = np.diff(np.append(starts, cut + 1.0))
    distinct, which = np.unique(counts, return_inverse=True)
    nodes, weights = _gram_quadrature(distinct)
    points = (starts + (counts - 1) / 2)[:, None] + nodes[which]
    with np.errstate(divide="ignore"):
        logs = np.log(weights[which]) - 0.5 * (points / sigma) ** 2 - _log_normalizer(sigma)
    return points.ravel(), logs.ravel()


def _gram_quadrature(counts: Floats) -> tuple[Floats, Floats]:
    """Nodes and weights, [n, 8], for sums over `counts[i]` consecutive integers centred on 0.

    Golub and Welsch (1969) with the recurrence of the Gram (discrete Chebyshev) polynomials; a
    sum of fewer than 8 terms comes out as itself, the nodes to spare having weight 0.
    """
    order = np.arange(1.0, _NODES)
    squares = order**2 * (counts[:, None] ** 2 - order**2) / (4 * (4 * order**2 - 1))
    matrix = np.zeros((len(counts), _NODES, _NODES))
    place = np.arange(1, _NODES)
    matrix[:, place, place - 1] = np.sqrt(np.maximum(squares, 0.0))
    nodes, vectors = np.linalg.eigh(matrix)  # reads the lower triangle
    return nodes, counts[:, None] * vectors[:, 0, :] ** 2


def _log_normalizer(sigma: float) -> float:
    """ln of the sum of exp(-x^2 / (2 sigma^2)) over the integers, by Poisson summation if wide."""
    if sigma > 1:
        spread = 2 * math.pi**2 * sigma**2
        return math.log(sigma * math.sqrt(2 * math.pi)) + math.log1p(2 * math.exp(-spread))
    return math.log1p(2 * math.fsum(math.exp(-0.5 * (x / sigma) ** 2) for x in range(1, 16)))


def _solve(parts: Sequence[_Losses], tilt: float, mu: float, target: float, spare: float) -> float:
    """Smallest epsilon >= 0 whose hockey-stick divergence is at most `target`.

    Works with q(l) = p(l) exp(tilt l - scale), scale the log moment generating function at
    `tilt`: most of q lies where the answer does. `spare` bounds the mass cut off above.
    """
    step = parts[0].step
    scale = math.fsum(part.log_mgf(tilt) for part in parts)
    orders = [order / mu for order in (0.25, 1, 2, 4, 6, 8, 11, 15, 21, 32)]
    # Chernoff: the mass beyond the top is below `spare`, the tilted mass below the bottom tiny.
    # What wraps around from below is counted at the top: too much, never too little.
    top = min(
        (math.fsum(part.log_mgf(tilt + order) for part in parts) - math.log(spare)) / (tilt + order)
        for order in orders
    )
    bottom = max(
        (scale - math.fsum(part.log_mgf(tilt - order) for part in parts) - 40.0) / order
        for order in orders
    )
    low, high = math.floor(bottom / step), math.ceil(top / step)
    size = fft.next_fast_len(
        max(high - low, *(int(part.index[-1]) for part in parts)) + 1, real=True
    )
    if size > 4 * _MAX_GRID:
        raise InputError("privacy: these noise scales differ too much to be accounted for together")
    masses = _convolve(parts, tilt, size, low)
    losses = step * (low + np.arange(size, dtype=np.float64))
    return _invert(masses, losses, tilt, scale, target)


def _convolve(parts: Sequence[_Losses], tilt: float, size: int, low: int) -> Floats:
    """Tilted distribution of the sum of all losses at step * (low + i), float64 [size]."""
    product: NDArray[np.complex128] | None = None
    first = 0
    for part in parts:
        tilted = np.zeros(size)
        tilted[part.index] = np.exp(
            part.logs + tilt * part.losses - part.log_mgf(tilt) / part.times
        )
        transform = fft.rfft(tilted) ** part.times
        product = transform if product is None else product * transform
        first += part.first * part.times
    masses: Floats = np.roll(fft.irfft(product, size), (first - low) % size)
    return np.maximum(masses, 0.0)


def _invert(masses: Floats, losses: Floats, tilt: float, scale: float, target: float) -> float:
    """Solve sum over l > e of q(l) exp(scale - tilt l) (1 - exp(e - l)) = target for e >= 0."""

    def above(epsilon: float, start: int) -> tuple[Floats, Floats, float]:
        """Losses less epsilon and masses from `start` on, and the log of the factor they lack."""
        excess = losses[start:] - epsilon
        return excess, masses[start:] * np.exp(-tilt * excess), scale - tilt * epsilon

    def within(epsilon: float, start: int) -> bool:
        excess, weights, factor = above(epsilon, start)
        found = -float(np.dot(weights, np.expm1(-excess)))
        return found <= 0 or math.log(found) + factor <= math.log(target)

    begin = int(np.searchsorted(losses, 0.0, side="right"))
    if begin == len(losses) or within(0.0, begin):
        return 0.0
    # Now losses[begin - 1] (or 0) has too much delta; find the first grid point that hasn't.
    low, high = begin - 1, len(losses) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if within(float(losses[middle]), middle + 1):
            high = middle
        else:
            low = middle
    anchor = float(losses[high])
    excess, weights, factor = above(anchor, high)
    # Between grid points the divergence is A - exp(e - anchor) B with these two sums.
    upper, lower = float(weights.sum()), float(np.dot(weights, np.exp(-excess)))
    left = upper - math.exp(math.log(target) - factor)
    return max(anchor + math.log(left / lower), 0.0) if left > 0 else anchor
