"""Exactness of the search against an independent float64 brute force."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pe_ray import InputError
from pe_ray.private import bounds, gpu_scan, search, tile_scan
from pe_ray.private.bounds import Precision
from pe_ray.private.search import Nearest, Search
from pe_ray.values import DistanceMetric

METRICS: tuple[DistanceMetric, ...] = ("l2", "cosine", "inner_product")
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "faiss-gpu")


def nothing(n: int, k: int) -> Nearest:
    return Nearest(distances=np.full((n, k), np.inf), ids=np.full((n, k), -1, dtype=np.int64))


def all_distances(queries: NDArray, samples: NDArray, metric: DistanceMetric) -> NDArray:
    """Float64 distances [n, m] by broadcasting, one query at a time."""
    q, x = queries.astype(np.float64), samples.astype(np.float64)
    if metric == "l2":
        return np.stack([((x - row) ** 2).sum(axis=1) for row in q])
    dots = np.stack([(x * row).sum(axis=1) for row in q])
    norms = np.sqrt((q**2).sum(1))[:, None] * np.sqrt((x**2).sum(1))
    cosines = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
    return 1 - cosines if metric == "cosine" else -dots


def brute(queries: NDArray, samples: NDArray, k: int, metric: DistanceMetric) -> Nearest:
    """The first k of all by (distance, id)."""
    distances = all_distances(queries, samples, metric)
    ids = np.broadcast_to(np.arange(len(samples)), distances.shape)
    order = np.lexsort((ids, distances), axis=1)[:, :k]
    best = nothing(len(queries), k)
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
    precision: Precision = "float32",
) -> Nearest:
    results = []
    starts = list(range(0, len(samples), min(block, max(1, len(samples)))))
    for part in np.array_split(queries, partitions):
        search = Search(part, k, metric, precision)
        for start in reversed(starts) if backwards else starts:
            search.add(samples[start : start + block], start)
        results.append(search.nearest)
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
        for precision in PRECISIONS:
            found = blockwise(
                queries,
                samples,
                k,
                metric,
                block=block,
                partitions=partitions,
                backwards=backwards,
                precision=precision,
            )
            same(found, expected)


class FaissOnCpu:
    """faiss's GPU interface on a machine without one: the same call, computed on the CPU."""

    METRIC_L2 = faiss.METRIC_L2
    METRIC_INNER_PRODUCT = faiss.METRIC_INNER_PRODUCT
    StandardGpuResources = object

    @staticmethod
    def knn_gpu(
        _: object, queries: NDArray, rows: NDArray, k: int, metric: int
    ) -> tuple[NDArray, NDArray]:
        return faiss.knn(queries, rows, k, metric)


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """faiss on one CPU thread: threads that wait for each other make small searches slow."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    if faiss.get_num_gpus() == 0:
        monkeypatch.setattr(gpu_scan, "_faiss", lambda: FaissOnCpu)
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
@pytest.mark.parametrize("precision", PRECISIONS)
def test_nothing_to_search(metric: DistanceMetric, precision: Precision) -> None:
    empty = np.zeros((0, 4), dtype=np.float32)
    search = Search(gaussian(5, 4, 14), 3, metric, precision)
    same(search.nearest, nothing(5, 3))
    search.add(empty, 0)
    same(search.nearest, nothing(5, 3))
    for queries, k in ((empty, 3), (gaussian(5, 4, 14), 0)):
        none = Search(queries, k, metric, precision)
        none.add(gaussian(6, 4, 15), 0)
        same(none.nearest, nothing(len(queries), k))


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


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("offset", "outlier"), [(0, 1e4), (1000, 1), (0, 1)])
def test_hard_but_common_data_need_few_exact_distances(
    offset: float, outlier: float, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, queries = gaussian(3000, 16, 20) + offset, gaussian(200, 16, 21) + offset
    samples[17] *= outlier
    expected = brute(queries, samples, 1, "l2")
    counted = []
    plain = search.pair_distances

    def counting(*arguments: Any) -> NDArray:
        counted.append(len(arguments[2]))
        return plain(*arguments)

    monkeypatch.setattr(search, "pair_distances", counting)
    same(blockwise(queries, samples, 1, "l2", precision=precision), expected)
    assert sum(counted) < 12 * len(queries)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_data_that_no_scan_can_tell_apart(
    metric: DistanceMetric, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_scan, "_MOST", 6)  # then GpuScan gives up and proposes everything
    near = gaussian(1, 6, 22) + gaussian(300, 6, 23) * np.float32(1e-6)
    check_everywhere(gaussian(20, 6, 24), near, 3, metric)


def test_clusters_that_bfloat16_cant_tell_apart_go_on_in_float32() -> None:
    centres = gaussian(5, 32, 40)[np.random.default_rng(41).integers(0, 5, 3000)]
    samples = centres + gaussian(3000, 32, 42) * np.float32(1e-3)
    queries = gaussian(50, 32, 43)
    found = Search(queries, 2, "l2", "bfloat16")
    found.add(samples, 0)
    same(found.nearest, brute(queries, samples, 2, "l2"))
    assert found._scan._precision == "float32"  # type: ignore[attr-defined]


def test_a_gpu_that_rounds_to_tf32_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Coarse(FaissOnCpu):
        @staticmethod
        def knn_gpu(_: object, queries: NDArray, rows: NDArray, k: int, metric: int) -> Any:
            kept = np.uint32(0xFFFFE000)  # 10 bits of the significand
            q, x = ((v.view(np.uint32) & kept).view(np.float32) for v in (queries, rows))
            return faiss.knn(q, x, k, metric)

    monkeypatch.setattr(gpu_scan, "_faiss", lambda: Coarse)
    with pytest.raises(InputError, match="less than float32"):
        blockwise(gaussian(5, 4, 1), gaussian(6, 4, 2), 1, "l2", precision="faiss-gpu")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("k", [1, 3])
def test_pieces_and_batches_do_not_matter(
    metric: DistanceMetric, precision: Precision, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, samples = gaussian(150, 12, 25), gaussian(400, 12, 26)
    expected = brute(queries, samples, k, metric)
    monkeypatch.setattr(search, "_BLOCK_BYTES", 120 * 12 * 4)
    monkeypatch.setattr(search, "_QUERIES", 40)
    monkeypatch.setattr(search, "_PAIR_VALUES", 36)
    monkeypatch.setattr(tile_scan, "_TILE_ROWS", 50)
    monkeypatch.setattr(tile_scan, "_GROUP", 3)
    same(blockwise(queries, samples, k, metric, precision=precision), expected)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("d", [2, 33, 300])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 300.0])
def test_the_error_bound_holds(
    metric: DistanceMetric, precision: Precision, d: int, scale: float
) -> None:
    """At a limit equal to its own distance every row is still proposed, but not far beyond."""
    queries, samples = gaussian(60, d, 50), gaussian(500, d, 51) * np.float32(scale)
    exact = all_distances(queries, samples, metric)
    centre = np.zeros(d, dtype=np.float32)
    made = [bounds.prepared(vectors, centre, metric) for vectors in (queries, samples)]
    scan = tile_scan.TileScan(made[0], metric, precision)
    part = slice(0, 60)
    values = scan._scores(part, made[1], 1)._values
    values = values.float().numpy() if precision == "bfloat16" else values
    computed = values.reshape(60, -1)[:, :500].astype(np.float64)
    for row in range(500):
        lowered = scan._bounds.lowered(exact[:, row], part, made[1])
        assert (computed[:, row] >= lowered).all()
    tight = scan._bounds.lowered(exact.min(axis=1), part, made[1])
    assert ((computed >= tight[:, None]).mean(axis=1) < 0.2).all()


@pytest.mark.parametrize("metric", METRICS)
def test_a_pairs_distance_has_the_same_bits_anywhere(metric: DistanceMetric) -> None:
    queries, samples = gaussian(31, 257, 29), gaussian(1, 257, 30)
    together = blockwise(queries, samples, 1, metric).distances
    for i in range(len(queries)):
        unaligned = np.empty(257 * 4 + 1, dtype=np.uint8)[1:].view(np.float32)[None]
        unaligned[:] = queries[i]
        assert blockwise(unaligned, samples, 1, metric).distances[0, 0] == together[i, 0]


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
        for precision in PRECISIONS:
            found = blockwise(
                queries, samples, k, metric, block=block, backwards=backwards, precision=precision
            )
            same(found, brute(queries, samples, k, metric))
