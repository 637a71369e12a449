"""The noise follows the exact distribution."""

from __future__ import annotations

import os

import mpmath
import numpy as np
import pytest
from scipy.stats import chi2

from pe_ray.errors import InputError
from pe_ray.release.gaussian import _table, discrete_gaussian


@pytest.mark.parametrize("sigma", [0.3, 1.0, 7.07, 300.0])
def test_draws_follow_the_exact_pmf(sigma: float) -> None:
    draws = discrete_gaussian(sigma, 200_000)
    reach = int(8 * sigma) + 2
    support = np.arange(-reach, reach + 1)
    weights = np.exp(-(support**2) / (2 * sigma**2))
    expected = 200_000 * weights / weights.sum()
    counts = np.array([np.sum(draws == x) for x in support], dtype=float)
    keep = expected >= 20
    observed = np.append(counts[keep], 200_000 - counts[keep].sum())
    wanted = np.append(expected[keep], 200_000 - expected[keep].sum())
    filled = wanted > 1
    statistic = ((observed - wanted)[filled] ** 2 / wanted[filled]).sum()
    assert statistic < chi2.isf(1e-8, filled.sum() - 1)


def test_table_agrees_with_the_definition_to_128_bits() -> None:
    high, low = _table(2.5)
    with mpmath.workprec(400):
        weights = [
            mpmath.exp(-(mpmath.mpf(x) ** 2) / (2 * mpmath.mpf(2.5) ** 2)) for x in range(99)
        ]
        total = weights[0] + 2 * sum(weights[1:])
        for i in range(len(high)):
            exact = mpmath.ldexp((weights[0] + 2 * sum(weights[1 : i + 1])) / total, 128)
            assert abs(int(high[i]) * 2**64 + int(low[i]) - exact) < 4


def test_ties_on_the_first_word_are_settled_by_the_second() -> None:
    high, low = _table(3.0)

    def scripted(word: int, rest: int) -> int:
        answers = iter([word.to_bytes(8, "little"), rest.to_bytes(8, "little"), b"\x00"])
        return int(discrete_gaussian(3.0, 1, entropy=lambda num: next(answers))[0])

    word, rest = int(high[4]), int(low[4])
    assert scripted(word, rest - 1) == 4  # below P(|X| <= 4): at most 4
    assert scripted(word, rest) == 5  # not below: more than 4


def test_noise_comes_from_the_operating_system_by_default() -> None:
    assert discrete_gaussian.__kwdefaults__ == {"entropy": os.urandom}
    first, second = discrete_gaussian(100.0, 50), discrete_gaussian(100.0, 50)
    assert not np.array_equal(first, second)


def test_edges() -> None:
    assert not discrete_gaussian(0.0, 10).any()
    assert discrete_gaussian(50_000.0, 1000).std() == pytest.approx(50_000, rel=0.2)
    with pytest.raises(InputError, match="out of range"):
        discrete_gaussian(1e9, 1)
