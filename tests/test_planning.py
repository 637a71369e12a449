"""What a plan says before anything is spent."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pe_ray import Config
from pe_ray.planning import plan, warn_of_few_votes


@pytest.mark.parametrize("neighbors", [1, 3])
def test_lifted_samples_take_all_votes_that_are_cast(tree: dict[str, Any], neighbors: int) -> None:
    tree["votes"] = {**tree.get("votes", {}), "neighbors": neighbors}
    made = plan(Config.from_dict(tree))
    noisiest = max(release.sigma for release in made.releases if release.kind == "votes")
    assert made.count_lifted(1000) * 2 * noisiest == pytest.approx(1000 * neighbors)


def test_without_noise_every_sample_stands_out(tree: dict[str, Any]) -> None:
    tree["privacy"]["epsilon"] = math.inf
    assert plan(Config.from_dict(tree)).count_lifted(1) == math.inf


@pytest.mark.parametrize(
    ("samples", "smooth", "records", "warned"),
    [
        (1000, 1, 100_000, False),
        (100_000, 1, 100_000, True),  # a vote each
        (100_000, 1024, 100_000, False),
        (1000, 1, 1000, True),
        (1000, 1, None, False),  # 10,000 by delta
        (100_000, 1, None, True),
    ],
)
def test_votes_below_their_noise_are_warned_of(
    short: dict[str, Any], samples: int, smooth: int, records: int | None, warned: bool
) -> None:
    short["schedule"]["num_samples"] = [samples, 40]
    short["selection"] = {"smooth": smooth}
    config = Config.from_dict(short)
    assert bool(warn_of_few_votes(config, plan(config), records)) == warned
