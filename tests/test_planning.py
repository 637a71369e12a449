"""What a plan says before anything is spent."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pe_ray import Config
from pe_ray.config.blocks import ResourcesConfig
from pe_ray.planning import plan, plan_workers, warn_of_few_votes, worker_seconds


@pytest.mark.parametrize("neighbors", [1, 3])
def test_lifted_samples_take_all_votes_that_are_cast(tree: dict[str, Any], neighbors: int) -> None:
    tree["votes"] = {**tree.get("votes", {}), "neighbors": neighbors}
    made = plan(Config.from_dict(tree))
    noisiest = max(release.sigma for release in made.releases if release.kind == "votes")
    assert made.count_lifted(1000) * 2 * noisiest == pytest.approx(1000 * neighbors)


def test_without_noise_every_sample_stands_out(tree: dict[str, Any]) -> None:
    tree["privacy"]["epsilon"] = math.inf
    assert plan(Config.from_dict(tree)).count_lifted(1) == math.inf


def test_what_a_generator_does_once_is_not_counted_for_each_image(tree: dict[str, Any]) -> None:
    tree["generator"]["kind"] = "outside:SlowStart"
    seconds = worker_seconds(Config.from_dict(tree), (40, 1000, 1000))
    assert seconds is not None
    assert 0 < seconds < 500


@pytest.mark.parametrize(
    ("resources", "workers"),
    [
        ({"num_cpus": 8, "cpus_per_worker": 2}, 4),
        ({"num_cpus": 1, "cpus_per_worker": 2}, 1),
        ({"workers": 3, "address": "auto"}, 3),
        ({"address": "auto"}, None),
    ],
)
def test_workers_are_those_of_the_resources(resources: dict[str, Any], workers: int | None) -> None:
    assert plan_workers(ResourcesConfig(**resources)) == workers


@pytest.mark.parametrize(
    ("samples", "smooth", "records", "warned"),
    [
        (1000, 1, 100_000, False),
        (1_000_000, 1, 100_000, True),  # a tenth of a vote each
        (1_000_000, 1024, 100_000, False),
        (1000, 1, 100, True),
        (1000, 1, None, False),  # 10,000 by delta
        (100_000, 1, None, True),
    ],
)
def test_votes_far_below_their_noise_are_warned_of(
    short: dict[str, Any], samples: int, smooth: int, records: int | None, warned: bool
) -> None:
    short["schedule"]["num_samples"] = [samples, 40]
    short["selection"] = {"smooth": smooth}
    config = Config.from_dict(short)
    assert bool(warn_of_few_votes(config, plan(config), records)) == warned
