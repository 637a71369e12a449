"""RunContext: what every step of a run is given. Only the door has the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from pe_ray.config import Config
from pe_ray.config.kinds import Plugin
from pe_ray.files.parts import divide_rows
from pe_ray.runtime.run_directory import RunDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """A configuration, the directory that it is run in, and the embedder that its records vote by.

    embedder: `config.embedder`, or what the run has learnt where that is to be learnt.
    """

    config: Config
    directory: RunDirectory
    embedder: Plugin

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of all labels, in order."""
        return self.config.private.labels

    @property
    def iterations(self) -> range:
        """t = 1, ..., T."""
        return range(1, self.config.schedule.iterations + 1)

    def generator_at(self, iteration: int) -> Plugin:
        """Return the generator that makes S_iteration, with the file of its released sums."""
        plugin, file = self.config.generator_at(iteration), str(self.directory.generator_sums)
        return plugin.model_copy(update={"options": plugin.options.with_sums(file)})

    def divide(self, num_rows: int, **columns: NDArray[Any]) -> list[dict[str, Any]]:
        """Return the requests for a stage's parts, each with its rows of the `columns`."""
        config = self.config
        plugins = (*config.generators, config.embedder)
        least = min(plugin.options.least_rows for plugin in plugins)
        row_bytes = config.image_shape.num_bytes
        ranges = divide_rows(num_rows, row_bytes, config.output.rows_per_part, least)
        return [
            {"start": a, "stop": b, **{name: values[a:b] for name, values in columns.items()}}
            for a, b in ranges
        ]
