"""Metrics of a synthetic set against a reference set."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pe_ray import plugins
from pe_ray.plugins import Images


class FrechetOptions(plugins.Options):
    """Options of `frechet`."""

    size: int = 14
    """Images are compared in the `pixels` embedding of this size."""


class FrechetDistance:
    """Frechet distance (Heusel et al. 2017, eq. 6) in the `pixels` embedding; not the FID.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), in squared units of unit-length embeddings.
    """

    Options: ClassVar[type[plugins.Options]] = FrechetOptions

    def __init__(self, options: Any) -> None:
        pixels = plugins.load("embedder", "pixels")
        self._embedder = pixels(pixels.Options(size=options.size))

    def score(
        self,
        images: Images,
        labels: NDArray[np.int32],
        reference_images: Images,
        reference_labels: NDArray[np.int32],
    ) -> dict[str, float]:
        synthetic = self._embedder.embed(images).astype(np.float64)
        reference = self._embedder.embed(reference_images).astype(np.float64)
        return {"frechet_pixels": frechet_distance(synthetic, reference)}


def frechet_distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Frechet distance between Gaussians fitted to two samples, [n, d] and [m, d].

    The trace of the square root needs only eigenvalues: those of A^(1/2) B A^(1/2), which is
    symmetric and positive, so nothing complex appears.
    """
    covariances = [np.atleast_2d(np.cov(sample, rowvar=False)) for sample in (first, second)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
    product = np.linalg.eigvalsh(root @ covariances[1] @ root)
    means = first.mean(axis=0) - second.mean(axis=0)
    spread = sum(np.trace(covariance) for covariance in covariances)
    return float(means @ means + spread - 2.0 * np.sqrt(np.maximum(product, 0.0)).sum())


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
        self,
        images: Images,
        labels: NDArray[np.int32],
        reference_images: Images,
        reference_labels: NDArray[np.int32],
    ) -> dict[str, float]:
        from sklearn.svm import SVC

        stride = -(-len(images) // self._max_images)
        trained = SVC(C=10.0).fit(self._embedder.embed(images[::stride]), labels[::stride])
        guesses = trained.predict(self._embedder.embed(reference_images))
        return {"accuracy_train_synthetic": float(np.mean(guesses == reference_labels))}
