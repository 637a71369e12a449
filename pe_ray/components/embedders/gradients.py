"""Embedder without weights: directions of edges by place, and coarse pixels."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pe_ray.components.embedders.pixels import Pixels, PixelsOptions
from pe_ray.plugins import EmbedderOptions, Images
from pe_ray.values import DistanceMetric, ImageShape

_SIDE = 28  # pixels that images are resized to
_CELLS = 7  # a side
_DIRECTIONS = 8
_CHUNK = 256


class GradientsOptions(EmbedderOptions):
    """Options of Gradients."""

    least_rows: ClassVar[int] = 250

    def dim(self, shape: ImageShape) -> int:
        return _CELLS**2 * _DIRECTIONS + (_SIDE // 2) ** 2


class Gradients:
    """Histograms of gradients in 7x7 cells and 8 directions (Dalal and Triggs 2005), and 14x14
    grey pixels; each of the two parts has norm 1.

    Meant for small grey pictures of things. An embedding is the same in any batch, bit by bit.
    """

    Options: ClassVar[type[EmbedderOptions]] = GradientsOptions
    metric: DistanceMetric = "l2"

    def __init__(self, options: GradientsOptions) -> None:
        self._resized = Pixels(PixelsOptions(size=_SIDE, normalize=False))
        self._coarse = Pixels(PixelsOptions(size=_SIDE // 2))

    def embed(self, images: Images) -> NDArray[np.float32]:
        """Return embeddings, float32 [n, 588]."""
        edges = np.empty((len(images), _CELLS**2 * _DIRECTIONS), dtype=np.float32)
        for start in range(0, len(images), _CHUNK):
            grey = self._resized.embed(images[start : start + _CHUNK])
            edges[start : start + _CHUNK] = _count_edges(grey.reshape(-1, _SIDE, _SIDE))
        return np.concatenate([edges, self._coarse.embed(images)], axis=1)


def _count_edges(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return each cell's gradients by direction, [n, cells * cells * 8], of norm 1.

    A gradient counts with its length, shared by the two directions that are next to its own.
    """
    down, right = np.gradient(grey, axis=(1, 2))
    length = np.sqrt(down**2 + right**2)
    turn = np.arctan2(down, right) * np.float32(_DIRECTIONS / (2 * np.pi)) % _DIRECTIONS
    width = _SIDE // _CELLS
    cells = []
    for direction in range(_DIRECTIONS):
        apart = np.abs(turn - direction)
        near = np.maximum(0, 1 - np.minimum(apart, _DIRECTIONS - apart)) * length
        cells.append(near.reshape(-1, _CELLS, width, _CELLS, width).sum(axis=(2, 4)))
    found = np.stack(cells, axis=3).reshape(len(grey), -1)
    norms = np.sqrt((found**2).sum(axis=1, keepdims=True))
    return np.asarray(found / np.where(norms > 0, norms, 1), dtype=np.float32)
