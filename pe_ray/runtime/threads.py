"""Threads of a worker: as many as the CPUs that it reserved."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")

_SHARES = 4  # of a thread: more would balance better, and cost more


def count_threads() -> int:
    """Return OMP_NUM_THREADS, which Ray sets to `resources.cpus_per_worker`; 1 without it."""
    return int(os.environ.get("OMP_NUM_THREADS") or 1)


def map_in_threads(function: Callable[[S], T], items: Sequence[S]) -> list[T]:
    """Return `function` of each item, in order, by the worker's threads.

    For what leaves Python's lock, as Pillow's resizing and zlib do. On one thread a GPU would wait
    for them. A thread is given many items at a time, since handing them over costs as much as
    encoding a small image.
    """
    size = max(1, len(items) // (_SHARES * count_threads()))
    shares = [items[start : start + size] for start in range(0, len(items), size)]

    def map_share(share: Sequence[S]) -> list[T]:
        return [function(item) for item in share]

    with ThreadPoolExecutor(count_threads()) as pool:
        return [made for done in pool.map(map_share, shares) for made in done]
