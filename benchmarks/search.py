"""Throughput of the exact search beside plain faiss.knn and the machine's float32 GEMM.

    python benchmarks/search.py [num] [neighbors]

Prints, for d = 64 and 512 and `num` queries x `num` samples (Gaussian, default 20000), the best of
three: GFLOP/s counted as 2 num^2 d / seconds, their fraction of GEMM's, and the time over that of
faiss.knn.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import faiss
import numpy as np

from pe_ray.private.search import no_neighbors, search_block


def best_seconds(work: Callable[..., object], *arguments: object) -> float:
    """Shortest of three runs, in seconds."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        work(*arguments)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def gemm_peak() -> float:
    """GFLOP/s of a square float32 matrix product."""
    side = 4096
    matrix = np.random.default_rng(0).standard_normal((side, side), dtype=np.float32)
    return 2 * side**3 / best_seconds(np.matmul, matrix, matrix) / 1e9


def main(num: int = 20_000, neighbors: int = 1) -> None:
    peak = gemm_peak()
    print(f"float32 GEMM: {peak:.0f} GFLOP/s; {faiss.omp_get_max_threads()} threads", flush=True)
    print("   d  metric         GFLOP/s  of GEMM  seconds  faiss.knn  ratio")
    rng = np.random.default_rng(1)
    for d in (64, 512):
        queries = rng.standard_normal((num, d), dtype=np.float32)
        samples = rng.standard_normal((num, d), dtype=np.float32)
        for metric, plain in (
            ("l2", faiss.METRIC_L2),
            ("inner_product", faiss.METRIC_INNER_PRODUCT),
            ("cosine", faiss.METRIC_INNER_PRODUCT),
        ):
            reference = best_seconds(faiss.knn, queries, samples, neighbors, plain)
            nothing = no_neighbors(num, neighbors)
            seconds = best_seconds(search_block, queries, samples, 0, nothing, metric)
            speed = 2 * num**2 * d / seconds / 1e9
            print(
                f"{d:4d}  {metric:13s}  {speed:7.0f}  {speed / peak:7.2f}  {seconds:7.3f}"
                f"  {reference:9.3f}  {seconds / reference:5.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
