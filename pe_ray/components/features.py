"""Embedders without a network: pixels."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pe_ray import plugins
from pe_ray.plugins import Images
from pe_ray.seeds import normals, row_seeds
from pe_ray.values import DistanceMetric, ImageShape


class PixelsOptions(plugins.EmbedderOptions):
    """Options of `pixels`."""

    size: int = Field(default=14, ge=1)
    """Images are resized to size x size (antialiased), whatever their own size."""
    blur: float = Field(default=0.0, ge=0)
    """Standard deviation of a Gaussian blur, as a fraction of the image's side."""
    grey: bool = True
    """Embed the luma (ITU-R BT.601) of colour images instead of their channels."""
    normalize: bool = True
    """Scale embeddings to unit length (an all-black image stays 0)."""
    projection: int | None = Field(default=None, ge=1)
    """Length after a random Gaussian projection (Johnson and Lindenstrauss 1984), public."""
    projection_seed: int = Field(default=0, ge=0)
    metric: DistanceMetric = "l2"

    def dim(self, shape: ImageShape) -> int:
        channels = 1 if self.grey else shape.channels
        return self.projection or self.size * self.size * channels


class Pixels:
    """Resized, optionally blurred pixels.

    Every product is a stack of small ones, one per image, so an image's embedding is the same to
    the bit in any batch.
    """

    Options: ClassVar[type[plugins.EmbedderOptions]] = PixelsOptions

    def __init__(self, options: Any) -> None:
        self._options: PixelsOptions = options

    @property
    def metric(self) -> DistanceMetric:
        return self._options.metric

    def embed(self, images: Images) -> NDArray[np.float32]:
        """Embeddings, float32 [n, dim], of uint8 [n, height, width, channels]."""
        options = self._options
        planes = images.astype(np.float64) / 255.0
        if options.grey and images.shape[3] == 3:
            planes = (planes * np.array([0.299, 0.587, 0.114])).sum(axis=3, keepdims=True)
        rows = resizer(images.shape[1], options.size, options.blur)
        columns = resizer(images.shape[2], options.size, options.blur)
        small = rows @ planes.transpose(0, 3, 1, 2) @ columns.T
        vectors = np.ascontiguousarray(small).reshape(len(images), 1, -1)
        if options.projection:
            vectors = vectors @ projection(
                vectors.shape[2], options.projection, options.projection_seed
            )
        vectors = vectors[:, 0, :]
        if options.normalize:
            length = np.sqrt(np.square(vectors).sum(axis=1, keepdims=True))
            vectors = vectors / np.where(length > 0, length, 1.0)
        return vectors.astype(np.float32)


@lru_cache(maxsize=64)
def resizer(length: int, size: int, blur: float) -> NDArray[np.float64]:
    """Linear map [size, length] from `length` pixels to `size`: a triangle filter as wide as the
    coarser grid (antialiased bilinear), then a Gaussian of `blur` sides between output pixels."""
    centres = (np.arange(size) + 0.5) * length / size
    pixels = np.arange(length) + 0.5
    width = max(1.0, length / size)
    weights = np.maximum(0.0, 1.0 - np.abs(centres[:, None] - pixels) / width)
    weights /= weights.sum(axis=1, keepdims=True)
    if blur > 0:
        steps = np.arange(size)[:, None] - np.arange(size)
        smooth = np.exp(-0.5 * (steps / (blur * size)) ** 2)
        weights = smooth / smooth.sum(axis=1, keepdims=True) @ weights
    return weights


@lru_cache(maxsize=8)
def projection(dim: int, size: int, seed: int) -> NDArray[np.float64]:
    """Random matrix [dim, size] of independent N(0, 1 / size); the same on every machine."""
    return normals(row_seeds(seed, "random", 0, np.arange(dim)), size) / np.sqrt(size)
