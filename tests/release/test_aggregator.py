"""The aggregator sums, noises once, and survives."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import ray

from pe_ray.errors import BudgetError, FaultError, InputError
from pe_ray.private.sums import clip_and_sum
from pe_ray.private.votes import RawVotes
from pe_ray.release.aggregator import Aggregator, answer, create_aggregator
from pe_ray.release.ledger import Ledger
from pe_ray.values import LATTICE, Budget, Release


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
    with pytest.raises(InputError, match="another sensitivity"):
        Aggregator(path).release(votes(10.0), 4, [ray.put(raw([0], limit=2))])


def test_votes_outside_the_bins_are_refused_without_values(
    ray_session: None, tmp_path: Path
) -> None:
    path = ledger_at(tmp_path / "ledger.sqlite", 1.0)
    for ids in ([-77], [77]):
        with pytest.raises(InputError, match="outside the 4 bins") as caught:
            Aggregator(path).release(votes(10.0), 4, [ray.put(raw(ids))])
        assert "77" not in str(caught.value)


def sums(sigma: float) -> Release:
    return Release(key="sums", kind="sums", iteration=0, votes_per_unit=1, sigma=sigma)


def test_sums_add_up_and_carry_their_noise(ray_session: None, tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 4000)) / 100
    parts = [ray.put(clip_and_sum(rows)) for rows in (vectors[:20], vectors[20:])]
    exact = Aggregator(ledger_at(tmp_path / "open.sqlite", float("inf")))
    without = exact.release(sums(0.0), 4000, parts).sums
    clipped = vectors / np.maximum(1, np.linalg.norm(vectors, axis=1, keepdims=True))
    assert np.abs(without - (1 - 2**-10) * clipped.sum(axis=0)).max() < 51 / LATTICE
    path = ledger_at(tmp_path / "ledger.sqlite", 1.0)
    noisy = Aggregator(path).release(sums(10.0), 4000, parts)
    noise = noisy.sums - without
    assert abs(noise.mean()) < 1
    assert 9 < noise.std() < 11
    stored = Ledger.open(path).released("sums")
    assert stored is not None
    assert np.array_equal(stored.sums, noisy.sums)
    assert np.array_equal(Aggregator(path).release(sums(10.0), 4000, []).sums, noisy.sums)


def test_sums_of_another_size_or_kind_are_refused(ray_session: None, tmp_path: Path) -> None:
    aggregator = Aggregator(ledger_at(tmp_path / "ledger.sqlite", 1.0))
    part = ray.put(clip_and_sum(np.ones((3, 5))))
    with pytest.raises(InputError, match="sum"):
        aggregator.release(sums(10.0), 6, [part])
    with pytest.raises(InputError, match="1 to 1048576"):
        aggregator.release(sums(10.0), 2**20 + 1, [])


def test_a_stored_release_is_returned_without_the_votes(ray_session: None, tmp_path: Path) -> None:
    path = ledger_at(tmp_path / "ledger.sqlite", 1.0)
    first = Aggregator(path).release(votes(10.0), 4, [ray.put(raw([1]))])
    again = Aggregator(path).release(votes(10.0), 4, [])
    assert np.array_equal(first.noisy_votes, again.noisy_votes)
    with pytest.raises(BudgetError, match="other parameters"):
        Aggregator(path).release(votes(11.0), 4, [])
    with pytest.raises(InputError, match="4 values, not 5"):
        Aggregator(path).release(votes(10.0), 5, [])


def test_a_reservation_left_by_a_crash_is_used(ray_session: None, tmp_path: Path) -> None:
    path = ledger_at(tmp_path / "ledger.sqlite", 1.0)
    Ledger.open(path).reserve(votes(10.0))
    Aggregator(path).release(votes(10.0), 4, [ray.put(raw([1]))])
    assert [entry.state for entry in Ledger.open(path).entries()] == ["committed"]


@ray.remote
def _leak() -> RawVotes:
    raise ValueError("canary 31337 votes")


def test_a_failing_partial_is_not_quoted(ray_session: None, tmp_path: Path) -> None:
    actor = create_aggregator(ledger_at(tmp_path / "ledger.sqlite", 1.0))
    with pytest.raises(RuntimeError, match="votes/0001 failed") as caught:
        ray.get(actor.release.remote(votes(10.0), 4, [_leak.remote()]))
    assert "31337" not in f"{caught.value!r} {caught.value} {caught.value.__cause__!r}"


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


def test_a_frozen_aggregator_is_not_waited_for_without_end(
    ray_session: None, tmp_path: Path
) -> None:
    """Nor is one that waits for its partitions given up before they are made."""

    @ray.remote
    def count() -> RawVotes:
        time.sleep(4)
        return raw([1])

    actor = create_aggregator(ledger_at(tmp_path / "ledger.sqlite", 1.0))
    pid = ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))
    partials = [count.remote()]
    made = answer(actor.release.remote(votes(10.0), 4, partials), partials, 3.0)
    assert len(made.noisy_votes) == 4
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(FaultError, match="aggregator"):
            answer(actor.release.remote(votes(10.0), 4, partials), partials, 0.5)
    finally:
        os.kill(pid, signal.SIGCONT)
    partials = [count.options(num_cpus=99).remote()]  # never made
    refused = actor.release.remote(votes(11.0), 4, partials)
    with pytest.raises(BudgetError):
        answer(refused, partials, 60.0)
    ray.cancel(partials[0])
