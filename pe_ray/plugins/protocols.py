"""What a user implements: Generator, Embedder, Metric and Denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from pe_ray.plugins.options import EmbedderOptions, GeneratorOptions, Options
from pe_ray.plugins.seeds import Seeds
from pe_ray.values import DistanceMetric

Images = NDArray[np.uint8]
"""Images, uint8 [n, height, width, channels]."""

Rows = dict[str, NDArray[Any]]
"""Column name -> array whose first axis is the row; `image` (Images), `label` (int32) and the
generator's own columns."""


class Generator(Protocol):
    """RANDOM_API and VARIATION_API (Lin et al. 2024, section 3).

    Both return as many rows as they are given, in order, with `image` and every own column.
    A row of the result depends on its label, its own row and its own seed, never on the batch.
    """

    Options: ClassVar[type[GeneratorOptions]]

    def __init__(self, options: Any, label_names: Sequence[str]) -> None: ...

    def random(self, labels: NDArray[np.int32], seeds: Seeds) -> Rows:
        """Draw one sample for each label; labels and seeds have shape [n]."""
        ...

    def vary(self, rows: Rows, degree: float, seeds: Seeds) -> Rows:
        """Draw one variation of each row; `degree`: how far it may differ, in units of its own."""
        ...


class Embedder(Protocol):
    """Maps images to vectors, so that similar images are near.

    Deterministic; a row is the same in any batch, up to rounding.
    """

    Options: ClassVar[type[EmbedderOptions]]

    def __init__(self, options: Any) -> None: ...

    @property
    def metric(self) -> DistanceMetric:
        """The distance that the embedding is meant for. `nearest_image` uses it; records vote by
        `votes.metric`.
        """
        ...

    def embed(self, images: Images) -> NDArray[np.float32]:
        """Return embeddings, float32 [n, dim], of images of one shape (any height and width).

        n may be thousands. An embedder bounds its own memory, in chunks of a fixed size: its
        output must not depend on `resources`.
        """
        ...


class Metric(Protocol):
    """Scores labelled synthetic images against labelled reference images.

    A run passes released images and a public reference. Only `pe-ray audit` passes private ones.
    A class may say what a good score is: `better = {NAME: "lower"}` or `"higher"`, where NAME is a
    score's name up to its first slash.
    """

    Options: ClassVar[type[Options]]

    def __init__(self, options: Any) -> None: ...

    def score(
        self,
        images: Images,
        labels: NDArray[np.int32],
        reference_images: Images,
        reference_labels: NDArray[np.int32],
    ) -> dict[str, float]:
        """Return scores by name. Both sets of images have one shape, except for their number."""
        ...


class Denoiser(Protocol):
    """Turns the noisy counts of one label into the weights that its parents are drawn by."""

    def __init__(self, options: Any) -> None: ...

    def weigh(self, noisy_votes: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
        """Return weights >= 0, [n], for counts [n] with Gaussian noise of scale `sigma`."""
        ...
