"""Objective `public`: a metric of a trial's population against public images. It costs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pe_ray import plugins
from pe_ray.config.blocks import PrivateConfig
from pe_ray.config.kinds import MetricPlugin, Plugin, better_scores, check_metric
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
    require_public,
)
from pe_ray.values import Framing, ImageShape

_TRIED_IMAGES = 1000


class PublicMetricOptions(plugins.Options):
    """Options of `public`."""

    metric: MetricPlugin
    score: str | None = None
    """Which of the metric's scores, where it has several."""
    mode: Mode | None = None
    """Whether a small (`min`) or a large score (`max`) is good; default: what the metric says."""
    reference: PrivateConfig
    """PUBLIC records to compare with, written like `private`."""


class PublicMetric(Objective):
    """A metric against a public reference."""

    Options: ClassVar[type[plugins.Options]] = PublicMetricOptions
    options: PublicMetricOptions

    def __init__(self, options: PublicMetricOptions) -> None:
        super().__init__(options)
        self._mode = options.mode or _stated_mode(options.metric, options.score)

    @property
    def mode(self) -> Mode:
        return self._mode

    def check(self, search: Search) -> None:
        reference = self.options.reference
        require_public(reference, "tuning.objective.reference", search.config.private)
        trial = search.strategy.configure_trial(search, search.config)
        check_metric(
            "tuning.objective.metric",
            self.options.metric,
            num_labels=len(reference.labels),
            num_images=min(trial.schedule.sizes),
        )
        if reference.labels != trial.private.labels:
            raise InputError(
                "tuning.objective.reference.labels: must be those that trials have: "
                f"{', '.join(trial.private.labels[:20])}"
            )

    def public_tables(self, search: Search) -> tuple[ImageTable, ...]:
        table = self.options.reference.table("tuning.objective.reference", private=False)
        return (replace(table, user_column=None),)

    def try_out(self, search: Search) -> None:
        """Score some of the reference's own images."""
        images, labels = self._read(search, search.config.framing)
        rows = evenly_spaced(len(images), _TRIED_IMAGES)
        some = images[rows], labels[rows]
        self._choose(self._load_metric().score(*some, *some))

    def make_scorer(self, search: Search, shape: ImageShape, released: Floats | None) -> Scorer:
        framing = replace(search.config.framing, shape=shape)
        metric, reference = self._load_metric(), self._read(search, framing)

        def score(images: Images, labels: NDArray[np.int32]) -> float:
            return self._choose(metric.score(images, labels, *reference))

        return score

    def _load_metric(self) -> Any:
        plugin = self.options.metric
        return plugins.build("metric", plugin.kind, plugin.options)

    def _read(self, search: Search, framing: Framing) -> tuple[Images, NDArray[np.int32]]:
        (table,) = self.public_tables(search)
        return read_images(table, framing)

    def _choose(self, scores: Mapping[str, float]) -> float:
        """Return the one of a metric's scores that the search goes by."""
        name = self.options.score
        if name is None and len(scores) == 1:
            return float(next(iter(scores.values())))
        if name is None or name not in scores:
            raise InputError(f"tuning.objective.score: name one of {', '.join(scores)}")
        return float(scores[name])


def _stated_mode(metric: Plugin, score: str | None) -> Mode:
    """Return what the metric says of `score`, or of all its scores; InputError where it doesn't."""
    stated = getattr(plugins.load("metric", metric.kind), "better", {})
    ways = set(better_scores([metric], stated if score is None else [score]).values())
    if len(ways) != 1:
        raise InputError(
            f"tuning.objective.mode: needed, since {metric.kind} doesn't say which score is good; "
            "give min or max"
        )
    return "min" if ways == {"lower"} else "max"
