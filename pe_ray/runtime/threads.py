"""Threads of a worker: as many as the CPUs that it reserved."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def count_threads() -> int:
    """Return OMP_NUM_THREADS, which Ray sets to `resources.cpus_per_worker`; 1 without it."""
    return int(os.environ.get("OMP_NUM_THREADS") or 1)


def map_in_threads(function: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """Return `function` of each item, in order, by the worker's threads.

    For what leaves Python's lock, as Pillow's resizing and zlib do. On one thread a GPU would wait
    for them.
    """
    with ThreadPoolExecutor(count_threads()) as pool:
        return list(pool.map(function, items))
