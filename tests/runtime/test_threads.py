"""Threads of a worker."""

from __future__ import annotations

import threading

import pytest

from pe_ray.runtime.threads import map_in_threads


@pytest.mark.parametrize("threads", [1, 3])
def test_items_are_mapped_in_order_by_as_many_threads_as_the_worker_has(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    together = threading.Barrier(threads, timeout=30)  # passes only if so many are at work

    def double(item: int) -> int:
        together.wait()
        return 2 * item

    assert map_in_threads(double, range(2 * threads)) == [2 * n for n in range(2 * threads)]
