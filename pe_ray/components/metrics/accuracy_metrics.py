"""Metrics: accuracy on a reference set of classifiers trained on the synthetic set only.

Nothing is chosen on the reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pe_ray import plugins
from pe_ray.components.embedders import convnet
from pe_ray.components.embedders.pixels import Pixels, PixelsOptions
from pe_ray.errors import InputError
from pe_ray.files.image_batches import evenly_spaced
from pe_ray.plugins import Images

Labels = NDArray[np.int32]


def _require_labels(name: str, labels: Labels) -> None:
    if (labels < 0).any():
        raise InputError(f"{name}: needs a labelled reference; give its label_column")


class ClassifierOptions(plugins.MetricOptions):
    """Options of `classifier`."""

    least_labels: ClassVar[int] = 2

    size: int = Field(default=14, ge=1, le=1024)
    """Images are classified in the `pixels` embedding of this size."""
    max_images: int = Field(default=10_000, ge=2)
    """Synthetic images to train on at most (evenly spaced rows)."""


class ClassifierAccuracy:
    """Accuracy of a support vector machine: scikit-learn's with radial basis functions and C = 10.

    Score: `accuracy_train_synthetic`.
    """

    Options: ClassVar[type[plugins.Options]] = ClassifierOptions
    better: ClassVar[Mapping[str, str]] = {"accuracy_train_synthetic": "higher"}

    def __init__(self, options: ClassifierOptions) -> None:
        self._embedder = Pixels(PixelsOptions(size=options.size))
        self._max_images = options.max_images

    def score(
        self, images: Images, labels: Labels, reference_images: Images, reference_labels: Labels
    ) -> dict[str, float]:
        from sklearn.svm import SVC

        _require_labels("classifier", reference_labels)
        rows = evenly_spaced(len(images), self._max_images)
        guesses = labels[:1]  # of a set that has come down to one label
        if len(np.unique(labels[rows])) > 1:
            trained = SVC(C=10.0).fit(self._embedder.embed(images[rows]), labels[rows])
            guesses = trained.predict(self._embedder.embed(reference_images))
        return {"accuracy_train_synthetic": float(np.mean(guesses == reference_labels))}


class ConvnetOptions(plugins.MetricOptions):
    """Options of `cnn`."""

    modules: ClassVar[tuple[str, ...]] = ("torch",)
    least_labels: ClassVar[int] = 2
    least_images: ClassVar[int] = 2

    epochs: int = Field(default=2, ge=1)
    """Passes over the synthetic set: 2 do for 60,000 images, a few thousand need more."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of initial weights and order of images."""


class ConvnetAccuracy:
    """Accuracy of a small convolutional network (`convnet`), with its weights of the last epoch.

    Score: `accuracy_train_synthetic/cnn`. Trained on the CPU; needs images of at least 4x4 pixels.
    """

    Options: ClassVar[type[plugins.Options]] = ConvnetOptions
    better: ClassVar[Mapping[str, str]] = {"accuracy_train_synthetic": "higher"}

    def __init__(self, options: ConvnetOptions) -> None:
        self._options = options

    def score(
        self, images: Images, labels: Labels, reference_images: Images, reference_labels: Labels
    ) -> dict[str, float]:
        if len(images) < 2:
            raise InputError("cnn: needs at least 2 synthetic images")
        _require_labels("cnn", reference_labels)
        network = convnet.train(images, labels, self._options.epochs, self._options.seed)
        right = convnet.classify(network, reference_images) == reference_labels
        return {"accuracy_train_synthetic/cnn": float(np.mean(right))}
