"""Call a generator in batches that fit into memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pe_ray.config.kinds import Plugin
from pe_ray.errors import InputError
from pe_ray.plugins import Generator, GeneratorOptions, Rows, build
from pe_ray.plugins.seeds import Seeds

logger = logging.getLogger(__name__)


class BatchedGenerator:
    """Calls a generator in batches of bounded size and checks its rows against its schema.

    A batch that runs out of memory is made again in halves, and later ones are no larger. Rows
    don't depend on their batch, so this changes them by a network's rounding at most.
    """

    def __init__(self, plugin: Plugin, label_names: Sequence[str], batch_size: int) -> None:
        self.options: GeneratorOptions = plugin.options
        self._generator: Generator = build(
            "generator", plugin.kind, plugin.options, tuple(label_names)
        )
        self._batch_size = batch_size

    def random(self, labels: NDArray[np.int32], seeds: Seeds) -> Rows:
        """Draw rows with `label`, one for each of `labels` [n]."""

        def make(s: slice) -> Rows:
            return self._checked(self._generator.random(labels[s], seeds[s]), labels[s])

        return self._in_batches(make, len(labels))

    def vary(self, rows: Rows, degree: float, seeds: Seeds) -> Rows:
        """Draw one variation of each row; labels are kept."""

        def make(s: slice) -> Rows:
            batch = {name: rows[name][s] for name in ("image", "label", *self.options.columns)}
            return self._checked(self._generator.vary(batch, degree, seeds[s]), batch["label"])

        return self._in_batches(make, len(seeds))

    def _in_batches(self, make: Callable[[slice], Rows], num_rows: int) -> Rows:
        made: list[Rows] = []
        start = 0
        while start < num_rows:
            stop = min(start + self._batch_size, num_rows)
            try:
                made.append(make(slice(start, stop)))
            except Exception as error:
                if not _out_of_memory(error):
                    raise
                self._halve(stop - start, error)
            else:
                start = stop
        return {name: np.concatenate([rows[name] for rows in made]) for name in made[0]}

    def _halve(self, failed: int, error: Exception) -> None:
        if failed == 1:
            shape = self.options.image_shape
            raise InputError(
                f"resources.batch_size: out of memory with a single {shape.height}x{shape.width} "
                "image; give the worker more memory, or the generator a lower precision"
            ) from error
        self._batch_size = failed // 2
        logger.warning(
            "out of memory with a batch of %d: going on in batches of %d; set resources.batch_size "
            "to that to save the attempt",
            failed,
            self._batch_size,
        )

    def _checked(self, rows: Rows, labels: NDArray[np.int32]) -> Rows:
        shape = self.options.image_shape
        expected = (len(labels), shape.height, shape.width, shape.channels)
        image = rows.get("image", np.empty(0))
        if image.shape != expected or image.dtype != np.uint8:
            raise TypeError(f"generator returned {image.dtype} {image.shape}, not uint8 {expected}")
        kept = {"image": image, "label": labels}
        for name, (dtype, width) in self.options.columns.items():
            own = (len(labels),) if width == 1 else (len(labels), width)
            kept[name] = np.asarray(rows[name], dtype=dtype).reshape(own)
        return kept


def _out_of_memory(error: Exception) -> bool:
    """Tell whether memory ran out; torch's error is known by name, as torch may not be loaded."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
