"""Exactness of the search against an independent float64 brute force."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pe_ray import InputError
from pe_ray.components import nearest
from pe_ray.components.nearest import NearestSearch, nearest_others
from pe_ray.values import DistanceMetric

METRICS: tuple[DistanceMetric, ...] = ("l2", "cosine", "inner_product")


@dataclass(frozen=True, kw_only=True)
class Nearest:
    distances: NDArray[np.float64]
    ids: NDArray[np.int64]


def nothing(n: int, k: int) -> Nearest:
    return Nearest(distances=np.full((n, k), np.inf), ids=np.full((n, k), -1, dtype=np.int64))


def brute(queries: NDArray, samples: NDArray, k: int, metric: DistanceMetric) -> Nearest:
    """The first k of all by (distance, id), one query at a time in float64."""
    q, x = queries.astype(np.float64), samples.astype(np.float64)
    if metric == "l2":
        distances = np.stack([((x - row) ** 2).sum(axis=1) for row in q])
    else:
        distances = -np.stack([(x * row).sum(axis=1) for row in q])
    if metric == "cosine":
        norms = np.sqrt((q**2).sum(1))[:, None] * np.sqrt((x**2).sum(1))
        scaled = np.divide(distances, norms, out=np.zeros_like(distances), where=norms > 0)
        distances = 1 + scaled
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
    on_gpu: bool = False,
) -> Nearest:
    results = []
    starts = list(range(0, len(samples), min(block, max(1, len(samples)))))
    for part in np.array_split(queries, partitions):
        search = NearestSearch(part, k, metric, on_gpu=on_gpu)
        for start in reversed(starts) if backwards else starts:
            search.add(samples[start : start + block], start)
        results.append(search)
    return Nearest(
        distances=np.concatenate([result.distances for result in results]),
        ids=np.concatenate([result.ids for result in results]),
    )


def same(found: Nearest | NearestSearch, expected: Nearest) -> None:
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.distances, expected.distances)


def gaussian(n: int, d: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def check_everywhere(queries: NDArray, samples: NDArray, k: int, metric: DistanceMetric) -> None:
    expected = brute(queries, samples, k, metric)
    for partitions, block, backwards in [(1, 10**9, False), (2, 97, True), (4, 30, False)]:
        for on_gpu in (False, True):
            found = blockwise(
                queries,
                samples,
                k,
                metric,
                block=block,
                partitions=partitions,
                backwards=backwards,
                on_gpu=on_gpu,
            )
            same(found, expected)


def pretend_gpu(
    monkeypatch: pytest.MonkeyPatch, rounded: Callable[[NDArray], NDArray]
) -> list[int]:
    """faiss's GPU indexes on a machine without a GPU: those of the CPU, with `rounded` vectors.

    Returns the numbers of rows that were copied to it.
    """
    copied = []

    def index(kind: Any) -> Any:
        class Rounding(kind):
            def __init__(self, _: object, dim: int) -> None:
                super().__init__(dim)

            def add(self, rows: NDArray) -> None:
                copied.append(len(rows))
                super().add(rounded(rows))

            def search(self, queries: NDArray, k: int) -> Any:
                assert k <= 2048, "as faiss refuses on a GPU"
                return super().search(rounded(queries), k)

        return Rounding

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "GpuIndexFlatL2", index(faiss.IndexFlatL2), raising=False)
    monkeypatch.setattr(faiss, "GpuIndexFlatIP", index(faiss.IndexFlatIP), raising=False)
    return copied


@pytest.fixture(autouse=True)
def _faiss_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Threads that wait for each other make small searches slow."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    if faiss.get_num_gpus() == 0:
        pretend_gpu(monkeypatch, lambda values: values)
    yield
    faiss.omp_set_num_threads(before)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 3, 12, 20])
@pytest.mark.parametrize("d", [1, 3, 64, 257])
def test_equals_brute_force(metric: DistanceMetric, k: int, d: int) -> None:
    check_everywhere(gaussian(120, d, 1), gaussian(300, d, 2), k, metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 12])
@pytest.mark.parametrize("threads", [1, 2])
def test_equals_brute_force_where_faiss_multiplies_matrices(
    metric: DistanceMetric, k: int, threads: int
) -> None:
    """Small searches take another path through faiss."""
    queries, samples = gaussian(600, 40, 31), gaussian(3000, 40, 32)
    samples[1500:] = samples[:1500]
    faiss.omp_set_num_threads(threads)
    expected = brute(queries, samples, k, metric)
    for block in (3000, 1000):
        same(blockwise(queries, samples, k, metric, block=block), expected)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 3, 12, 20])
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
@pytest.mark.parametrize("k", [1, 12])
def test_ties_on_a_lattice(metric: DistanceMetric, k: int) -> None:
    rng = np.random.default_rng(33)
    queries, samples = (rng.integers(-1, 2, (n, 8)).astype(np.float32) for n in (60, 1500))
    check_everywhere(queries, samples, k, metric)


@pytest.mark.parametrize("metric", METRICS)
def test_fewer_samples_than_neighbors(metric: DistanceMetric) -> None:
    samples = np.concatenate([gaussian(4, 5, 11), gaussian(1, 5, 12).repeat(3, axis=0)])
    queries = gaussian(9, 5, 13)
    for block in (1, 2, 7):
        found = blockwise(queries, samples, 20, metric, block=block)
        same(found, brute(queries, samples, 20, metric))
        assert (found.ids[:, 7:] == -1).all()
        assert np.isinf(found.distances[:, 7:]).all()


def test_more_neighbors_than_a_gpu_proposes() -> None:
    queries, samples = gaussian(3, 5, 34), gaussian(2500, 5, 35)
    for on_gpu in (False, True):
        found = blockwise(queries, samples, 2100, "l2", on_gpu=on_gpu)
        same(found, brute(queries, samples, 2100, "l2"))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("on_gpu", [False, True])
def test_nothing_to_search(metric: DistanceMetric, on_gpu: bool) -> None:
    empty = np.zeros((0, 4), dtype=np.float32)
    search = NearestSearch(gaussian(5, 4, 14), 3, metric, on_gpu=on_gpu)
    same(search, nothing(5, 3))
    search.add(empty, 0)
    same(search, nothing(5, 3))
    for queries, k in ((empty, 3), (gaussian(5, 4, 14), 0)):
        none = NearestSearch(queries, k, metric, on_gpu=on_gpu)
        none.add(gaussian(6, 4, 15), 0)
        same(none, nothing(len(queries), k))


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


@pytest.mark.parametrize(("offset", "outlier"), [(0, 1e4), (1000, 1), (0, 1)])
def test_hard_but_common_data_are_proven_by_the_first_proposals(
    offset: float, outlier: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, queries = gaussian(3000, 16, 20) + offset, gaussian(200, 16, 21) + offset
    samples[17] *= outlier
    searched, plain = [], faiss.knn

    def counting(queries: NDArray, rows: NDArray, *arguments: Any, **more: Any) -> Any:
        if len(rows) > 1:
            searched.append(len(queries))
        return plain(queries, rows, *arguments, **more)

    monkeypatch.setattr(faiss, "knn", counting)
    same(blockwise(queries, samples, 1, "l2"), brute(queries, samples, 1, "l2"))
    assert 200 <= sum(searched) < 220


@pytest.mark.parametrize("metric", METRICS)
def test_data_that_float32_cant_tell_apart(metric: DistanceMetric) -> None:
    near = gaussian(1, 6, 22) + gaussian(300, 6, 23) * np.float32(1e-6)
    check_everywhere(gaussian(20, 6, 24), near, 3, metric)
    more = gaussian(1, 6, 22) + gaussian(4000, 6, 36) * np.float32(1e-6)  # than faiss proposes
    same(blockwise(near[:5], more, 3, metric), brute(near[:5], more, 3, metric))


def test_a_gpu_that_rounds_to_tf32_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def coarse(values: NDArray) -> NDArray:
        return (values.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)  # 10 bits

    pretend_gpu(monkeypatch, coarse)
    with pytest.raises(InputError, match=r"^resources\.gpus_per_worker: "):
        blockwise(gaussian(5, 4, 1), gaussian(6, 4, 2), 1, "l2", on_gpu=True)


@pytest.mark.parametrize("metric", METRICS)
def test_a_block_is_copied_to_a_gpu_once(
    metric: DistanceMetric, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, samples = gaussian(150, 12, 25), gaussian(400, 12, 26)
    monkeypatch.setattr(nearest, "_QUERIES", 40)
    monkeypatch.setattr(nearest, "_QUERY_VALUES", 1)
    copied = pretend_gpu(monkeypatch, lambda values: values)
    found = blockwise(queries, samples, 3, metric, on_gpu=True)
    same(found, brute(queries, samples, 3, metric))
    assert copied == [1, 400]  # one that tries the GPU's products, and the block


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("k", [1, 3])
def test_pieces_and_batches_do_not_matter(
    metric: DistanceMetric, on_gpu: bool, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, samples = gaussian(150, 12, 25), gaussian(400, 12, 26)
    expected = brute(queries, samples, k, metric)
    monkeypatch.setattr(nearest, "_BLOCK_BYTES", 120 * 12 * 4)
    monkeypatch.setattr(nearest, "_QUERIES", 40)
    monkeypatch.setattr(nearest, "_QUERY_VALUES", 1)
    monkeypatch.setattr(nearest, "_PAIRS", 70)
    monkeypatch.setattr(nearest, "_PAIR_VALUES", 36)
    same(blockwise(queries, samples, k, metric, on_gpu=on_gpu), expected)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("d", [2, 33, 300])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 300.0])
def test_any_error_within_the_bound_is_harmless(
    metric: DistanceMetric, d: int, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """faiss's values moved by half of what the bound allows, near ties to the wrong side."""
    queries, samples = gaussian(60, d, 50), gaussian(500, d, 51) * np.float32(scale)
    samples[250:] = samples[:250] + gaussian(250, d, 52) * np.float32(scale * 1e-7)
    expected = brute(queries, samples, 2, metric)

    def worst(queries: NDArray, rows: NDArray, k: int, metric: int) -> tuple[NDArray, NDArray]:
        q, x = queries.astype(np.float64), rows.astype(np.float64)
        norms = [np.sqrt((v**2).sum(axis=1)) for v in (q, x)]
        by_l2 = metric == faiss.METRIC_L2
        if by_l2:
            values = np.stack([((x - row) ** 2).sum(axis=1) for row in q])
            size = (norms[0][:, None] + norms[1]) ** 2
        else:
            values, size = -(q @ x.T), norms[0][:, None] * norms[1]
        signs = np.random.default_rng(53).choice([-1.0, 1.0], values.shape)
        values = (values + signs * size * d * 2.0**-25).astype(np.float32)
        best = np.argsort(values, axis=1)[:, :k]
        found = np.take_along_axis(values, best, axis=1)
        return (found if by_l2 else -found), best

    monkeypatch.setattr(faiss, "knn", worst)
    same(blockwise(queries, samples, 2, metric), expected)


@pytest.mark.parametrize("metric", METRICS)
def test_a_pairs_distance_has_the_same_bits_anywhere(metric: DistanceMetric) -> None:
    queries, samples = gaussian(31, 257, 29), gaussian(1, 257, 30)
    together = blockwise(queries, samples, 1, metric).distances
    for i in range(len(queries)):
        unaligned = np.empty(257 * 4 + 1, dtype=np.uint8)[1:].view(np.float32)[None]
        unaligned[:] = queries[i]
        assert blockwise(unaligned, samples, 1, metric).distances[0, 0] == together[i, 0]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 3, 40])
def test_the_nearest_others(
    metric: DistanceMetric, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = gaussian(90, 6, 60) + np.float32(1000)
    vectors[5:40] = vectors[5]
    vectors[45:] = np.random.default_rng(61).integers(0, 3, (45, 6))
    monkeypatch.setattr(nearest, "_QUERIES", 5)
    ranked = brute(vectors, vectors, 90, metric).ids
    expected = [[other for other in row if other != i][:k] for i, row in enumerate(ranked)]
    found = [ids for _, ids in nearest_others(vectors, k, metric)]
    assert len(found) > 1
    assert np.concatenate(found).tolist() == expected


@settings(max_examples=60)
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
        for on_gpu in (False, True):
            found = blockwise(
                queries, samples, k, metric, block=block, backwards=backwards, on_gpu=on_gpu
            )
            same(found, brute(queries, samples, k, metric))
