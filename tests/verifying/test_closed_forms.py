"""Bounds in closed form: around the exact figures, and close to them."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pe_ray.release.accounting import epsilon_of
from pe_ray.release.adaptive import adaptive_epsilon
from pe_ray.values import Release
from pe_ray.verifying import closed_forms
from pe_ray.verifying.closed_forms import bracket_epsilon


def votes(sigma: float, limit: int = 1) -> Release:
    return Release(key="v", kind="votes", iteration=1, votes_per_unit=limit, sigma=sigma)


def sums(sigma: float) -> Release:
    return Release(key="s", kind="sums", iteration=1, votes_per_unit=1, sigma=sigma)


EXACT = [
    ([votes(2.0)], 1e-5, 2.0113398),
    ([votes(2.0)] * 10, 1e-5, 7.4952537),
    ([votes(50**0.5)], 1e-5, 0.4972620),
    ([votes(50**0.5)] * 10, 1e-5, 1.7597559),
    ([votes(0.0361)], 1e-5, 383.668009736),
    ([votes(2.0)] * 10, 1e-13, 12.484017699),
    ([votes(10.0)] * 1000, 1e-12, 26.719776411),
    ([votes(7711.0)] * 20, 1e-5, 0.001000019398),
]
"""Of test_accounting.py: exact arithmetic, and an independent implementation."""


@pytest.mark.parametrize(("releases", "delta", "epsilon"), EXACT)
def test_exact_figures_lie_within(releases: list[Release], delta: float, epsilon: float) -> None:
    below, above = bracket_epsilon(releases, delta)
    assert below <= epsilon * (1 + 1e-8)
    assert epsilon <= above


@pytest.mark.parametrize("sigma", [7.0, 20.0, 300.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-10])
def test_the_bounds_are_close_where_noise_is_wide(sigma: float, delta: float) -> None:
    releases = [votes(sigma, 4)] * 5 + [sums(sigma)]
    below, above = bracket_epsilon(releases, delta)
    epsilon = epsilon_of(releases, delta)
    assert below > 0.98 * epsilon
    assert above < 1.25 * epsilon


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0.1, 1000.0), st.integers(1, 20)), min_size=1, max_size=4),
    st.floats(-12, -1),
    st.booleans(),
)
@example([(0.11328125, 19)], -1.0, False)  # e^epsilon overflows in dp_accounting
def test_no_composition_lies_outside(
    given: list[tuple[float, int]], exponent: float, summed: bool
) -> None:
    releases = [votes(sigma, limit) for sigma, limit in given]
    if summed:
        releases.append(sums(max(1.0, given[0][0])))
    delta = 10.0**exponent
    below, above = bracket_epsilon(releases, delta)
    assert below <= epsilon_of(releases, delta) * (1 + 1e-9)
    assert epsilon_of(releases, delta) <= above * (1 + 1e-9) + 1e-9
    assert below <= adaptive_epsilon(releases, delta) * (1 + 1e-9)


def test_without_noise_or_releases() -> None:
    assert bracket_epsilon([], 1e-5) == (0.0, 0.0)
    assert bracket_epsilon([votes(3.0), votes(0.0)], 1e-5) == (math.inf, math.inf)


def test_a_figure_of_another_noise_lies_outside() -> None:
    """A tenth less noise than stated is told from the figure."""
    stated = bracket_epsilon([votes(20.0)] * 3, 1e-6)
    assert epsilon_of([votes(22.0)] * 3, 1e-6) < stated[0]


def test_it_shares_nothing_with_the_ledgers_accounting() -> None:
    tree = ast.parse(Path(closed_forms.__file__).read_text(encoding="utf-8"))
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {each.name for node in ast.walk(tree) if isinstance(node, ast.Import)
              for each in node.names}  # fmt: skip
    assert not [name for name in names if name and ("dp_accounting" in name or "release" in name)]
