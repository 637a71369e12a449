"""Exactness of the search against an independent float64 brute force."""

from __future__ import annotations

from collections.abc import Iterator

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pe_ray.private import search
from pe_ray.private.search import Nearest, no_neighbors, search_block
from pe_ray.values import DistanceMetric

METRICS: tuple[DistanceMetric, ...] = ("l2", "cosine", "inner_product")


def brute(queries: NDArray, samples: NDArray, k: int, metric: DistanceMetric) -> Nearest:
    """All distances by broadcasting, one query at a time; first k by (distance, id)."""
    q, x = queries.astype(np.float64), samples.astype(np.float64)
    if metric == "l2":
        distances = np.stack([((x - row) ** 2).sum(axis=1) for row in q])
    else:
        dots = np.stack([(x * row).sum(axis=1) for row in q])
        norms = np.sqrt((q**2).sum(1))[:, None] * np.sqrt((x**2).sum(1))
        cosines = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
        distances = 1 - cosines if metric == "cosine" else -dots
    ids = np.broadcast_to(np.arange(len(x)), distances.shape)
    order = np.lexsort((ids, distances), axis=1)[:, :k]
    best = no_neighbors(len(q), k)
    best.ids[:, : order.shape[1]] = order
    best.distances[:, : order.shape[1]] = np.take_along_axis(distances, order, axis=1)
    return best


def blockwise(
    queries: NDArray,
    samples: NDArray,
    k: int,
    metric: DistanceMetric,
    *,
    block: int = 10**9,
    partitions: int = 1,
    backwards: bool = False,
) -> Nearest:
    results = []
    starts = list(range(0, len(samples), min(block, max(1, len(samples)))))
    for part in np.array_split(queries, partitions):
        best = no_neighbors(len(part), k)
        for start in reversed(starts) if backwards else starts:
            best = search_block(part, samples[start : start + block], start, best, metric)
        results.append(best)
    return Nearest(
        distances=np.concatenate([result.distances for result in results]),
        ids=np.concatenate([result.ids for result in results]),
    )


def same(found: Nearest, expected: Nearest) -> None:
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.distances, expected.distances)


def gaussian(n: int, d: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def check_everywhere(queries: NDArray, samples: NDArray, k: int, metric: DistanceMetric) -> None:
    expected = brute(queries, samples, k, metric)
    for partitions, block, backwards in [(1, 10**9, False), (2, 97, True), (4, 30, False)]:
        found = blockwise(
            queries,
            samples,
            k,
            metric,
            block=block,
            partitions=partitions,
            backwards=backwards,
        )
        same(found, expected)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other make small searches slow on a busy machine."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 3, 20])
@pytest.mark.parametrize("d", [1, 3, 64, 257])
def test_equals_brute_force(metric: DistanceMetric, k: int, d: int) -> None:
    check_everywhere(gaussian(120, d, 1), gaussian(300, d, 2), k, metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 3, 20])
def test_exact_duplicates_go_to_the_lowest_id(metric: DistanceMetric, k: int) -> None:
    rng = np.random.default_rng(3)
    samples = gaussian(7, 16, 4)[rng.integers(0, 7, 600)]  # about 86 copies of each
    check_everywhere(gaussian(60, 16, 5), samples, k, metric)
    same(
        blockwise(samples[:50], samples[:1].repeat(400, axis=0), k, metric),
        brute(samples[:50], samples[:1].repeat(400, axis=0), k, metric),
    )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("offset", [0.0, 1.0, 1000.0])
def test_near_ties_one_ulp_apart(metric: DistanceMetric, offset: float) -> None:
    rng = np.random.default_rng(6)
    samples = np.repeat(gaussian(4, 24, 7) + np.float32(offset), 150, axis=0)
    columns = rng.integers(0, 24, len(samples))
    rows = np.arange(len(samples))
    away = np.where(rng.random(len(samples)) < 0.5, np.inf, -np.inf).astype(np.float32)
    samples[rows, columns] = np.nextafter(samples[rows, columns], away)
    for k in (1, 3):
        check_everywhere(gaussian(40, 24, 8) + np.float32(offset), samples, k, metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 20])
def test_offset_data(metric: DistanceMetric, k: int) -> None:
    check_everywhere(gaussian(100, 64, 9) + 1000, gaussian(300, 64, 10) + 1000, k, metric)


@pytest.mark.parametrize("metric", METRICS)
def test_fewer_samples_than_neighbors(metric: DistanceMetric) -> None:
    samples = np.concatenate([gaussian(4, 5, 11), gaussian(1, 5, 12).repeat(3, axis=0)])
    queries = gaussian(9, 5, 13)
    for block in (1, 2, 7):
        found = blockwise(queries, samples, 20, metric, block=block)
        same(found, brute(queries, samples, 20, metric))
        assert (found.ids[:, 7:] == -1).all()
        assert np.isinf(found.distances[:, 7:]).all()


@pytest.mark.parametrize("metric", METRICS)
def test_nothing_to_search(metric: DistanceMetric) -> None:
    empty = np.zeros((0, 4), dtype=np.float32)
    before = blockwise(gaussian(5, 4, 14), gaussian(6, 4, 15), 3, metric)
    same(search_block(gaussian(5, 4, 14), empty, 6, before, metric), before)
    none = search_block(empty, gaussian(6, 4, 15), 0, no_neighbors(0, 3), metric)
    assert none.ids.shape == (0, 3)
    assert search_block(empty, empty, 0, no_neighbors(0, 0), metric).ids.shape == (0, 0)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e-20, 1e18, 1e30, 1e38])
def test_scales_float32_arithmetic_cant_hold(metric: DistanceMetric, scale: float) -> None:
    queries = (gaussian(20, 8, 16).astype(np.float64) * (scale / 4)).astype(np.float32)
    samples = (gaussian(60, 8, 17).astype(np.float64) * (scale / 4)).astype(np.float32)
    check_everywhere(queries, samples, 3, metric)


@pytest.mark.parametrize("metric", METRICS)
def test_zero_vectors_and_outliers(metric: DistanceMetric) -> None:
    queries, samples = gaussian(40, 8, 18), gaussian(200, 8, 19)
    queries[::7] = 0
    samples[::5] = 0
    samples[3] *= 1e6
    samples[8] = -0.0
    check_everywhere(queries, samples, 3, metric)


@pytest.mark.parametrize(("offset", "outlier"), [(0, 1e4), (1000, 1)])
def test_hard_but_common_data_needs_no_brute_force(
    offset: float, outlier: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, queries = gaussian(3000, 16, 20) + offset, gaussian(200, 16, 21) + offset
    samples[17] *= outlier
    expected = brute(queries, samples, 1, "l2")
    monkeypatch.setattr(search, "_MOST_CANDIDATES", 16)
    monkeypatch.delattr(search._BlockSide, "_search_all")
    same(blockwise(queries, samples, 1, "l2"), expected)


@pytest.mark.parametrize("metric", METRICS)
def test_last_resort_is_exact(metric: DistanceMetric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_MOST_CANDIDATES", 2)
    near = gaussian(1, 6, 22) + gaussian(300, 6, 23) * np.float32(1e-6)
    check_everywhere(gaussian(20, 6, 24), near, 3, metric)


@pytest.mark.parametrize("metric", METRICS)
def test_pieces_and_batches_do_not_matter(
    metric: DistanceMetric, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, samples = gaussian(150, 12, 25), gaussian(400, 12, 26)
    expected = blockwise(queries, samples, 3, metric)
    monkeypatch.setattr(search, "_PIECE_BYTES", 2000)
    monkeypatch.setattr(search, "_PAIR_VALUES", 36)
    same(blockwise(queries, samples, 3, metric), expected)


@pytest.mark.parametrize("metric", METRICS)
def test_threads_do_not_matter(metric: DistanceMetric) -> None:
    queries, samples = gaussian(3000, 64, 27) + 10, gaussian(2500, 64, 28) + 10
    results = []
    for count in (1, 2):
        faiss.omp_set_num_threads(count)
        results.append(blockwise(queries, samples, 3, metric))
        assert faiss.omp_get_max_threads() == count
    same(results[0], results[1])


@pytest.mark.parametrize("metric", METRICS)
def test_a_pairs_distance_has_the_same_bits_anywhere(metric: DistanceMetric) -> None:
    queries, samples = gaussian(31, 257, 29), gaussian(1, 257, 30)
    together = blockwise(queries, samples, 1, metric).distances
    for i in range(len(queries)):
        unaligned = np.empty(257 * 4 + 1, dtype=np.uint8)[1:].view(np.float32)[None]
        unaligned[:] = queries[i]
        alone = search_block(unaligned, samples, 0, no_neighbors(1, 1), metric)
        assert alone.distances[0, 0] == together[i, 0]


def test_the_state_given_is_not_changed() -> None:
    before = no_neighbors(5, 2)
    search_block(gaussian(5, 4, 31), gaussian(6, 4, 32), 0, before, "l2")
    same(before, no_neighbors(5, 2))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_small_integer_vectors(data: st.DataObject) -> None:
    d = data.draw(st.integers(1, 3))
    k = data.draw(st.integers(1, 6))
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    queries = rng.integers(-2, 3, (data.draw(st.integers(1, 12)), d)).astype(np.float32)
    samples = rng.integers(-2, 3, (data.draw(st.integers(1, 60)), d)).astype(np.float32)
    block = data.draw(st.integers(1, 60))
    backwards = data.draw(st.booleans())
    for metric in METRICS:
        found = blockwise(queries, samples, k, metric, block=block, backwards=backwards)
        same(found, brute(queries, samples, k, metric))
