"""One of each thing that a package of its own may add, each named by module:Class."""

from __future__ import annotations

import time
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pe_ray.components.generators.rendered_text import RenderedText
from pe_ray.plugins import EmbedderOptions, Images, Options, Rows
from pe_ray.plugins.seeds import Seeds
from pe_ray.release.releases import Counts, Sums
from pe_ray.synthetic.export_formats import LabelledImages
from pe_ray.values import DistanceMetric, ImageShape, Release


class NoNumbersOptions(EmbedderOptions):
    def dim(self, shape: ImageShape) -> int:
        return 2


class NoNumbers:
    """An embedder that fails: its values are not finite."""

    Options = NoNumbersOptions
    metric: ClassVar[DistanceMetric] = "l2"

    def __init__(self, options: NoNumbersOptions) -> None:
        pass

    def embed(self, images: Images) -> NDArray[np.float32]:
        return np.full((len(images), 2), np.nan, dtype=np.float32)


class SquareRoot:
    """A denoiser: the square root of what is above a floor."""

    class Options(Options):
        floor: float = Field(default=0.0, ge=0)

    def __init__(self, options: SquareRoot.Options) -> None:
        self._floor = options.floor

    def weigh(self, noisy_votes: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
        return np.sqrt(np.maximum(noisy_votes - self._floor, 0.0))


class Lines:
    """An export format: one line of text per image."""

    suffix: ClassVar[str] = "txt"

    @staticmethod
    def write(directory: Path, images: LabelledImages) -> bytes:
        rows = enumerate(images.labels, start=images.first)
        return "".join(f"{row} {images.names[label]}\n" for row, label in rows).encode()


class Corners(Counts):
    """A kind of release: records by the corner that is brightest; one bin a record."""

    @staticmethod
    def describe(release: Release) -> str:
        return "brightest corners"


class Lattice(Sums):
    """Sums under another name than theirs: refused, as they would be accounted as counts."""


class SlowStart(RenderedText):
    """A generator whose first call takes a second, as where it finds neighbours first."""

    def vary(self, rows: Rows, degree: float, seeds: Seeds) -> Rows:
        if not getattr(self, "_ready", False):
            time.sleep(1.0)
        self._ready = True
        return super().vary(rows, degree, seeds)
