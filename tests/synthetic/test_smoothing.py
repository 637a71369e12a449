"""Smoothing follows its formula, chooses by the noise, and is the same however it is run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pe_ray import Config
from pe_ray.evolution import evolve
from pe_ray.planning import plan_releases
from pe_ray.synthetic.population import apportion
from pe_ray.synthetic.smoothing import read_smoothed, smooth

LINE = np.arange(512)
NEAREST = np.argsort(np.abs(LINE[:, None] - LINE), axis=1, kind="stable")[:, 1:64].astype(np.int32)
"""Of points on a line."""


def noisy(true: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    return np.rint(true + sigma * np.random.default_rng(seed).standard_normal(len(true)))


@pytest.mark.parametrize("sigma", [0.1, 3.0, 30.0, 300.0])
def test_the_formula(sigma: float) -> None:
    """Against the smoother's matrix, written out."""
    counts = noisy(100 * np.sin(LINE / 40) ** 2, sigma)
    risks, averages = {}, {}
    for m in (1, 2, 4, 8, 16, 32):
        matrix = np.eye(512)
        for row, others in enumerate(NEAREST[:, : m - 1]):
            matrix[row, others] = 1
        averages[m] = matrix / m @ counts
        risks[m] = ((averages[m] - counts) ** 2).sum() + 2 * sigma**2 * np.trace(matrix / m)
    best = min(risks, key=lambda m: (risks[m], m))
    made, left = smooth(counts, NEAREST, sigma, 63)
    assert np.allclose(made, averages[best])
    assert left == pytest.approx(sigma / best**0.5)


def test_the_more_noise_the_wider_and_closer_to_the_truth() -> None:
    true, chosen = 100 * np.sin(LINE / 40) ** 2, []
    for sigma in (0.0, 1.0, 10.0, 100.0, 1000.0):
        counts = noisy(true, sigma)
        made, left = smooth(counts, NEAREST, sigma, 64)
        chosen.append(round((sigma / left) ** 2) if left else 1)
        assert ((made - true) ** 2).sum() <= ((counts - true) ** 2).sum()
    assert chosen == sorted(chosen)
    assert (chosen[0], chosen[-1]) == (1, 64)


def test_votes_that_neighbours_dont_share_stay_as_they_are() -> None:
    counts = noisy(np.where(LINE % 2, 400.0, 0.0), 20.0)
    made, left = smooth(counts, NEAREST, 20.0, 64)
    assert np.array_equal(made, counts)
    assert left == 20.0


def files(run: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(run)): file.read_bytes()
        for part in ("smoothed", "populations", "synthetic")
        for file in sorted((run / part).rglob("*.parquet"))
    }


@pytest.fixture
def smoothed(tree: dict[str, Any]) -> dict[str, Any]:
    tree["selection"] = {"smooth": 8, "denoise": "simplex"}
    tree["schedule"]["num_samples"] = 20  # two a label
    tree["privacy"]["epsilon"] = 0.02
    return tree


def test_a_run_takes_the_averages_and_says_how_wide(
    ray_session: None, smoothed: dict[str, Any], tmp_path: Path
) -> None:
    run = evolve(Config.from_dict(smoothed))
    released = pq.read_table(run / "histograms" / "iter=0001.parquet")
    kept = read_smoothed(run / "smoothed" / "iter=0001.parquet")
    assert kept is not None
    layout = apportion(20, (0.1,) * 10)
    (sigma, *_) = [r.sigma for r in plan_releases(Config.from_dict(smoothed))]
    assert min(kept.sigmas) < sigma, "against so much noise some label is smoothed"
    for label, left in enumerate(kept.sigmas):
        rows = slice(*layout.label_range(label))
        own = released["noisy_votes"].to_numpy()[rows]
        if left == sigma:
            assert np.array_equal(kept.votes[rows], own)
        else:
            assert left == pytest.approx(sigma / 2**0.5)
            assert kept.votes[rows] == pytest.approx(np.full(2, own.mean()))


def test_it_is_the_same_after_a_crash_and_for_other_workers(
    ray_session: None, smoothed: dict[str, Any], tmp_path: Path
) -> None:
    """What a crash loses is made again: the averages, and the embedding that they are made from."""
    run = evolve(Config.from_dict(smoothed))
    before = files(run)
    assert any(name.startswith("smoothed") for name in before)
    for lost in (["smoothed"], ["smoothed", "populations", "synthetic"]):
        for folder in lost:
            shutil.rmtree(run / folder)
        smoothed["resources"]["workers"] = 2
        assert files(evolve(Config.from_dict(smoothed))) == before


def test_without_noise_nothing_is_smoothed(
    ray_session: None, smoothed: dict[str, Any], tmp_path: Path
) -> None:
    smoothed["privacy"]["epsilon"] = float("inf")
    smoothed["schedule"] |= {"iterations": 1, "degrees": 0.5}
    run = evolve(Config.from_dict(smoothed))
    smoothed["selection"]["smooth"] = 1
    smoothed["output"]["path"] = str(tmp_path / "plain")
    assert files(run) == files(evolve(Config.from_dict(smoothed)))
