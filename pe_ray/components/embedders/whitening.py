"""Whitening: an embedder's numbers, brought to equal variance on public images and to norm 1.

Without it, most of a norm is what all images have in common. A run fits it before it reads a
private record (pe_ray.synthetic.learnt_embedder).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pe_ray import plugins
from pe_ray.config.kinds import EmbedderPlugin
from pe_ray.errors import InputError
from pe_ray.files.array_files import read_arrays
from pe_ray.files.storage import parse_location
from pe_ray.plugins import Embedder, Images
from pe_ray.values import DistanceMetric, ImageShape

Floats = NDArray[np.float32]

KIND = "pe_ray.components.embedders.whitening:Whitened"
_CONSTANT = 0.3  # the constant feature, a regression's offset, relative to the others' norm
_FLOOR = 1e-4  # least variance that is whitened, relative to the largest


def fit_whitening(
    features: Floats, num_features: int, field: str = "embedder"
) -> dict[str, Floats]:
    """Return `mean` [d] and `projection` [d, num_features - 1] of features [n, d].

    The projection is on the directions of largest variance, divided by standard deviations.
    InputError naming `field` where there are too few directions, or values that are no numbers.
    """
    if not np.isfinite(features).all():
        raise InputError(f"{field}: gives public images values that are no numbers")
    num, size = features.shape
    if num_features - 1 > min(num - 1, size):
        raise InputError(
            f"{field}: {num} images of {size} numbers each can't be whitened to {num_features}; "
            "ask for fewer, or give more images"
        )
    made = features.astype(np.float64)
    variances, directions = np.linalg.eigh(np.cov(made, rowvar=False))
    kept = slice(None, -num_features, -1)  # the last num_features - 1, largest first
    scales = 1.0 / np.sqrt(np.maximum(variances[kept], _FLOOR * variances[-1]) + 1e-30)
    projection = (directions[:, kept] * scales).astype(np.float32)
    return {"mean": made.mean(axis=0).astype(np.float32), "projection": projection}


def whiten(features: Floats, mean: Floats, projection: Floats) -> Floats:
    """Return whitened features and a constant, [n, num_features], each row of norm 1."""
    # One small product per row: its bits don't depend on the other rows.
    white = ((features - mean)[:, None, :] @ projection)[:, 0]
    constant = np.full((len(white), 1), _CONSTANT * np.sqrt(white.shape[1]), dtype=np.float32)
    made = np.concatenate([white, constant], axis=1)
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True))


class WhitenedOptions(plugins.EmbedderOptions):
    """Options of Whitened."""

    embedder: EmbedderPlugin
    file: str
    """.npz file of the arrays that `fit_whitening` returns."""
    num_features: int

    def dim(self, shape: ImageShape) -> int:
        return self.num_features


class Whitened:
    """An embedder with its whitening."""

    Options: ClassVar[type[plugins.EmbedderOptions]] = WhitenedOptions
    metric: DistanceMetric = "cosine"

    def __init__(self, options: WhitenedOptions) -> None:
        arrays: dict[str, Any] = read_arrays(parse_location(options.file))
        self._mean, self._projection = arrays["mean"], arrays["projection"]
        plugin = options.embedder
        self._embedder: Embedder = plugins.load("embedder", plugin.kind)(plugin.options)

    def embed(self, images: Images) -> Floats:
        """Return features, float32 [n, num_features], each of norm 1."""
        return whiten(self._embedder.embed(images), self._mean, self._projection)
