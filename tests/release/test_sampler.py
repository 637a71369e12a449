"""Acceptance of the sampler: chi-square and tail counts against the exact distribution.

SHARE is the chance with which one look at a right sampler fails; LOOKS of them make
CHANCE = 1e-7 for the whole file: in a million CI runs 0.1 chance failures are to be expected.
tests/release/test_mechanism.py has the structure: tables bit by bit, and ties settled by an
injected source. Here are what ties do to frequencies, and the frequencies themselves.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, chi2

from pe_ray.release import mechanism
from pe_ray.release.mechanism import _table, discrete_gaussian

SIGMAS = (0.3, 0.5, 1.0, 2.5, 7.07, 40.0, 300.0, 1000.0, 1100.0, 3000.0, 10_000.0)
DRAWS = 400_000
CHANCE = 1e-7
COARSE = (25.0, 40.0, 500.0)  # see test_wide_blocks_are_shaped_by_acceptance
LOOKS = 5 * (len(SIGMAS) + len(COARSE)) + 2
SHARE = CHANCE / LOOKS
LEAST_EXPECTED = 50.0


def exact_pmf(sigma: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The integers within 12 sigma (all but 1e-32 of the mass) and their probabilities.

    The normalising sum is taken with 30 digits; float64 is right to 1e-13 relative, far below what
    400,000 draws can show.
    """
    reach = math.ceil(12 * sigma)
    support = np.arange(-reach, reach + 1)
    if sigma < 100:
        with mpmath.workdps(30):
            scale = 2 * mpmath.mpf(sigma) ** 2
            weights = [mpmath.exp(-(mpmath.mpf(int(x)) ** 2) / scale) for x in support]
            total = mpmath.fsum(weights)
            return support, np.array([float(weight / total) for weight in weights])
    weights = np.exp(-(support.astype(np.float64) ** 2) / (2 * sigma**2))
    return support, weights / math.fsum(weights)


def chi_square_chance(observed: NDArray[np.int64], chances: NDArray[np.float64]) -> float:
    """p-value of the counts of cells; neighbours are joined until each expects enough."""
    expected, seen, joined_expected, joined_seen = 0.0, 0, [], []
    total = int(observed.sum())
    for count, chance in zip(observed.tolist(), chances.tolist(), strict=True):
        expected, seen = expected + chance * total, seen + count
        if expected >= LEAST_EXPECTED:
            joined_expected.append(expected)
            joined_seen.append(seen)
            expected, seen = 0.0, 0
    joined_expected[-1] += expected
    joined_seen[-1] += seen
    wanted, got = np.array(joined_expected), np.array(joined_seen)
    return float(chi2.sf(((got - wanted) ** 2 / wanted).sum(), max(1, len(wanted) - 1)))


def looks(draws: NDArray[np.int64], sigma: float) -> dict[str, float]:
    """p-values: the pmf in cells, both tails at three distances, and signs."""
    support, pmf = exact_pmf(sigma)
    assert np.abs(draws).max() <= support[-1]
    counts = np.bincount(draws - support[0], minlength=len(support))
    width = max(1, int(sigma / 50))  # at most some 1,200 cells
    edges = np.arange(0, len(support), width)
    found = {
        "pmf": chi_square_chance(
            np.add.reduceat(counts, edges).astype(np.int64), np.add.reduceat(pmf, edges)
        )
    }
    for distance in (2.0, 3.0, 4.0):
        far = np.abs(support) > distance * sigma
        chance, hits = float(pmf[far].sum()), int(counts[far].sum())
        tails = binom.sf(hits - 1, len(draws), chance), binom.cdf(hits, len(draws), chance)
        found[f"beyond {distance:g} sigma"] = min(1.0, 2 * float(min(tails)))
    positive, moved = int((draws > 0).sum()), int((draws != 0).sum())
    tails = binom.sf(positive - 1, moved, 0.5), binom.cdf(positive, moved, 0.5)
    found["signs"] = min(1.0, 2 * float(min(tails)))
    return found


@pytest.mark.parametrize("sigma", SIGMAS)
def test_draws_are_from_the_exact_distribution(sigma: float) -> None:
    found = looks(discrete_gaussian(sigma, DRAWS), sigma)
    assert len(found) == 5
    assert min(found.values()) > SHARE, found


@pytest.mark.parametrize(
    ("sigma", "wrong"),
    [
        (0.5, lambda draws: draws + (np.arange(len(draws)) % 200 == 0)),
        (7.07, lambda draws: np.abs(draws)),
        (40.0, lambda draws: np.clip(draws, -120, 120)),
        (1000.0, lambda draws: draws // 2 * 2),
    ],
    ids=["one in 200 moved", "signs lost", "tails cut at 3 sigma", "only even values"],
)
def test_wrong_samplers_are_noticed(
    sigma: float, wrong: Callable[[NDArray[np.int64]], NDArray[np.int64]]
) -> None:
    draws = wrong(discrete_gaussian(sigma, DRAWS))
    found = looks(draws, sigma)
    if sigma == 1000.0:  # cells of 20 integers can't see it, those of one can
        support, pmf = exact_pmf(sigma)
        counts = np.bincount(draws - support[0], minlength=len(support))
        near = np.abs(support) < 10
        inside = pmf[near] / pmf[near].sum()
        found["values"] = chi_square_chance(counts[near], inside)
    assert min(found.values()) < SHARE, found


@pytest.mark.parametrize("sigma", COARSE)
def test_wide_blocks_are_shaped_by_acceptance(
    sigma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the table's real fineness acceptance rejects 1 in 1,000, too few to be seen in counts:
    so here a row of the table stands for 16 integers or more.
    """
    monkeypatch.setattr(mechanism, "_TABLE_SIGMA", 2.0)
    _table.cache_clear()
    try:
        assert _table(sigma).block >= 16
        found = looks(discrete_gaussian(sigma, DRAWS), sigma)
    finally:
        _table.cache_clear()
    assert min(found.values()) > SHARE, found


def test_ties_fall_as_the_further_bits_say() -> None:
    """Of draws whose first word ties with row r, the share of r itself is what the rest leaves.

    Row r takes the rest below its cumulative sum's low bits; a whole tie costs 64 bits of luck, so
    only an injected source ever gets here.
    """
    sigma = 2.5
    table = _table(sigma)
    row, ties = 1, 20_000
    low_bits = table.bits - 64
    word = int(table.high[row])
    share = (table.cumulative[row] & ((1 << low_bits) - 1)) / (1 << low_bits)
    words = np.full(ties, word, dtype="<u8").tobytes()
    first = [True]

    def entropy(size: int) -> bytes:
        if first[0]:
            first[0] = False
            assert size == 8 * ties
            return words
        return os.urandom(size)

    draws = np.abs(discrete_gaussian(sigma, ties, entropy=entropy))
    assert set(draws.tolist()) <= {row, row + 1}
    hits = int((draws == row).sum())
    tails = binom.sf(hits - 1, ties, share), binom.cdf(hits, ties, share)
    assert 2 * min(tails) > SHARE


def test_open_acceptances_fall_as_the_further_bits_say() -> None:
    """Words within float error of the acceptance chance: the rest decides, at the exact share."""
    sigma, row, offset, tries = 3000.0, 700, 3, 300
    table = _table(sigma)
    first = int(table.high[row - 1]) + 1
    with mpmath.workprec(320):
        excess = (2 * row * table.block + offset) * offset
        exact = int(mpmath.ldexp(mpmath.exp(-excess / (2 * mpmath.mpf(sigma) ** 2)), 256))
    word, rest = divmod(exact, 1 << 192)
    share = rest / (1 << 192)
    script = [
        np.full(tries, first, dtype="<u8").tobytes(),
        np.full(tries, offset, dtype="<u8").tobytes(),
        np.full(tries, word, dtype="<u8").tobytes(),
    ]

    def entropy(size: int) -> bytes:
        return script.pop(0) if script else os.urandom(size)

    drawn = mechanism._draw(table, tries, entropy)
    hits = len(drawn)
    assert set(drawn.tolist()) <= {row * table.block + offset}
    tails = binom.sf(hits - 1, tries, share), binom.cdf(hits, tries, share)
    assert 2 * min(tails) > SHARE
