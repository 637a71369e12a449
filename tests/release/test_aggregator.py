"""The aggregator sums, noises once, and survives."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import ray

from pe_ray.private.votes import RawVotes
from pe_ray.release.aggregator import Aggregator, create_aggregator
from pe_ray.release.ledger import Ledger
from pe_ray.values import Budget, Release


def votes(sigma: float) -> Release:
    return Release(key="votes/0001", kind="votes", iteration=1, votes_per_unit=1, sigma=sigma)


def raw(ids: list[int], limit: int = 1) -> RawVotes:
    return RawVotes(
        ids=np.array(ids, dtype=np.int64),
        counts=np.ones(len(ids), dtype=np.int64),
        votes_per_unit=limit,
    )


def ledger_at(path: Path, epsilon: float) -> Path:
    Ledger.create(path, Budget(epsilon=epsilon, delta=1e-5, unit="record"), "print")
    return path


def test_partials_add_up(ray_session: None, tmp_path: Path) -> None:
    path = ledger_at(tmp_path / "ledger.sqlite", float("inf"))
    partials = [ray.put(raw([0, 2, 2])), ray.put(raw([2])), ray.put(raw([]))]
    histogram = Aggregator(path).release(votes(0.0), 4, partials)
    assert histogram.noisy_votes.tolist() == [1, 0, 3, 0]


def test_undeclared_sensitivity_is_refused_without_values(
    ray_session: None, tmp_path: Path
) -> None:
    path = ledger_at(tmp_path / "ledger.sqlite", 1.0)
    with pytest.raises(RuntimeError, match="AssertionError"):
        Aggregator(path).release(votes(10.0), 4, [ray.put(raw([0], limit=2))])


def test_a_killed_aggregator_returns_the_stored_release(ray_session: None, tmp_path: Path) -> None:
    path = ledger_at(tmp_path / "ledger.sqlite", 1.0)
    actor = create_aggregator(path)
    partials = [ray.put(raw([1, 1, 3]))]
    first = ray.get(actor.release.remote(votes(10.0), 1000, partials))
    pid = ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))
    os.kill(pid, signal.SIGKILL)
    second = ray.get(actor.release.remote(votes(10.0), 1000, partials))
    assert np.array_equal(first.noisy_votes, second.noisy_votes)
    assert len(Ledger.open(path).entries()) == 1
