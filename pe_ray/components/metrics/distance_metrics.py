"""Metrics: distances of a synthetic set from a reference set in an embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pe_ray import plugins
from pe_ray.components.metrics.distances import (
    Sample,
    compare_manifolds,
    frechet_distance,
    kernel_distance,
)
from pe_ray.config.kinds import FixedEmbedderPlugin
from pe_ray.errors import InputError
from pe_ray.files.image_batches import evenly_spaced
from pe_ray.plugins import Images

Labels = NDArray[np.int32]


class _DistanceMetric:
    """Embeds both sets, or at most `max_images` evenly spaced rows of each, and compares them."""

    name: ClassVar[str]

    def __init__(self, options: Any) -> None:
        self._options, self._kind = options, options.embedder.kind
        self._embedder = plugins.load("embedder", self._kind)(options.embedder.options)

    def score(
        self, images: Images, labels: Labels, reference_images: Images, reference_labels: Labels
    ) -> dict[str, float]:
        least = self._options.least_images
        if min(len(images), len(reference_images)) < least:
            raise InputError(f"{self.name}: needs at least {least} images of either set")
        synthetic, reference = (
            self._embedder.embed(given[evenly_spaced(len(given), self._options.max_images)])
            for given in (images, reference_images)
        )
        return self._compare(synthetic, reference)

    def _compare(self, synthetic: Sample, reference: Sample) -> dict[str, float]:
        raise NotImplementedError


class FrechetOptions(plugins.MetricOptions):
    """Options of `frechet`."""

    least_images: ClassVar[int] = 2
    max_images: ClassVar[int] = 2**63 - 1

    embedder: FixedEmbedderPlugin = Field(default={"kind": "pixels"}, validate_default=True)
    """{kind: inception} makes it the FID, as clean-fid computes it."""


class FrechetDistance(_DistanceMetric):
    """Frechet distance (Heusel et al. 2017) of all images in an embedding.

    Score: `fid` in Inception's embedding, else `frechet_distance/KIND`, in squared units of the
    embedding. It falls with the number of images: compare equal numbers only.
    """

    Options: ClassVar[type[plugins.Options]] = FrechetOptions
    better: ClassVar[Mapping[str, str]] = {"fid": "lower", "frechet_distance": "lower"}
    name = "frechet"

    def _compare(self, synthetic: Sample, reference: Sample) -> dict[str, float]:
        name = "fid" if self._kind == "inception" else f"frechet_distance/{self._kind}"
        return {name: frechet_distance(synthetic, reference)}


class KernelOptions(plugins.MetricOptions):
    """Options of `kid`."""

    least_images: ClassVar[int] = 2

    embedder: FixedEmbedderPlugin = Field(default={"kind": "inception"}, validate_default=True)
    max_images: int = Field(default=10_000, ge=2)
    """Images compared at most, of either set (evenly spaced rows); time grows with its square."""


class KernelDistance(_DistanceMetric):
    """Kernel Inception distance (Binkowski et al. 2018): one unbiased estimate over all pairs.

    clean-fid averages the same estimate over random subsets of 1,000: equal in expectation, with
    more noise. Score: `kid` in Inception's embedding, else `kernel_distance/KIND`.
    """

    Options: ClassVar[type[plugins.Options]] = KernelOptions
    better: ClassVar[Mapping[str, str]] = {"kid": "lower", "kernel_distance": "lower"}
    name = "kid"

    def _compare(self, synthetic: Sample, reference: Sample) -> dict[str, float]:
        name = "kid" if self._kind == "inception" else f"kernel_distance/{self._kind}"
        return {name: kernel_distance(synthetic, reference)}


class PrecisionRecallOptions(plugins.MetricOptions):
    """Options of `precision_recall`."""

    embedder: FixedEmbedderPlugin = Field(default={"kind": "pixels"}, validate_default=True)
    neighbors: int = Field(default=3, ge=1)
    """A point's ball reaches to this many nearest others of its own set."""
    max_images: int = Field(default=10_000, ge=2)
    """Images compared at most, of either set (evenly spaced rows); time grows with its square."""

    @property
    def least_images(self) -> int:
        return self.neighbors + 1

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_images <= self.neighbors:
            raise ValueError("max_images: must be above neighbors")
        return self


class PrecisionRecall(_DistanceMetric):
    """Improved precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al.
    2020) in an embedding.

    Scores: `precision/KIND` and `density/KIND` (are the synthetic images likely ones?),
    `recall/KIND` and `coverage/KIND` (are all likely images reached?). They change with the number
    of images: compare equal numbers only.
    """

    Options: ClassVar[type[plugins.Options]] = PrecisionRecallOptions
    better: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("precision", "recall", "density", "coverage"), "higher"
    )
    name = "precision_recall"

    def _compare(self, synthetic: Sample, reference: Sample) -> dict[str, float]:
        found = compare_manifolds(synthetic, reference, self._options.neighbors)
        return {f"{name}/{self._kind}": value for name, value in found.items()}
