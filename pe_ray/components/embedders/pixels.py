"""Embedder: resized, blurred and normalised pixels."""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pe_ray.plugins import EmbedderOptions, Images
from pe_ray.values import DistanceMetric, ImageShape

Floats = NDArray[np.float32]

_CHUNK = 256  # images embedded at once: a few MB of temporaries at 28x28
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in PIL's mode L


class PixelsOptions(EmbedderOptions):
    """Options of Pixels, applied in this order."""

    least_rows: ClassVar[int] = 250

    grey: bool = True
    """Colour to luma (BT.601); false keeps three channels."""
    size: int = Field(default=14, ge=1, le=1024)
    """Resize to size x size: area averages where that shrinks, linear interpolation where it
    grows, each axis on its own."""
    blur: float = Field(default=0.0, ge=0, le=100)
    """Standard deviation of a Gaussian blur after resizing, in pixels of the resized image."""
    normalize: bool = True
    """Scale to L2 norm 1; an all-zero image stays the zero vector."""

    def dim(self, shape: ImageShape) -> int:
        return self.size**2 * (1 if self.grey else shape.channels)


class Pixels:
    """Resized, blurred, normalised pixels, scaled to [0, 1] before normalisation.

    With `grey: true`, images of any height and width and 1 or 3 channels land in the same space.
    Each image has matrix products of its own, so an embedding is the same in any batch, bit by bit.
    """

    Options: ClassVar[type[EmbedderOptions]] = PixelsOptions
    metric: DistanceMetric = "l2"

    def __init__(self, options: PixelsOptions) -> None:
        self._options = options

    def embed(self, images: Images) -> Floats:
        """Return embeddings, float32 [n, dim]."""
        shape = ImageShape(height=images.shape[1], width=images.shape[2], channels=images.shape[3])
        found = np.empty((len(images), self._options.dim(shape)), dtype=np.float32)
        for start in range(0, len(images), _CHUNK):
            found[start : start + _CHUNK] = self._embed(images[start : start + _CHUNK])
        return found

    def _embed(self, images: Images) -> Floats:
        options = self._options
        planes = images.transpose(0, 3, 1, 2).astype(np.float32, order="C") / np.float32(255)
        if options.grey and planes.shape[1] == 3:
            red, green, blue = (planes[:, c] * np.float32(_LUMA[c]) for c in range(3))
            planes = (red + green + blue)[:, None]
        vertical = _operator(planes.shape[2], options.size, options.blur)
        horizontal = _operator(planes.shape[3], options.size, options.blur)
        resized = np.asarray(vertical @ planes @ horizontal.T, dtype=np.float32)
        vectors: Floats = resized.reshape(len(images), -1)
        if options.normalize:
            norms = np.sqrt(vectors[:, None, :] @ vectors[:, :, None])[:, 0]
            vectors /= np.where(norms > 0, norms, np.float32(1))
        return vectors


@lru_cache(maxsize=64)
def _operator(num_in: int, num_out: int, blur: float) -> Floats:
    """Return the matrix that resizes one axis, then blurs it: [num_out, num_in], rows sum to 1."""
    weights = _area(num_in, num_out) if num_out <= num_in else _linear(num_in, num_out)
    if blur > 0:
        apart = np.subtract.outer(np.arange(num_out), np.arange(num_out)) / blur
        kernel = np.exp(-0.5 * apart**2)
        weights = kernel / kernel.sum(axis=1, keepdims=True) @ weights
    return np.ascontiguousarray(weights, dtype=np.float32)


def _area(num_in: int, num_out: int) -> NDArray[np.float64]:
    """Return the share of each input pixel in each output pixel; pixels are intervals."""
    edges = np.arange(num_out + 1) * (num_in / num_out)
    pixels = np.arange(num_in)
    upper = np.minimum(edges[1:, None], pixels + 1)
    lower = np.maximum(edges[:-1, None], pixels)
    return np.asarray(np.maximum(upper - lower, 0.0) * (num_out / num_in))


def _linear(num_in: int, num_out: int) -> NDArray[np.float64]:
    """Return weights that interpolate between pixel centres; constant beyond the outermost."""
    at = np.clip((np.arange(num_out) + 0.5) * (num_in / num_out) - 0.5, 0, num_in - 1)
    return np.asarray(np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(num_in))))
