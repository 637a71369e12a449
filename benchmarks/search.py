"""Compare the exact search with plain faiss.knn, which settles no near-ties.

    python -m benchmarks.search [num] [neighbors] [rounds]

Searches `num` Gaussian samples (default 20000) for as many queries, whose distances are hard to
tell apart. Each search has one thread, as in a vote task. Both take turns for `rounds` rounds
(default 5). The table has the medians of their CPU seconds, and of the rounds' ratios.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import faiss
import numpy as np
from threadpoolctl import threadpool_limits

from pe_ray.components.nearest import NearestSearch
from pe_ray.values import DistanceMetric

METRICS: tuple[DistanceMetric, ...] = ("l2", "cosine", "inner_product")


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds of `work`; a shared machine changes them less than the wall's."""
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(num: int, dim: int, neighbors: int, metric: DistanceMetric, rounds: int) -> None:
    """Print a row of the table."""
    rng = np.random.default_rng(1)
    queries, samples = (rng.standard_normal((num, dim), dtype=np.float32) for _ in range(2))
    kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    plain, exact = [], []
    for _ in range(rounds):
        plain.append(cpu_seconds(lambda: faiss.knn(queries, samples, neighbors, kind)))
        exact.append(cpu_seconds(lambda: NearestSearch(queries, neighbors, metric).add(samples, 0)))
    ratio = statistics.median(b / a for a, b in zip(plain, exact, strict=True))
    print(
        f"{dim:4d}  {metric:13s}  {statistics.median(plain):9.3f}"
        f"  {statistics.median(exact):7.3f}  {ratio:5.2f}",
        flush=True,
    )


def main(num: int = 20_000, neighbors: int = 1, rounds: int = 5) -> None:
    faiss.omp_set_num_threads(1)
    with threadpool_limits(1):
        print(f"k = {neighbors}, {num} x {num}, one thread")
        print("   d  metric         faiss.knn   search  ratio")
        for dim in (64, 512, 2048):
            for metric in METRICS:
                compare(num, dim, neighbors, metric, rounds)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
