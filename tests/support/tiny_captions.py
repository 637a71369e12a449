"""A generator that draws grey squares from captions; importable by Ray's workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pe_ray.components.generators.caption_options import CaptionedOptions
from pe_ray.components.generators.captions import Captions
from pe_ray.plugins import GeneratorOptions, Rows
from pe_ray.plugins.seeds import Seeds, uniforms
from pe_ray.values import ImageShape

SHADES = {"dark": 30, "grey": 128, "bright": 220}


class ShadesOptions(CaptionedOptions):
    @property
    def image_shape(self) -> ImageShape:
        return ImageShape(height=8, width=8, channels=1)


class Shades:
    """Squares as bright as the first shade that a caption names, and noise."""

    Options: ClassVar[type[GeneratorOptions]] = ShadesOptions

    def __init__(self, options: ShadesOptions, label_names: Sequence[str]) -> None:
        self._captions = Captions(options, label_names)

    def random(self, labels: NDArray[np.int32], seeds: Seeds) -> Rows:
        return self._paint(self._captions.draw(labels, seeds), seeds)

    def vary(self, rows: Rows, degree: float, seeds: Seeds) -> Rows:
        return self._paint(self._captions.vary(rows, degree, seeds), seeds)

    def _paint(self, captions: list[str], seeds: Seeds) -> Rows:
        shades = [next((SHADES[w] for w in text.split() if w in SHADES), 0) for text in captions]
        noise = 20 * uniforms(seeds, 64).reshape(-1, 8, 8, 1)
        images = (np.array(shades).reshape(-1, 1, 1, 1) + noise).astype(np.uint8)
        return self._captions.add_to({"image": images}, captions)
