"""The ancestors of single samples, back to their random draws, by the `parent` column."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pe_ray.report.facts import Facts
from pe_ray.report.samples import Image, choose_labels, reduce_image
from pe_ray.synthetic.population_files import read_parents, read_population


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestor:
    """One sample of a lineage.

    degree: of the variation that made it, None for random draws and kept parents.
    noisy_votes: those of the next iteration, None where there are none yet.
    """

    iteration: int
    sample: int
    image: Image
    degree: float | None
    noisy_votes: int | None


def trace_lineages(facts: Facts) -> dict[int, list[Ancestor]]:
    """Return, by label, the ancestors of one sample of the latest population, oldest first.

    The sample is the one whose parent got most noisy votes. Reads one number per sample, label by
    label, and the images of the ancestors.
    """
    last = len(facts.layouts) - 1
    histogram = facts.read_votes(last) if last >= 1 else None
    if histogram is None:
        return {}
    labels, ids = choose_labels(facts.layouts[last]), []
    for label in labels:
        start, stop = facts.layouts[last].label_range(label)
        parents = read_parents(facts.run.population(last), start, stop)
        ids.append(start + int(np.argmax(histogram.noisy_votes[parents])))
    lineages: dict[int, list[Ancestor]] = {label: [] for label in labels}
    wanted = np.array(ids, dtype=np.int64)
    for iteration in range(last, -1, -1):
        options = facts.config.generator_at(iteration).options
        rows = read_population(facts.run.population(iteration), wanted, options)
        votes = facts.read_votes(iteration + 1)
        for place, lineage in enumerate(lineages.values()):
            degree = float(rows["degree"][place])
            ancestor = Ancestor(
                iteration=iteration,
                sample=int(wanted[place]),
                image=reduce_image(rows["image"][place]),
                degree=None if np.isnan(degree) else degree,
                noisy_votes=None if votes is None else int(votes.noisy_votes[wanted[place]]),
            )
            lineage.insert(0, ancestor)
        wanted = rows["parent"]
    return lineages
