"""Population: which samples there are, as plain arrays on the driver; the images are on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pe_ray.errors import InputError
from pe_ray.files.array_files import read_arrays
from pe_ray.files.parts import read_manifest
from pe_ray.files.storage import Location
from pe_ray.run_context import RunContext
from pe_ray.values import LabelLayout, NoisyHistogram


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """S_iteration on disk; its samples are in label order.

    ids: ascending rows in the directory, int64 [n], of those that count; None: all.
    """

    iteration: int
    layout: LabelLayout
    directory: Location
    ids: NDArray[np.int64] | None = None

    def find_rows(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows in the directory of the samples 0, 1, ... that count."""
        return samples if self.ids is None else self.ids[samples]

    def only(self, ids: NDArray[np.int64]) -> Population:
        """Return it with no more than the rows `ids`, ascending."""
        counts = np.diff(np.searchsorted(ids, self.layout.starts)).tolist()
        return replace(self, layout=LabelLayout(counts=tuple(counts)), ids=ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offspring:
    """Where each sample of the next population comes from.

    parents: int64 [n], ascending within a label: ids in the population before (for S_0: the index
    of the random draw). copies: int32 [n]: 0 is the parent itself, j > 0 its j-th variation.
    """

    layout: LabelLayout
    parents: NDArray[np.int64]
    copies: NDArray[np.int32]


def apportion(num_samples: int, fractions: Sequence[float]) -> LabelLayout:
    """Share samples out to labels by largest remainder (Hamilton); ties go to the lower label.

    Every label with a share gets one sample first, so none dies out between populations.
    """
    shares = np.asarray(fractions, dtype=np.float64)
    present = (shares > 0).astype(np.int64)
    exact = (num_samples - present.sum()) * shares / shares.sum()
    counts = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[: num_samples - int((present + counts).sum())]] += 1
    counts += present
    return LabelLayout(counts=tuple(int(count) for count in counts))


def fractions_of(label_counts: NoisyHistogram) -> tuple[float, ...]:
    """Return label fractions from released counts: negative ones are 0; if all are 0, uniform."""
    counts = np.maximum(label_counts.noisy_votes, 0).astype(np.float64)
    counts = counts if counts.sum() > 0 else np.ones(counts.size)
    return tuple(float(share) for share in counts / counts.sum())


def initial_offspring(layout: LabelLayout, variation_fold: int) -> Offspring:
    """Lay out S_0: families of one random draw and `variation_fold` variations of it."""
    parents, copies, first = [], [], 0
    for count in layout.counts:
        position = np.arange(count, dtype=np.int64)
        parents.append(first + position // (1 + variation_fold))
        copies.append((position % (1 + variation_fold)).astype(np.int32))
        first += -(-count // (1 + variation_fold))
    return Offspring(layout=layout, parents=np.concatenate(parents), copies=np.concatenate(copies))


def lookahead_draws(offspring: Offspring, lookahead: int) -> NDArray[np.int64]:
    """Return which lookahead draw of its parent each sample is, int64 [n]; -1: a new variation.

    A parent's first variations take its draws 0, 1, ... while there are any.
    """
    varied = np.flatnonzero(offspring.copies > 0)
    parents = offspring.parents[varied]
    rank = np.arange(len(parents)) - np.searchsorted(parents, parents, side="left")
    draws = np.full(len(offspring.parents), -1, dtype=np.int64)
    draws[varied] = np.where(rank < lookahead, rank, -1)
    return draws


def read_layout(directory: Location) -> LabelLayout | None:
    """Return the layout of a complete population on disk, None where there is none."""
    counts = (read_manifest(directory) or {}).get("label_counts")
    if not isinstance(counts, list) or not all(type(count) is int for count in counts):
        return None
    return LabelLayout(counts=tuple(counts))


def final_population(run: RunContext) -> Population:
    """Return S_T of a finished run as its final set has it: all of it, or what the teacher keeps.

    InputError where the run is not finished.
    """
    last = run.config.schedule.iterations
    directory = run.directory.population(last)
    layout = read_layout(directory)
    kept, file = run.config.num_kept is not None, run.directory.final_ids
    if layout is None or (kept and not file.exists()):
        raise InputError(
            f"run {run.directory.path}: not finished; run the same `pe-ray run` command first"
        )
    population = Population(iteration=last, layout=layout, directory=directory)
    return population.only(read_arrays(file)["ids"]) if kept else population
