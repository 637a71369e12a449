"""The noise follows the exact distribution."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from itertools import accumulate

import mpmath
import numpy as np
import pytest
from scipy.stats import chi2

from pe_ray.errors import InputError
from pe_ray.release.mechanism import MAX_SIGMA, MIN_SIGMA, _table, discrete_gaussian


def exact_table(sigma: float, block: int, rows: int, bits: int) -> list[mpmath.mpf]:
    """P(|X| // block <= b) * 2**bits as the definition gives it."""
    weights = [
        mpmath.exp(-(mpmath.mpf(b * block) ** 2) / (2 * mpmath.mpf(sigma) ** 2))
        for b in range(rows)
    ]
    if block == 1:
        weights[1:] = [2 * weight for weight in weights[1:]]
    total = mpmath.fsum(weights)
    return [mpmath.ldexp(value / total, bits) for value in accumulate(weights)]


def chi_square_fails(draws: np.ndarray, sigma: float, width: int) -> bool:
    """Whether a right sampler would look worse with chance 1e-8; bins of `width` integers."""
    reach = int(8 * sigma / width) + 2
    support = np.arange(-reach * width, (reach + 1) * width)
    weights = np.exp(-(support.astype(float) ** 2) / (2 * sigma**2))
    expected = len(draws) * weights.reshape(-1, width).sum(axis=1) / weights.sum()
    inside = (draws >= support[0]) & (draws <= support[-1])
    counts = np.bincount((draws[inside] - support[0]) // width, minlength=len(expected))
    keep = expected >= 20
    observed = np.append(counts[keep], len(draws) - counts[keep].sum())
    wanted = np.append(expected[keep], len(draws) - expected[keep].sum())
    filled = wanted > 1
    statistic = ((observed - wanted)[filled] ** 2 / wanted[filled]).sum()
    return bool(statistic > chi2.isf(1e-8, filled.sum() - 1))


@pytest.mark.parametrize(
    ("sigma", "width"), [(0.3, 1), (1.0, 1), (7.07, 1), (300.0, 1), (1500.0, 1), (9000.0, 100)]
)
def test_draws_follow_the_exact_pmf(sigma: float, width: int) -> None:
    assert not chi_square_fails(discrete_gaussian(sigma, 200_000), sigma, width)


def test_a_slightly_wrong_sigma_would_be_noticed() -> None:
    assert chi_square_fails(discrete_gaussian(7.07 * 1.03, 200_000), 7.07, 1)


@pytest.mark.parametrize("sigma", [0.0361, 0.5, 2.5, 40.0])
def test_every_value_has_its_probability_to_60_bits(sigma: float) -> None:
    table = _table(sigma)
    assert table.block == 1
    with mpmath.workprec(2 * table.bits):
        rows = len(table.cumulative)
        exact = exact_table(sigma, 1, rows, table.bits)
        for row in range(rows):
            have = table.cumulative[row] - (table.cumulative[row - 1] if row else 0)
            want = exact[row] - (exact[row - 1] if row else 0)
            assert abs(have / want - 1) < 2.0**-60
        beyond = 2 * mpmath.exp(-(mpmath.mpf(rows) ** 2) / (2 * mpmath.mpf(sigma) ** 2))
        assert beyond < 2.0**-128
    assert [value >> (table.bits - 64) for value in table.cumulative[:-1]] == table.high.tolist()


def test_blocks_stand_for_the_distribution() -> None:
    table = _table(3000.0)
    assert table.block == 4
    with mpmath.workprec(2 * table.bits):
        exact = exact_table(3000.0, 4, len(table.cumulative), table.bits)
        assert max(abs(a - b) for a, b in zip(table.cumulative, exact, strict=True)) < 2


def scripted(*answers: tuple[int, int]) -> Callable[[int], bytes]:
    """Entropy that returns these (number, bytes) in order and checks how much is asked for."""
    script = iter(answers)

    def entropy(size: int) -> bytes:
        number, expected = next(script)
        assert size == expected
        return number.to_bytes(size, "little")

    return entropy


@pytest.mark.parametrize("sigma", [0.05, 3.0])
def test_ties_on_the_first_word_are_settled_by_the_rest(sigma: float) -> None:
    table = _table(sigma)
    row = len(table.cumulative) - 2
    size = table.bits // 8 - 8
    word, rest = divmod(table.cumulative[row], 1 << (8 * size))
    below = scripted((word, 8), (rest - 1, size), (0, 1))
    # Many rows may share the word where the mass has run out: the rest tells them apart.
    assert int(discrete_gaussian(sigma, 1, entropy=below)[0]) == row
    above = scripted((word, 8), (rest, size), (255, 1))
    assert int(discrete_gaussian(sigma, 1, entropy=above)[0]) == -(row + 1)


def test_acceptance_within_float_error_is_settled_exactly() -> None:
    sigma, row, offset = 3000.0, 700, 3
    table = _table(sigma)
    first = int(table.high[row - 1]) + 1
    with mpmath.workprec(320):
        excess = (2 * row * table.block + offset) * offset
        chance = mpmath.exp(-excess / (2 * mpmath.mpf(sigma) ** 2))
        word, rest = divmod(int(mpmath.ldexp(chance, 256)), 1 << 192)
    accepted = scripted((first, 8), (offset, 8), (word, 8), (rest - 1, 24))
    assert int(discrete_gaussian(sigma, 1, entropy=accepted)[0]) == row * table.block + offset
    refused = scripted(
        (first, 8), (offset, 8), (word, 8), (rest, 24), (first, 8), (offset + 2**63, 8), (0, 8)
    )
    assert int(discrete_gaussian(sigma, 1, entropy=refused)[0]) == -(row * table.block + offset)


def test_minus_zero_is_refused_in_blocks() -> None:
    entropy = scripted((0, 8), (2**63, 8), (0, 8), (0, 8), (2**63 + 1, 8), (0, 8))
    assert int(discrete_gaussian(3000.0, 1, entropy=entropy)[0]) == -1


def test_noise_comes_from_the_operating_system_by_default() -> None:
    assert discrete_gaussian.__kwdefaults__ == {"entropy": os.urandom}
    first, second = discrete_gaussian(100.0, 50), discrete_gaussian(100.0, 50)
    assert not np.array_equal(first, second)


def test_edges() -> None:
    assert not discrete_gaussian(0.0, 10).any()
    assert len(discrete_gaussian(2.0, 0)) == 0
    for sigma in (1e6, MAX_SIGMA):
        draws = discrete_gaussian(sigma, 40_000)
        assert draws.dtype == np.int64
        assert draws.std() == pytest.approx(sigma, rel=0.03)
        assert np.abs(draws).max() < 8 * sigma
    for sigma in (-1.0, math.nan, MIN_SIGMA / 2, MAX_SIGMA * 2):
        with pytest.raises(InputError, match="out of range"):
            discrete_gaussian(sigma, 1)


@pytest.mark.parametrize(("shift", "accepted"), [(-(2**24), True), (2**24, False)])
def test_acceptance_beyond_float_error_takes_one_word(shift: int, accepted: bool) -> None:
    sigma, row, offset = 3000.0, 700, 3
    table = _table(sigma)
    excess = (2 * row * table.block + offset) * offset
    word = int(math.exp(-excess / (2 * sigma**2)) * 2.0**64) + shift
    first = int(table.high[row - 1]) + 1
    entropy = scripted((first, 8), (offset, 8), (word, 8), (0, 8), (1, 8), (0, 8))
    expected = row * table.block + offset if accepted else 1
    assert int(discrete_gaussian(sigma, 1, entropy=entropy)[0]) == expected
