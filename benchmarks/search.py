"""Throughput of the exact search beside the machine's float32 GEMM and plain faiss.knn.

    python -m benchmarks.search [num] [neighbors]

Searches `num` samples (default 20000) for as many queries, Gaussian: distances as hard to tell
apart as they come. One search thread per core, as vote tasks run; faiss.knn, which settles no
near-ties, with its own threads. Best of three: GFLOP/s counted as 2 num^2 d / seconds, their
fraction of GEMM's on the same cores in the same process, and the time over that of faiss.knn.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pe_ray.private.bounds import Precision
from pe_ray.private.search import Search
from pe_ray.private.tile_scan import fastest_precision
from pe_ray.values import DistanceMetric

CORES = len(os.sched_getaffinity(0))


def best_seconds(work: Callable[[int], object], threads: int = CORES) -> float:
    """Shortest of three runs of work(0), ..., work(threads - 1), at once; seconds."""
    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(3):
            start = time.perf_counter()
            list(pool.map(work, range(threads)))
            seconds.append(time.perf_counter() - start)
    return min(seconds)


def gemm_peak() -> float:
    """GFLOP/s of square float32 matrix products, one per core."""
    side = 3072
    matrix = np.random.default_rng(0).standard_normal((side, side), dtype=np.float32)
    return CORES * 2 * side**3 / best_seconds(lambda _: matrix @ matrix) / 1e9


def compare(
    queries: NDArray[np.float32],
    samples: NDArray[np.float32],
    neighbors: int,
    metric: DistanceMetric,
    precisions: list[Precision],
    peak: float,
) -> None:
    """Print a row of the table for each precision."""
    shares = np.array_split(queries, CORES)
    kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    with threadpool_limits(CORES):
        faiss.omp_set_num_threads(CORES)
        reference = best_seconds(lambda _: faiss.knn(queries, samples, neighbors, kind), 1)
    for precision in precisions:

        def work(i: int, precision: Precision = precision) -> None:
            Search(shares[i], neighbors, metric, precision).add(samples, 0)

        seconds = best_seconds(work)
        speed = 2 * len(queries) * samples.size / seconds / 1e9
        print(
            f"{samples.shape[1]:4d}  {metric:13s}  {precision:9s}  {speed:7.0f}"
            f"  {speed / peak:7.2f}  {seconds:7.3f}  {reference:9.3f}  {seconds / reference:5.2f}",
            flush=True,
        )


def main(num: int = 20_000, neighbors: int = 1) -> None:
    torch.set_num_threads(1)  # as in a Ray task of one CPU: the cores work side by side
    with threadpool_limits(1):
        peak = gemm_peak()
        precisions: list[Precision] = ["float32"]
        if fastest_precision() == "bfloat16":
            precisions.append("bfloat16")
        print(f"float32 GEMM: {peak:.0f} GFLOP/s on {CORES} cores; k = {neighbors}, {num} x {num}")
        print("   d  metric         precision  GFLOP/s  of GEMM  seconds  faiss.knn  ratio")
        rng = np.random.default_rng(1)
        for d in (64, 512, 2048):
            queries = rng.standard_normal((num, d), dtype=np.float32)
            samples = rng.standard_normal((num, d), dtype=np.float32)
            for metric in ("l2", "cosine"):
                compare(queries, samples, neighbors, metric, precisions, peak)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
