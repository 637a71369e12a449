"""An embedder with weights in a file, or in a folder as a checkpoint is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pe_ray.components.embedders.pixels import Pixels, PixelsOptions
from pe_ray.plugins import EmbedderOptions, Images
from pe_ray.values import ImageShape

SIDE = 4


def save_weights(path: Path, seed: int) -> Path:
    """Write a folder with weights of 16 pixels; files of all seeds have one size."""
    time.sleep(0.02)  # the clock of a file system ticks every few ms
    (path / "network").mkdir(parents=True, exist_ok=True)
    weights = np.random.default_rng(seed).uniform(0.0, 1.0, SIDE * SIDE) ** 4
    np.save(path / "network" / "weights.npy", weights.astype(np.float32))
    return path


class WeighedOptions(EmbedderOptions):
    checkpoint: str

    def dim(self, shape: ImageShape) -> int:
        return SIDE * SIDE


class Weighed:
    """Grey pixels times the weights."""

    Options: ClassVar[type[EmbedderOptions]] = WeighedOptions
    metric = "l2"

    def __init__(self, options: WeighedOptions) -> None:
        self._weights = np.load(Path(options.checkpoint) / "network" / "weights.npy")
        self._pixels = Pixels(PixelsOptions(size=SIDE))

    def embed(self, images: Images) -> NDArray[np.float32]:
        return np.asarray(self._pixels.embed(images) * self._weights, dtype=np.float32)
