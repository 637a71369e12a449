"""Selection: draw parents in proportion to the denoised votes (Lin et al. 2024, Algorithm 1).

Everything here is a pure function of released values: post-processing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pe_ray.plugins.seeds import row_seeds
from pe_ray.run_context import RunContext
from pe_ray.synthetic.population import Offspring, Population
from pe_ray.values import LabelLayout

Weights = NDArray[np.float64]


def select_parents(
    run: RunContext, population: Population, weights: Weights, layout: LabelLayout
) -> Offspring:
    """Draw the parents of S_t from S_(t-1) and give each its children, label by label.

    weights: float64 [num_samples], not negative, with a positive sum for every label that has
    samples. layout: of S_t.
    """
    iteration = population.iteration + 1
    settings = run.config.selection.at(iteration)
    family = settings.next_variation_fold + int(settings.keep_selected)
    labels = np.arange(len(layout.counts), dtype=np.int64)
    seeds = row_seeds(run.config.schedule.seed, "selection", iteration, labels)
    first_copy = 0 if settings.keep_selected else 1
    parents, copies = [], []
    for label, count in enumerate(layout.counts):
        start, stop = population.layout.label_range(label)
        if count == 0:
            continue
        assert stop > start, "a label with samples keeps samples"
        num_parents = -(-count // family)
        drawn = draw_parents(weights[start:stop], num_parents, settings.method, int(seeds[label]))
        parents.append(start + np.repeat(drawn, family)[:count])
        copies.append((np.arange(count) % family + first_copy).astype(np.int32))
    return Offspring(layout=layout, parents=np.concatenate(parents), copies=np.concatenate(copies))


def draw_parents(weights: Weights, num: int, method: str, seed: int) -> NDArray[np.int64]:
    """Draw `num` positions in ascending order, with repeats, from weights with a positive sum.

    systematic: one uniform offset, so each count is within 1 of its expectation (Kitagawa 1996).
    multinomial: independent draws. rank: the `num` heaviest; ties go to the lower position, and it
    starts over where there are fewer than `num`.
    """
    if method == "rank":
        order = np.argsort(-weights, kind="stable")
        return np.sort(order[np.arange(num) % weights.size]).astype(np.int64)
    rng = np.random.default_rng(seed)
    offsets = np.arange(num) + rng.random() if method == "systematic" else num * rng.random(num)
    cumulative = np.cumsum(weights)
    points = np.sort(offsets) * (cumulative[-1] / num)
    heavy = np.nonzero(weights > 0)[0]
    found = np.searchsorted(cumulative, points, side="right")
    return np.asarray(np.minimum(found, heavy[-1]), dtype=np.int64)
