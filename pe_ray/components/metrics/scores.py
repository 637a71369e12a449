"""Metrics of a synthetic set against a reference set."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pe_ray import plugins
from pe_ray.components.embedders import convnet
from pe_ray.components.metrics.distances import (
    frechet_distance,
    kernel_distance,
    precision_and_recall,
)
from pe_ray.config.blocks import FixedEmbedderPlugin, Plugin
from pe_ray.errors import InputError
from pe_ray.files.public_images import evenly_spaced
from pe_ray.plugins import Images

Labels = NDArray[np.int32]


def _default(kind: str) -> Plugin:
    options = plugins.load("embedder", kind).Options()
    return Plugin(plugin_type="embedder", kind=kind, options=options)


def _load(embedder: Plugin) -> plugins.Embedder:
    made = plugins.load("embedder", embedder.kind)(embedder.options)
    return cast(plugins.Embedder, made)


def _need(name: str, least: int, *sets: Images) -> None:
    if min(len(images) for images in sets) < least:
        raise InputError(f"{name}: needs at least {least} synthetic and {least} reference images")


def _need_labels(name: str, labels: Labels) -> None:
    if (labels < 0).any():
        raise InputError(f"{name}: needs a labelled reference; give its label_column")


class FrechetOptions(plugins.Options):
    """Options of `frechet`."""

    embedder: FixedEmbedderPlugin = Field(default_factory=lambda: _default("pixels"))
    """{kind: inception} makes it the FID, as clean-fid computes it."""


class FrechetDistance:
    """Frechet distance (Heusel et al. 2017) of all images in an embedding.

    Score: `fid` in Inception's embedding, else `frechet_distance/KIND`, in squared units of the
    embedding. It falls with the number of images: compare equal numbers only.
    """

    Options: ClassVar[type[plugins.Options]] = FrechetOptions

    def __init__(self, options: FrechetOptions) -> None:
        kind = options.embedder.kind
        self._name = "fid" if kind == "inception" else f"frechet_distance/{kind}"
        self._embedder = _load(options.embedder)

    def score(
        self, images: Images, labels: Labels, reference_images: Images, reference_labels: Labels
    ) -> dict[str, float]:
        _need("frechet", 2, images, reference_images)
        synthetic, reference = map(self._embedder.embed, (images, reference_images))
        return {self._name: frechet_distance(synthetic, reference)}


class KernelOptions(plugins.Options):
    """Options of `kid`."""

    embedder: FixedEmbedderPlugin = Field(default_factory=lambda: _default("inception"))
    max_images: int = Field(default=10_000, ge=2)
    """Images compared at most, of either set (evenly spaced rows); time grows with its square."""


class KernelDistance:
    """Kernel Inception distance (Binkowski et al. 2018): one unbiased estimate over all pairs.

    clean-fid averages the same estimate over random subsets of 1,000: equal in expectation, with
    more noise. Score: `kid` in Inception's embedding, else `kernel_distance/KIND`.
    """

    Options: ClassVar[type[plugins.Options]] = KernelOptions

    def __init__(self, options: KernelOptions) -> None:
        kind = options.embedder.kind
        self._name = "kid" if kind == "inception" else f"kernel_distance/{kind}"
        self._embedder = _load(options.embedder)
        self._max_images = options.max_images

    def score(
        self, images: Images, labels: Labels, reference_images: Images, reference_labels: Labels
    ) -> dict[str, float]:
        _need("kid", 2, images, reference_images)
        synthetic, reference = (
            self._embedder.embed(some[evenly_spaced(len(some), self._max_images)])
            for some in (images, reference_images)
        )
        return {self._name: kernel_distance(synthetic, reference)}


class PrecisionRecallOptions(plugins.Options):
    """Options of `precision_recall`."""

    embedder: FixedEmbedderPlugin = Field(default_factory=lambda: _default("pixels"))
    neighbors: int = Field(default=3, ge=1)
    """A point's ball reaches to this many nearest others of its own set."""
    max_images: int = Field(default=10_000, ge=2)
    """Images compared at most, of either set (evenly spaced rows); time grows with its square."""


class PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019) in an embedding.

    Scores: `precision/KIND` (are the synthetic images likely ones?) and `recall/KIND` (are all
    likely images reached?).
    """

    Options: ClassVar[type[plugins.Options]] = PrecisionRecallOptions

    def __init__(self, options: PrecisionRecallOptions) -> None:
        self._options = options
        self._embedder = _load(options.embedder)

    def score(
        self, images: Images, labels: Labels, reference_images: Images, reference_labels: Labels
    ) -> dict[str, float]:
        options = self._options
        _need("precision_recall", options.neighbors + 1, images, reference_images)
        synthetic, reference = (
            self._embedder.embed(some[evenly_spaced(len(some), options.max_images)])
            for some in (images, reference_images)
        )
        precision, recall = precision_and_recall(synthetic, reference, options.neighbors)
        kind = options.embedder.kind
        return {f"precision/{kind}": precision, f"recall/{kind}": recall}


class ClassifierOptions(plugins.Options):
    """Options of `classifier`."""

    size: int = 14
    """Images are classified in the `pixels` embedding of this size."""
    max_images: int = 10_000
    """Synthetic images to train on at most (evenly spaced rows)."""


class ClassifierAccuracy:
    """Accuracy on the reference of a support vector machine trained on the synthetic set only.

    Radial basis functions, scikit-learn's defaults, C = 10: nothing is chosen on the reference.
    """

    Options: ClassVar[type[plugins.Options]] = ClassifierOptions

    def __init__(self, options: Any) -> None:
        pixels = plugins.load("embedder", "pixels")
        self._embedder = pixels(pixels.Options(size=options.size))
        self._max_images = options.max_images

    def score(
        self, images: Images, labels: Labels, reference_images: Images, reference_labels: Labels
    ) -> dict[str, float]:
        from sklearn.svm import SVC

        _need_labels("classifier", reference_labels)
        rows = evenly_spaced(len(images), self._max_images)
        trained = SVC(C=10.0).fit(self._embedder.embed(images[rows]), labels[rows])
        guesses = trained.predict(self._embedder.embed(reference_images))
        return {"accuracy_train_synthetic": float(np.mean(guesses == reference_labels))}


class ConvnetOptions(plugins.Options):
    """Options of `cnn`."""

    modules: ClassVar[tuple[str, ...]] = ("torch",)

    epochs: int = Field(default=2, ge=1)
    """Passes over the synthetic set: 2 do for 60,000 images, a few thousand need more."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of initial weights and order of images."""


class ConvnetAccuracy:
    """Accuracy on the reference of a small convolutional network trained on the synthetic set.

    Six 3x3 convolutions (16 to 64 channels, batch normalisation), Adam with a step that falls to 0.
    Nothing is chosen on the reference: the weights are those after the last epoch. Score:
    `accuracy_train_synthetic/cnn`. On the CPU; images of at least 4x4 pixels.
    """

    Options: ClassVar[type[plugins.Options]] = ConvnetOptions

    def __init__(self, options: ConvnetOptions) -> None:
        self._options = options

    def score(
        self, images: Images, labels: Labels, reference_images: Images, reference_labels: Labels
    ) -> dict[str, float]:
        _need("cnn", 2, images)
        _need_labels("cnn", reference_labels)
        classify = convnet.train(images, labels, self._options.epochs, self._options.seed)
        right = classify(reference_images) == reference_labels
        return {"accuracy_train_synthetic/cnn": float(np.mean(right))}
