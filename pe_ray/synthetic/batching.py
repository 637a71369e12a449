"""Call the generator of an iteration in batches that fit into memory."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pe_ray.config import Config
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

    def __init__(self, plugin: Plugin, config: Config) -> None:
        self.options: GeneratorOptions = plugin.options
        self._generator: Generator = build(
            "generator", plugin.kind, plugin.options, config.private.labels
        )
        self._batch_size = config.resources.batch_size

    def random(self, labels: NDArray[np.int32], seeds: Seeds) -> Rows:
        """Draw rows with `label`, one for each of `labels` [n]."""
        return self._in_batches(lambda s: self._generator.random(labels[s], seeds[s]), labels)

    def vary(self, rows: Rows, degree: float, seeds: Seeds) -> Rows:
        """Draw one variation of each row; labels are kept."""
        given = {name: rows[name] for name in ("image", "label", *self.options.columns)}

        def vary_batch(s: slice) -> Rows:
            batch = {name: values[s] for name, values in given.items()}
            return self._generator.vary(batch, degree, seeds[s])

        return self._in_batches(vary_batch, rows["label"])

    def _in_batches(self, make: Callable[[slice], Rows], labels: NDArray[np.int32]) -> Rows:
        made: list[Rows] = []
        start = 0
        while start < len(labels):
            batch = slice(start, start + self._batch_size)
            try:
                made.append(self._checked(make(batch), labels[batch]))
                start += self._batch_size
            except Exception as error:
                if not _out_of_memory(error):
                    raise
                self._halve(min(self._batch_size, len(labels) - start), error)
        return {name: np.concatenate([rows[name] for rows in made]) for name in made[0]}

    def _halve(self, failed: int, error: Exception) -> None:
        if failed == 1:
            raise InputError(
                "resources.batch_size: out of memory with a single image; give the worker more "
                "memory, or the generator a lower precision"
            ) from error
        self._batch_size = failed // 2
        logger.warning(
            "out of memory with a batch of %d: going on in batches of %d", failed, self._batch_size
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
