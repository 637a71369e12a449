"""Which sample of S_T each row of an expansion varies: all labels mixed, and any number of rows.

A row is copy j of a sample, and its image depends on sample and copy alone. Rows come in passes. A
pass takes from each label its share of rows, spreads them evenly over the pass, and puts a random
offset on each. So the first rows of an expansion, however many, have the labels' shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pe_ray.files.parts import MAX_PART_BYTES, part_rows
from pe_ray.plugins.seeds import choose_step, row_seeds, uniforms
from pe_ray.run_context import RunContext
from pe_ray.synthetic.population import Population
from pe_ray.values import LabelLayout

_GROUP_BYTES = 4 * MAX_PART_BYTES  # of images that consecutive rows come from, at least

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOrder:
    """The rows of an expansion, in order.

    layout: of S_T. rows: of each label in `num_passes` passes; more passes may follow. block_rows:
    samples that are read together. num_groups: parts of a pass, each from few blocks, so that a
    worker never reads all of a large S_T for a few rows.
    """

    layout: LabelLayout
    seed: int
    iteration: int
    rows: tuple[int, ...]
    num_passes: int
    block_rows: int
    num_groups: int

    @classmethod
    def of(cls, run: RunContext, population: Population, per_label: tuple[int, ...] = ()) -> Self:
        """Return the order for a population. per_label: rows of each label, () for its shares."""
        layout, row_bytes = population.layout, run.config.image_shape.num_bytes
        size = layout.num_samples
        return cls(
            layout=layout,
            seed=run.config.schedule.seed,
            iteration=population.iteration,
            rows=per_label or layout.counts,
            num_passes=-(-sum(per_label) // size) if per_label else 1,
            block_rows=part_rows(size, row_bytes, run.config.output.rows_per_part),
            num_groups=max(1, size * row_bytes // _GROUP_BYTES),
        )

    def find_samples(self, start: int, stop: int) -> tuple[Ids, Ids]:
        """Return sample and copy of rows start..stop-1, both int64 [stop - start]."""
        number = start * self.num_passes // sum(self.rows)  # never after the pass of `start`
        pieces = []
        while (first := int(self._count_before(number).sum())) < stop:
            pieces.append(_lay_out_pass(self, number)[:, max(start - first, 0) : stop - first])
            number += 1
        samples, copies = np.concatenate(pieces, axis=1)
        return samples, copies

    def _count_before(self, number: int) -> Ids:
        """Return how many rows of each label the passes before `number` have."""
        return np.array(self.rows, dtype=np.int64) * number // self.num_passes

    def _list_draws(self, number: int) -> tuple[NDArray[np.int64], Ids, Ids]:
        """Return label, sample and copy of the rows of a pass, label by label."""
        before, after = self._count_before(number), self._count_before(number + 1)
        labels = np.repeat(np.arange(len(before)), after - before)
        draws = np.concatenate([np.arange(*ends) for ends in zip(before, after, strict=True)])
        counts, starts = np.array(self.layout.counts, dtype=np.int64), self.layout.starts
        copies, turns = np.divmod(draws, counts[labels])
        steps = np.array([choose_step(count) for count in self.layout.counts])
        return labels, starts[labels] + turns * steps[labels] % counts[labels], copies


@lru_cache(maxsize=2)
def _lay_out_pass(order: RowOrder, number: int) -> Ids:
    """Return sample and copy of the rows of a pass, in order, [2, n]."""
    labels, samples, copies = order._list_draws(number)
    groups = samples // order.block_rows % order.num_groups  # each has blocks of all labels
    cells = groups * len(order.rows) + labels
    by_cell = np.argsort(cells, kind="stable")
    sizes = np.bincount(cells)
    ranks = np.empty(len(cells), dtype=np.int64)
    ranks[by_cell] = np.arange(len(cells)) - (np.cumsum(sizes) - sizes)[cells[by_cell]]
    seeds = row_seeds(order.seed, "order", order.iteration, samples, copies)
    places = (ranks + uniforms(seeds, 1)[:, 0]) / sizes[cells]
    all_groups = np.arange(order.num_groups, dtype=np.int64)
    turns = np.argsort(row_seeds(order.seed, "order", order.iteration, all_groups, number))
    rows = np.lexsort((places, turns[groups]))
    return np.stack([samples, copies])[:, rows]
