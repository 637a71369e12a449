"""Kinds of release: their parts of the budget, and one that another package adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from pe_ray import Config, InputError
from pe_ray.private.votes import RawVotes
from pe_ray.release.accounting import epsilon_of
from pe_ray.release.aggregator import Aggregator
from pe_ray.release.ledger import Ledger
from pe_ray.release.releases import kind_of, shape_releases
from pe_ray.values import Budget, Release

CORNERS = Release(key="corners", kind="outside:Corners", iteration=0, votes_per_unit=1, sigma=3.0)


def test_every_kind_gets_its_share_of_the_budget(tree: dict[str, Any]) -> None:
    tree["teacher"] = {"share": 0.3, "features": 8}
    tree["privacy"]["label_fractions"] = "dp"
    tree["schedule"] |= {"noise": [4.0, 1.0]}
    tree["votes"] = {"neighbors": 3}
    counts, first, second, teacher = shape_releases(Config.from_dict(tree))
    cost = {r.key: r.votes_per_unit / r.sigma**2 for r in (counts, first, second, teacher)}
    assert sum(cost.values()) == pytest.approx(1)
    assert cost["label_counts"] == pytest.approx(0.05)
    assert cost["teacher"] == pytest.approx(0.3)
    assert first.sigma == pytest.approx(4 * second.sigma)
    assert [r.kind for r in (counts, first, second, teacher)] == [
        *("label_counts", "votes", "votes", "sums")
    ]


def test_a_kind_of_another_package_is_released_and_charged(
    ray_session: None, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger.create(path, Budget(epsilon=5.0, delta=1e-5, unit="record"), "fingerprint")
    raw = RawVotes(ids=np.array([0, 3]), counts=np.array([40, 60]), votes_per_unit=1)
    made = Aggregator(path).release(CORNERS, 4, [ray.put(raw)])
    assert np.abs(made.noisy_votes - [40, 0, 0, 60]).max() < 60
    assert np.array_equal(Ledger.open(path).released("corners").noisy_votes, made.noisy_votes)
    assert Ledger.open(path).spent() == epsilon_of([CORNERS], 1e-5)
    assert kind_of(CORNERS).describe(CORNERS) == "brightest corners"
    outside = RawVotes(ids=np.array([4]), counts=np.array([1]), votes_per_unit=1)
    again = Release(key="more", kind="outside:Corners", iteration=0, votes_per_unit=1, sigma=3.0)
    with pytest.raises(InputError, match="outside the 4 bins"):
        Aggregator(path).release(again, 4, [ray.put(outside)])


def test_sums_under_another_name_are_refused_before_they_are_charged(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger.create(path, Budget(epsilon=5.0, delta=1e-5, unit="record"), "fingerprint")
    hidden = Release(key="x", kind="outside:Lattice", iteration=0, votes_per_unit=1, sigma=3.0)
    with pytest.raises(InputError, match="the kind `sums`"):
        Aggregator(path).release(hidden, 4, [])
    assert not Ledger.open(path).charged
