"""Who is in a population: labels, ids, parents and copies, as plain arrays on the driver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pe_ray.config.blocks import SelectionSettings
from pe_ray.files.storage import Location
from pe_ray.plugins.seeds import row_seeds
from pe_ray.synthetic.selection import Votes, denoiser, draw, with_fallback
from pe_ray.values import LabelLayout, NoisyHistogram


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """A population on disk: S_iteration, laid out by label."""

    iteration: int
    layout: LabelLayout
    directory: Location


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
    """Samples per label by largest remainder (Hamilton), lower label on ties.

    Every label with a share gets one sample first, so that a label never dies out between
    populations of different sizes; needs num_samples >= number of labels.
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
    """Label fractions from a released label count; negative counts are 0, all 0 means uniform."""
    counts = np.maximum(label_counts.noisy_votes, 0).astype(np.float64)
    counts = counts if counts.sum() > 0 else np.ones(counts.size)
    return tuple(float(share) for share in counts / counts.sum())


def initial_offspring(layout: LabelLayout, variation_fold: int) -> Offspring:
    """S_0: families of one random draw and `variation_fold` variations of it."""
    parents, copies, first = [], [], 0
    for count in layout.counts:
        position = np.arange(count, dtype=np.int64)
        parents.append(first + position // (1 + variation_fold))
        copies.append((position % (1 + variation_fold)).astype(np.int32))
        first += -(-count // (1 + variation_fold))
    return Offspring(layout=layout, parents=np.concatenate(parents), copies=np.concatenate(copies))


def next_offspring(
    population: Population,
    votes: Votes,
    layout: LabelLayout,
    settings: SelectionSettings,
    run_seed: int,
) -> Offspring:
    """S_t: denoise each label's votes, draw parents in proportion, give each its children."""
    denoise = denoiser(settings.denoise, settings.threshold)
    family = settings.next_variation_fold + int(settings.keep_selected)
    label_ids = np.arange(len(layout.counts), dtype=np.int64)
    seeds = row_seeds(run_seed, "selection", population.iteration + 1, label_ids)
    parents, copies = [], []
    for label, count in enumerate(layout.counts):
        start, stop = population.layout.label_range(label)
        if count == 0:
            continue
        assert stop > start, "a label with samples keeps samples"
        own = votes.votes[start:stop]
        weights = with_fallback(denoise(own, votes.sigmas[label]), own)
        selected = draw(weights, -(-count // family), settings.method, int(seeds[label]))
        parents.append(start + np.repeat(selected, family)[:count])
        first_copy = 0 if settings.keep_selected else 1
        copies.append((np.arange(count) % family + first_copy).astype(np.int32))
    return Offspring(layout=layout, parents=np.concatenate(parents), copies=np.concatenate(copies))


def lookahead_draws(offspring: Offspring, lookahead: int) -> NDArray[np.int64]:
    """Which lookahead draw of its parent each sample is, int64 [n]; -1: a variation of its own.

    A parent's first variations take its draws 0, 1, ... while there are any.
    """
    varied = np.flatnonzero(offspring.copies > 0)
    parents = offspring.parents[varied]
    rank = np.arange(len(parents)) - np.searchsorted(parents, parents, side="left")
    draws = np.full(len(offspring.parents), -1, dtype=np.int64)
    draws[varied] = np.where(rank < lookahead, rank, -1)
    return draws
