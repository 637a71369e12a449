"""How one sample came about: its ancestors from the random draw on, by the `parent` column."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pe_ray.report.facts import Facts
from pe_ray.report.samples import LABELS_SHOWN, Image, thumbnail
from pe_ray.synthetic.population_files import read_parents, read_population


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestor:
    """One sample of a lineage.

    degree: of the variation that made it, None for random draws and kept parents; noisy_votes: what
    it got in the next votes, None where there were none.
    """

    iteration: int
    sample: int
    image: Image
    degree: float | None
    noisy_votes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Ancestors of one sample of the latest population, oldest first."""

    label: int
    ancestors: tuple[Ancestor, ...]


def lineages_of(facts: Facts) -> list[Lineage]:
    """One lineage per label: of the sample whose parent got most noisy votes.

    Reads the parents of the latest population (a number per sample, label by label) and, from each
    population, the samples shown.
    """
    last = len(facts.layouts) - 1
    if last < 1:
        return []
    histogram, layout = facts.votes(last), facts.layouts[last]
    if histogram is None:
        return []
    labels = [label for label, count in enumerate(layout.counts) if count][:LABELS_SHOWN]
    ids = []
    for label in labels:
        start, stop = layout.label_range(label)
        parents = read_parents(facts.run.population(last), start, stop)
        ids.append(start + int(np.argmax(histogram.noisy_votes[parents])))
    lines: list[list[Ancestor]] = [[] for _ in labels]
    wanted = np.array(ids, dtype=np.int64)
    for iteration in range(last, -1, -1):
        options = facts.config.generator_at(iteration).options
        rows = read_population(facts.run.population(iteration), wanted, options)
        votes = facts.votes(iteration + 1)
        for place, line in enumerate(lines):
            degree = float(rows["degree"][place])
            line.append(
                Ancestor(
                    iteration=iteration,
                    sample=int(wanted[place]),
                    image=thumbnail(rows["image"][place]),
                    degree=None if np.isnan(degree) else degree,
                    noisy_votes=None if votes is None else int(votes.noisy_votes[wanted[place]]),
                )
            )
        wanted = rows["parent"]
    return [
        Lineage(label=label, ancestors=tuple(reversed(line)))
        for label, line in zip(labels, lines, strict=True)
    ]
