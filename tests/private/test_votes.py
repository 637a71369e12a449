"""Votes equal brute force, whatever the sharding; one unit moves them by what is declared."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pe_ray.config.blocks import VotesConfig
from pe_ray.private import votes
from pe_ray.private.record_embeddings import EmbeddedRecords
from pe_ray.private.votes import _count_partitions, bounded_votes, nearest_samples
from pe_ray.values import DistanceMetric, LabelLayout

LAYOUT = LabelLayout(counts=(25, 0, 15, 2))


def write_parts(
    folder: Path, samples: NDArray[np.float32], rows: int
) -> list[tuple[Path, int, int]]:
    parts = []
    for start in range(0, len(samples), rows):
        stop = min(start + rows, len(samples))
        np.save(folder / f"{rows}-{start}.npy", samples[start:stop])
        parts.append((folder / f"{rows}-{start}.npy", start, stop))
    return parts


def brute_force(
    features: NDArray[np.float32],
    labels: NDArray[np.int32],
    samples: NDArray[np.float32],
    metric: DistanceMetric,
    neighbors: int,
) -> NDArray[np.int64]:
    """One record at a time, in float64; ties to the lowest id."""
    counts = np.zeros(len(samples), dtype=np.int64)
    wide = samples.astype(np.float64)
    for query, label in zip(features.astype(np.float64), labels, strict=True):
        low, high = LAYOUT.label_range(int(label))
        block = wide[low:high]
        if metric == "l2":
            distances = ((block - query) ** 2).sum(axis=1)
        elif metric == "inner_product":
            distances = -(block * query).sum(axis=1)
        else:
            norms = np.sqrt((block**2).sum(axis=1)) * np.sqrt((query**2).sum())
            distances = 1 - (block * query).sum(axis=1) / norms
        counts[low + np.argsort(distances, kind="stable")[:neighbors]] += 1
    return counts


@pytest.mark.parametrize("neighbors", [1, 3])
def test_across_labels_all_vote_among_all(tmp_path: Path, neighbors: int) -> None:
    rng = np.random.default_rng(7)
    samples = rng.normal(size=(42, 9)).astype(np.float32)
    features = rng.normal(size=(60, 9)).astype(np.float32)
    labels = rng.choice([0, 1, 3], size=60).astype(np.int32)
    parts = write_parts(tmp_path, samples, 7)
    across = VotesConfig(neighbors=neighbors, across_labels=True)
    piece = EmbeddedRecords(features=features, labels=labels, users=None)
    found = nearest_samples([piece], parts, LAYOUT, across)
    alike = EmbeddedRecords(features=features, labels=np.zeros(60, np.int32), users=None)
    one = LabelLayout(counts=(42,))
    assert np.array_equal(
        found, nearest_samples([alike], parts, one, VotesConfig(neighbors=neighbors))
    )
    apart = np.square(features[:, None].astype(np.float64) - samples).sum(axis=2)
    assert np.array_equal(found, np.argsort(apart, axis=1, kind="stable")[:, :neighbors])


@pytest.mark.parametrize("metric", ["l2", "cosine", "inner_product"])
@pytest.mark.parametrize("neighbors", [1, 3, 20])
def test_votes_equal_brute_force_for_any_sharding(
    tmp_path: Path, metric: DistanceMetric, neighbors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(7)
    samples = rng.normal(size=(42, 9)).astype(np.float32)
    samples[5:15] = samples[3]  # many exact duplicates
    samples[30:38] = samples[28]
    features = np.concatenate([rng.normal(size=(60, 9)), samples[:20]]).astype(np.float32)
    labels = rng.choice([0, 2, 3], size=80).astype(np.int32)
    expected = brute_force(features, labels, samples, metric, neighbors)
    settings = VotesConfig(metric=metric, neighbors=neighbors)
    for rows in (1, 7, 42):
        parts = write_parts(tmp_path, samples, rows)
        for shards, at_once in ((1, 1000), (1, 7), (2, 1), (4, 5)):
            monkeypatch.setattr(votes, "_QUERY_BYTES", at_once * 9 * 4)
            total = np.zeros(42, dtype=np.int64)
            for shard in range(shards):
                pieces = [
                    EmbeddedRecords(features=features[at], labels=labels[at], users=None)
                    for at in np.array_split(np.arange(shard, 80, shards), 2)
                ]
                found = _count_partitions(parts, LAYOUT, settings, neighbors, False, 60.0, *pieces)
                np.add.at(total, found.ids, found.counts)
            assert np.array_equal(total, expected)


def dense(
    choices: Sequence[Sequence[int]], users: Sequence[int] | None, limit: int
) -> NDArray[np.int64]:
    array = np.array(choices, dtype=np.int64).reshape(len(choices), -1)
    names = None if users is None else np.array([f"{user:032x}" for user in users], dtype="S32")
    found = bounded_votes(array, names, limit)
    total = np.zeros(10, dtype=np.int64)
    total[found.ids] = found.counts
    return total


record = st.lists(st.integers(0, 9), min_size=3, max_size=3, unique=True)


@hypothesis_settings(max_examples=200)
@given(st.lists(record, min_size=2, max_size=12), st.integers(0, 11))
def test_one_record_moves_the_votes_by_at_most_the_sensitivity(
    records: list[list[int]], position: int
) -> None:
    position %= len(records)
    without = records[:position] + records[position + 1 :]
    moved = dense(records, None, 3) - dense(without, None, 3)
    assert np.linalg.norm(moved) <= np.sqrt(3) + 1e-12


@hypothesis_settings(max_examples=300)
@given(
    st.lists(st.tuples(record, st.integers(0, 3)), min_size=2, max_size=20),
    st.integers(0, 3),
    st.integers(1, 4),
)
def test_one_user_with_all_records_moves_the_votes_by_at_most_the_sensitivity(
    records: list[tuple[list[int], int]], user: int, limit: int
) -> None:
    rest = [(choice, owner) for choice, owner in records if owner != user]
    with_user = dense([c for c, _ in records], [o for _, o in records], limit)
    without = dense([c for c, _ in rest], [o for _, o in rest], limit) if rest else 0
    moved = with_user - without
    assert np.linalg.norm(moved) <= np.sqrt(limit) + 1e-12
    assert (moved >= 0).all()


SAMPLES = np.random.default_rng(4).normal(size=(42, 3)).astype(np.float32)
SAMPLES[5:15] = SAMPLES[3]
point = st.tuples(st.sampled_from([0, 2, 3]), st.integers(0, 200), st.integers(0, 4))
"""(label, which feature vector, user)"""


@pytest.fixture(scope="module")
def sample_parts(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, int, int]]:
    return write_parts(tmp_path_factory.mktemp("samples"), SAMPLES, 11)


def all_votes(
    points: Sequence[tuple[int, int, int]],
    parts: list[tuple[Path, int, int]],
    settings: VotesConfig,
    limit: int,
    by_user: bool,
) -> NDArray[np.int64]:
    """Votes of `points` through search and bound, in two partitions (of users, if by user)."""
    vectors = np.random.default_rng(5).normal(size=(201, 3)).astype(np.float32)
    total = np.zeros(42, dtype=np.int64)
    for partition in range(2):
        if by_user:
            here = [point for point in points if point[2] % 2 == partition]
        else:
            here = [point for number, point in enumerate(points) if number % 2 == partition]
        names = np.array([f"{user:032x}" for _, _, user in here], dtype="S32")
        piece = EmbeddedRecords(
            features=vectors[[vector for _, vector, _ in here]],
            labels=np.array([label for label, _, _ in here], dtype=np.int32),
            users=names if by_user else None,
        )
        found = _count_partitions(parts, LAYOUT, settings, limit, False, 60.0, piece)
        assert found.votes_per_unit == limit
        np.add.at(total, found.ids, found.counts)
    return total


@hypothesis_settings(max_examples=60)
@given(
    st.lists(point, min_size=1, max_size=15),
    st.sampled_from([1, 4, 30]),
    st.sampled_from([1, 3]),
    st.sampled_from(["l2", "cosine"]),
)
def test_one_unit_in_or_out_moves_the_search_and_count_by_at_most_the_sensitivity(
    sample_parts: list[tuple[Path, int, int]],
    points: list[tuple[int, int, int]],
    neighbors: int,
    most: int,
    metric: DistanceMetric,
) -> None:
    """Also where k exceeds a label's population: label 3 has 2 samples."""
    settings = VotesConfig(metric=metric, neighbors=neighbors, max_votes_per_user=most)
    with_record = all_votes(points, sample_parts, settings, neighbors, False)
    moved = with_record - all_votes(points[1:], sample_parts, settings, neighbors, False)
    expected = min(neighbors, LAYOUT.counts[points[0][0]])
    assert moved.sum() == expected
    assert np.linalg.norm(moved) == pytest.approx(np.sqrt(expected))
    gone = [point for point in points if point[2] != points[0][2]]
    with_user = all_votes(points, sample_parts, settings, most, True)
    moved = with_user - all_votes(gone, sample_parts, settings, most, True)
    assert np.linalg.norm(moved) <= np.sqrt(most) + 1e-12
    assert moved.max() == 1
    assert moved.min() == 0


def test_a_users_votes_are_bounded_across_labels(tmp_path: Path) -> None:
    samples = np.eye(42, dtype=np.float32)
    parts = write_parts(tmp_path, samples, 42)
    piece = EmbeddedRecords(
        features=samples[[0, 1, 26, 27, 40, 41]],
        labels=np.array([0, 0, 2, 2, 3, 3], dtype=np.int32),
        users=np.array([b"0" * 32] * 6, dtype="S32"),
    )
    found = _count_partitions(parts, LAYOUT, VotesConfig(), 2, False, 60.0, piece)
    assert found.ids.tolist() == [0, 1]
    assert found.counts.tolist() == [1, 1]
    assert found.votes_per_unit == 2


def test_labels_without_samples_cast_no_vote(tmp_path: Path) -> None:
    parts = write_parts(tmp_path, np.eye(42, dtype=np.float32), 42)
    piece = EmbeddedRecords(
        features=np.eye(42, dtype=np.float32)[:3], labels=np.ones(3, dtype=np.int32), users=None
    )
    settings = VotesConfig(neighbors=2)
    assert _count_partitions(parts, LAYOUT, settings, 2, False, 60.0, piece).ids.size == 0


def test_a_search_holds_a_few_records_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    parts = write_parts(tmp_path, rng.normal(size=(25, 64)).astype(np.float32), 25)
    monkeypatch.setattr(votes, "_QUERY_BYTES", 1000 * 64 * 4)

    def peak(records: int) -> int:
        features = rng.normal(size=(records, 64)).astype(np.float32)
        labels = np.zeros(records, dtype=np.int32)
        piece = EmbeddedRecords(features=features, labels=labels, users=None)
        tracemalloc.start()
        nearest_samples([piece], parts, LAYOUT, VotesConfig())
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    more = peak(30_000) - peak(5_000)
    assert more < 25_000 * 64  # bytes: a quarter of the embeddings' own, for numbers per record
