"""Objective `public`: a metric of a trial's population against public images. It costs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pe_ray import plugins
from pe_ray.config.blocks import PrivateConfig
from pe_ray.config.kinds import MetricPlugin
from pe_ray.errors import InputError
from pe_ray.files.image_batches import evenly_spaced, read_images
from pe_ray.files.image_tables import ImageTable
from pe_ray.plugins import Images
from pe_ray.tuning.search import (
    Floats,
    Mode,
    Objective,
    Scorer,
    Search,
    public_table,
    require_public,
)
from pe_ray.values import ImageShape

_TRIED_IMAGES = 1000


class PublicMetricOptions(plugins.Options):
    """Options of `public`."""

    metric: MetricPlugin
    score: str | None = None
    """Which of the metric's scores, where it has several."""
    mode: Mode
    """Whether a small (`min`) or a large score (`max`) is good."""
    reference: PrivateConfig | None = None
    """PUBLIC records to compare with, written like `private`; default: tuning.public_data."""
    max_images: int = Field(default=10_000, ge=1)
    """Synthetic images scored at most (evenly spaced rows)."""


class PublicMetric(Objective):
    """A metric against a public reference."""

    Options: ClassVar[type[plugins.Options]] = PublicMetricOptions
    options: PublicMetricOptions

    @property
    def max_images(self) -> int:
        return self.options.max_images

    @property
    def mode(self) -> Mode:
        return self.options.mode

    def check(self, search: Search) -> None:
        reference, _ = self._reference(search)
        require_public(reference, "tuning.objective.reference", search.config.private)
        trial = search.strategy.configure_trial(search, search.config)
        if reference.labels != trial.private.labels:
            raise InputError(
                "tuning.objective.reference.labels: must be those that trials have: "
                f"{', '.join(trial.private.labels[:20])}"
            )

    def public_tables(self, search: Search) -> tuple[ImageTable, ...]:
        return (replace(public_table(*self._reference(search)), user_column=None),)

    def try_out(self, search: Search) -> None:
        """Score some of the reference's own images."""
        images, labels = self._read(search, search.config.image_shape)
        rows = evenly_spaced(len(images), _TRIED_IMAGES)
        some = images[rows], labels[rows]
        self._choose(self._load_metric().score(*some, *some))

    def make_scorer(self, search: Search, shape: ImageShape, released: Floats | None) -> Scorer:
        metric, reference = self._load_metric(), self._read(search, shape)

        def score(images: Images, labels: NDArray[np.int32]) -> float:
            return self._choose(metric.score(images, labels, *reference))

        return score

    def _load_metric(self) -> Any:
        plugin = self.options.metric
        return plugins.build("metric", plugin.kind, plugin.options)

    def _reference(self, search: Search) -> tuple[PrivateConfig, str]:
        """Return where the reference is, and the block that says so."""
        if self.options.reference is not None:
            return self.options.reference, "tuning.objective.reference"
        if search.tuning.public_data is None:
            raise InputError("tuning.objective.reference: needed without public_data")
        return search.tuning.public_data, "tuning.public_data"

    def _read(self, search: Search, shape: ImageShape) -> tuple[Images, NDArray[np.int32]]:
        (table,) = self.public_tables(search)
        return read_images(table, replace(search.config.framing, shape=shape))

    def _choose(self, scores: Mapping[str, float]) -> float:
        """Return the one of a metric's scores that the search goes by."""
        name = self.options.score
        if name is None and len(scores) == 1:
            return float(next(iter(scores.values())))
        if name is None or name not in scores:
            raise InputError(f"tuning.objective.score: name one of {', '.join(scores)}")
        return float(scores[name])
