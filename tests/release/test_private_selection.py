"""Private selection: both bounds against the papers, and the number of runs."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pe_ray.errors import BudgetError
from pe_ray.release.accounting import epsilon_of
from pe_ray.release.adaptive import budget_mu, with_mu
from pe_ray.release.ledger import Ledger
from pe_ray.release.selection import (
    Repetitions,
    Selection,
    calibrate_selection,
    profile_epsilon,
    renyi_epsilon,
    selection_bounds,
)
from pe_ray.report.facts import privacy_curve
from pe_ray.values import Budget, Release

VOTE = Release(key="votes/0001", kind="votes", iteration=1, votes_per_unit=1, sigma=7.07)
PLAN = tuple(replace(VOTE, key=f"votes/{t:04d}", iteration=t) for t in range(1, 11))


def of(mean: float, shape: float, plan: tuple[Release, ...] = PLAN) -> Selection:
    return Selection(repetitions=Repetitions(mean=mean, shape=shape), plans=(plan,))


@pytest.mark.parametrize(("shape", "expected"), [(0.0, 3.2449), (1.0, 3.8620), (math.inf, 4.3597)])
def test_the_reference_figures(shape: float, expected: float) -> None:
    assert renyi_epsilon(of(10, shape), (), 1e-5) == pytest.approx(expected, rel=1e-3)
    assert profile_epsilon(of(10, shape), 1e-5) < expected
    assert epsilon_of(PLAN, 1e-5) == pytest.approx(1.7604, rel=1e-3)
    assert epsilon_of(PLAN * 10, 1e-5) == pytest.approx(6.574, rel=1e-2)


@pytest.mark.parametrize(("mean", "shape", "expected"), [(10.0, 1.0, 2.00), (12.5, 0.0, 1.77)])
def test_the_profile_figures_of_a_base_of_epsilon_1(
    mean: float, shape: float, expected: float
) -> None:
    base = with_mu([replace(VOTE, sigma=1.0)] * 10, budget_mu(1.0, 1e-5))
    assert profile_epsilon(of(mean, shape, base), 1e-5) == pytest.approx(expected, abs=0.01)


def to_epsilon(alpha: float, rdp: float, delta: float) -> float:
    """Canonne, Kamath, Steinke 2020, Proposition 12."""
    return rdp + math.log1p(-1 / alpha) - math.log(delta * alpha) / (alpha - 1)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 3.0])
def test_renyi_is_theorem_2(eta: float) -> None:
    """Papernot and Steinke 2022, Theorem 2, written out over a fine grid of both orders."""
    rho, mean, delta = 10 / (2 * 7.07**2), 8.0, 1e-5
    repetitions = Repetitions(mean=mean, shape=eta)
    orders = np.arange(1.05, 60, 0.05)
    least = np.min((1 - 1 / orders) * orders * rho - math.log(repetitions.gamma) / orders)
    rdp = orders * rho + (1 + eta) * least + math.log(mean) / (orders - 1)
    by_hand = min(to_epsilon(a, r, delta) for a, r in zip(orders, rdp, strict=True))
    assert renyi_epsilon(of(mean, eta), (), delta) == pytest.approx(by_hand, rel=2e-3)


def test_renyi_is_theorem_6() -> None:
    """Theorem 6 (Poisson): needs delta-hat of the base at epsilon-hat = ln(1 + 1/(a - 1))."""
    rho, mean, delta = 10 / (2 * 7.07**2), 8.0, 1e-5
    grid = np.arange(1.05, 200, 0.05)
    best = math.inf
    for alpha in np.arange(1.5, 40, 0.1):
        hat = math.log1p(1 / (alpha - 1))
        # delta at epsilon hat from Renyi, Proposition 12 solved for delta
        logs = (grid - 1) * (grid * rho - hat + np.log1p(-1 / grid)) - np.log(grid)
        delta_hat = min(1.0, float(np.exp(logs.min())), math.sqrt(-math.expm1(-rho)))
        rdp = alpha * rho + mean * delta_hat + math.log(mean) / (alpha - 1)
        best = min(best, to_epsilon(alpha, rdp, delta))
    assert renyi_epsilon(of(mean, math.inf), (), delta) == pytest.approx(best, rel=5e-3)


@pytest.mark.parametrize("shape", [0.0, 1.0, math.inf])
def test_no_bound_is_below_the_true_loss(shape: float) -> None:
    """A base with three outputs, exactly: the bound's argument, with its own profile."""
    rng = np.random.default_rng(5)
    repetitions = Repetitions(mean=4.0, shape=shape)

    def generating(x: float) -> float:
        if math.isinf(shape):
            return math.exp(repetitions.mean * (x - 1))
        g = repetitions.gamma
        if shape == 0:
            return math.log(1 - (1 - g) * x) / math.log(g)
        return ((1 - (1 - g) * x) ** -shape - 1) / (g**-shape - 1)

    def stick(p: np.ndarray, q: np.ndarray, epsilon: float) -> float:
        return float(np.maximum(p - math.exp(epsilon) * q, 0).sum())

    for _ in range(50):
        p, q = rng.dirichlet([1, 1, 1]), rng.dirichlet([1, 1, 1])
        a, b = (np.diff([generating(x) for x in (0, *np.cumsum(d)[:-1], 1.0)]) for d in (p, q))
        for e1 in (0.0, 0.3, 1.0):
            d1 = max(stick(p, q, e1), stick(q, p, e1))
            if math.isinf(shape):
                shift = repetitions.mean * (math.expm1(e1) + d1)
            else:
                g = repetitions.gamma
                shift = (shape + 1) * math.log(math.exp(e1) + d1 * (1 - g) / g)
            for epsilon in (0.5, 1.0, 2.0, 4.0):
                base = max(stick(p, q, epsilon - shift), stick(q, p, epsilon - shift))
                assert max(stick(a, b, epsilon), stick(b, a, epsilon)) <= 4.0 * base + 1e-12


@pytest.mark.parametrize("shape", [0.0, 0.5, 1.0, math.inf])
def test_the_number_of_runs_has_its_distribution(shape: float) -> None:
    repetitions = Repetitions(mean=3.0, shape=shape)
    rng = np.random.default_rng(1)
    drawn = Counter(repetitions.draw(lambda size: rng.bytes(size)) for _ in range(4000))
    mean = sum(k * n for k, n in drawn.items()) / 4000
    assert mean == pytest.approx(3.0, abs=0.25)
    assert (drawn[0] > 0) == math.isinf(shape)
    if shape == 1.0:
        assert drawn[1] / 4000 == pytest.approx(1 / 3, abs=0.03)


def test_calibration_uses_the_budget() -> None:
    shapes = [[replace(VOTE, sigma=1.0)] * 4, [replace(VOTE, sigma=2.0)] * 6]
    repetitions = Repetitions(mean=5.0, shape=0.0)
    found = calibrate_selection(shapes, repetitions, (), 1.0, 1e-5)
    assert 0.97 < min(selection_bounds(found, (), 1e-5).values()) <= 1.0
    with_others = calibrate_selection(shapes, repetitions, [replace(VOTE, sigma=20.0)], 1.0, 1e-5)
    assert with_others.plans[0][0].sigma > found.plans[0][0].sigma


def test_the_ledger_charges_a_selection_once_and_takes_one_run(tmp_path: Path) -> None:
    budget = Budget(epsilon=3.0, delta=1e-5, unit="record")
    ledger = Ledger.create(tmp_path / "ledger", budget, "f", "adaptive")
    selection = of(10, 0.0)
    with pytest.raises(BudgetError, match="no selection"):
        ledger.commit_selection([])
    ledger.reserve_selection(selection)
    ledger.reserve_selection(selection)
    assert ledger.selection() == selection
    bounds = ledger.bounds()
    assert ledger.spent() == bounds["privacy_profile"] < bounds["renyi"]
    with pytest.raises(BudgetError, match="other parameters"):
        ledger.reserve_selection(of(9, 0.0))
    with pytest.raises(BudgetError, match="over the budget"):
        ledger.reserve(replace(VOTE, key="extra"))
    noisy = np.arange(3)
    with pytest.raises(BudgetError, match="other releases"):
        ledger.commit_selection([(release, noisy) for release in PLAN[:9]])
    ledger.commit_selection([(release, noisy) for release in PLAN])
    ledger.commit_selection([(release, noisy + 1) for release in PLAN])
    assert ledger.spent() == bounds["privacy_profile"]
    assert ledger.spent(1e-7) > ledger.spent() > epsilon_of(PLAN, 1e-5)
    facts: Any = SimpleNamespace(ledger=ledger, spent=ledger.spent(), budget=budget)
    assert dict(privacy_curve(facts))[1e-5] == ledger.spent()  # not that of the best run alone
    stored = ledger.stored("votes/0003")
    assert stored is not None
    assert stored.tolist() == [0, 1, 2]


def test_a_selection_beyond_the_budget_is_refused(tmp_path: Path) -> None:
    budget = Budget(epsilon=2.5, delta=1e-5, unit="record")
    ledger = Ledger.create(tmp_path / "ledger", budget, "f", "adaptive")
    with pytest.raises(BudgetError, match="over the budget"):
        ledger.reserve_selection(of(10, 0.0))
    assert ledger.selection() is None
    assert ledger.spent() == 0
