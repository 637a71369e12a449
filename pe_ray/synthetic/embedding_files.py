"""Files of a population's embedding, and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pe_ray.files.storage import Location, open_fully

EmbeddingPart = tuple[Location, int, int]
"""A .npy file, float32 [rows, dim], and the first id and one past the last id of its samples."""

_BLOCK_BYTES = 32 << 20  # of samples read at a time


def load_part(file: Location) -> NDArray[np.float32]:
    """Return the samples of one part: of a local file mapped, of an object all of it."""
    mapped: NDArray[np.float32] = np.load(
        open_fully(file), mmap_mode="r" if isinstance(file, Path) else None, allow_pickle=False
    )
    return mapped


def read_blocks(
    parts: Sequence[EmbeddingPart],
    low: int,
    high: int,
    load: Callable[[Location], NDArray[np.float32]] = load_part,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield (first id, samples) of the ids low..high-1 in order, small parts joined.

    load: reads a part; for callers that read the same part again and keep it.
    """
    waiting: list[NDArray[np.float32]] = []
    first = low
    for file, start, stop in parts:
        start, stop, offset = max(start, low), min(stop, high), start
        if start >= stop:
            continue
        rows = load(file)[start - offset : stop - offset]
        waiting.append(rows)
        if sum(rows.nbytes for rows in waiting) >= _BLOCK_BYTES:
            yield first, np.concatenate(waiting)
            waiting, first = [], stop
    if waiting:
        yield first, np.concatenate(waiting)
