"""Objective `moments`: distance to moments of the private records, released once."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pe_ray import plugins
from pe_ray.components.moments import LabelMoments
from pe_ray.config.kinds import FixedEmbedderPlugin, Plugin
from pe_ray.errors import InputError
from pe_ray.plugins import Embedder, Images, PrivateSums
from pe_ray.tuning.search import Floats, Objective, Scorer, Search
from pe_ray.values import ImageShape


class NoisyMomentsOptions(plugins.Options):
    """Options of `moments`."""

    share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the budget's mu^2 that the release costs."""
    embedder: FixedEmbedderPlugin | None = None
    """Default: the run's own. Scores of trials with different embedders are comparable."""
    dim: int = Field(default=8, ge=1, le=64)
    """Dimensions of the public random projection."""
    radius: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Projected embeddings are clipped to this norm, in the embedder's units."""
    seed: int = Field(default=0, ge=0)
    """Seed of the projection; public."""


class NoisyMoments(Objective):
    """Frechet distance between a population's moments and those released for the records."""

    Options: ClassVar[type[plugins.Options]] = NoisyMomentsOptions
    options: NoisyMomentsOptions

    def check(self, search: Search) -> None:
        if self.options.embedder is None and search.config.embedder.learnt:
            raise InputError(
                "tuning.objective.embedder: needed, since each trial learns an embedder of its own"
            )
        trial = search.strategy.configure_trial(search, search.config)
        if len(trial.private.labels) != len(search.config.private.labels):
            raise InputError(
                "tuning.objective: moments of the private records have other labels than trials; "
                "use another objective, or a stand-in with as many labels"
            )

    def private_sums(self, search: Search) -> PrivateSums:
        embedder, statistic = self._embedder(search), self._moments(search)
        return PrivateSums(embedder=embedder, statistic=statistic, share=self.options.share)

    def make_scorer(self, search: Search, shape: ImageShape, released: Floats | None) -> Scorer:
        assert released is not None, "released before the first trial"
        moments, plugin = self._moments(search), self._embedder(search)
        embedder: Embedder = plugins.build("embedder", plugin.kind, plugin.options)

        def score(images: Images, labels: NDArray[np.int32]) -> float:
            features = embedder.embed(images).astype(np.float64)
            return moments.distance(moments.map_records(features, labels).sum(axis=0), released)

        return score

    def _embedder(self, search: Search) -> Plugin:
        return self.options.embedder or search.config.embedder

    def _moments(self, search: Search) -> LabelMoments:
        return LabelMoments(
            num_labels=len(search.config.private.labels),
            dim=self.options.dim,
            radius=self.options.radius,
            seed=self.options.seed,
        )
