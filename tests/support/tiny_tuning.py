"""A strategy, two objectives and a metric as another package would add them."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pe_ray import plugins
from pe_ray.config import Config
from pe_ray.config.blocks import PrivateConfig
from pe_ray.plugins import Images, PrivateSums
from pe_ray.tuning.budget import final_votes, mu_left
from pe_ray.tuning.search import Floats, Mode, Objective, Scorer, Search, Strategy
from pe_ray.values import ImageShape, Release


class FolderOptions(plugins.Options):
    """Options of Folder."""

    folder: str


class Folder(Strategy):
    """Trials vote with public records in a folder."""

    Options: ClassVar[type[plugins.Options]] = FolderOptions
    options: FolderOptions
    charged: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False

    def configure_trial(self, search: Search, config: Config) -> Config:
        labels = config.private.labels
        private = PrivateConfig(data=self.options.folder, labels=labels)
        return config.model_copy(update={"private": private})

    def trial_releases(self, search: Search, config: Config, prefix: str) -> tuple[Release, ...]:
        return final_votes(search, config, prefix)

    def result_mu(self, search: Search) -> float:
        return mu_left(search)


class Careless(Strategy):
    """Free trials that would vote with the private records."""

    charged: ClassVar[bool] = False

    def trial_releases(self, search: Search, config: Config, prefix: str) -> tuple[Release, ...]:
        return final_votes(search, config, prefix)

    def result_mu(self, search: Search) -> float:
        return mu_left(search)


class InkOptions(plugins.Options):
    """Options of Ink."""

    share: float = 0.01


class Ink(Objective):
    """How many more records there are than samples with a bright mean."""

    Options: ClassVar[type[plugins.Options]] = InkOptions
    options: InkOptions

    @property
    def mode(self) -> Mode:
        return "max"

    def private_sums(self, search: Search) -> PrivateSums:
        return PrivateSums(
            embedder=search.config.embedder, statistic=Count(), share=self.options.share
        )

    def make_scorer(self, search: Search, shape: ImageShape, released: Floats | None) -> Scorer:
        assert released is not None

        def score(images: Images, labels: NDArray[np.int32]) -> float:
            return float(released[0] - (images.mean(axis=(1, 2, 3)) > 99).sum())

        return score


class Count:
    """The number of records."""

    num_values = 1

    def map_records(self, features: Floats, labels: NDArray[np.int32]) -> Floats:
        return np.ones((len(features), 1))


class NoNumber(Objective):
    """A score that is no number."""

    def make_scorer(self, search: Search, shape: ImageShape, released: Floats | None) -> Scorer:
        return lambda images, labels: float("nan")


class Silent:
    """A metric that doesn't say which of its scores are good."""

    def __init__(self, options: plugins.Options) -> None:
        pass

    def score(
        self,
        images: Images,
        labels: NDArray[np.int32],
        reference_images: Images,
        reference_labels: NDArray[np.int32],
    ) -> dict[str, float]:
        return {"silence": 0.0}
