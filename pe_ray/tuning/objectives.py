"""What a trial is scored by: public data, released values, or a release that was paid for.

A scorer is given a population on disk and public settings: nothing else reaches it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pe_ray import plugins
from pe_ray.config import Config
from pe_ray.config.kinds import Plugin
from pe_ray.errors import InputError
from pe_ray.plugins import Embedder
from pe_ray.synthetic.population import Population
from pe_ray.synthetic.population_files import read_population
from pe_ray.tuning.budget import moments_spec
from pe_ray.tuning.references import read_reference
from pe_ray.tuning.search_config import (
    MomentsObjective,
    PublicObjective,
    Search,
)

_MOMENTS_IMAGES = 20_000


class Scorer:
    """Scores a trial's populations; made once per trial.

    moments: the values that were released for all trials, for that objective.
    """

    def __init__(
        self,
        search: Search,
        config: Config,
        moments: NDArray[np.float64] | None,
    ) -> None:
        self._search, self._config, self._moments = search, config, moments
        objective = search.tuning.objective
        if isinstance(objective, PublicObjective):
            self._metric = plugins.load("metric", objective.metric.kind)(objective.metric.options)
            self._reference = read_reference(search.tuning, config.image_shape)

    def score(self, population: Population) -> float:
        """Of S_t, t = population.iteration >= 1."""
        objective = self._search.tuning.objective
        if isinstance(objective, PublicObjective):
            return self._public(objective, population)
        return self._distance(objective, population)

    def _public(self, objective: PublicObjective, population: Population) -> float:
        images, labels = self._images(population, objective.max_images)
        return chosen_score(objective, self._metric.score(images, labels, *self._reference))

    def _distance(self, objective: MomentsObjective, population: Population) -> float:
        assert self._moments is not None, "released before the first trial"
        images, labels = self._images(population, _MOMENTS_IMAGES)
        spec = moments_spec(self._search, objective)
        features = moments_embedder(self._search).embed(images)
        made = spec.map_records(features.astype(np.float64), labels).sum(axis=0)
        return spec.distance(made, self._moments)

    def _images(
        self, population: Population, at_most: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """Evenly spaced rows, since populations are in label order."""
        num = population.layout.num_samples
        chosen = min(num, at_most)
        ids = np.arange(chosen, dtype=np.int64) * num // chosen
        options = self._config.generator_at(population.iteration).options
        rows = read_population(population.directory, ids, options)
        return rows["image"], rows["label"]


def chosen_score(objective: PublicObjective, scores: Mapping[str, float]) -> float:
    """The one of a metric's scores that the search goes by."""
    if objective.score is None and len(scores) == 1:
        return float(next(iter(scores.values())))
    if objective.score is None or objective.score not in scores:
        raise InputError(f"tuning.objective.score: name one of {', '.join(scores)}")
    return float(scores[objective.score])


def moments_embedder(search: Search) -> Embedder:
    """What the moments are moments of."""
    plugin = moments_plugin(search)
    made: Embedder = plugins.load("embedder", plugin.kind)(plugin.options)
    return made


def moments_plugin(search: Search) -> Plugin:
    """The objective's embedder, or the run's own."""
    objective = search.tuning.objective
    own = objective.embedder if isinstance(objective, MomentsObjective) else None
    return own or search.config.embedder
