"""Generator for images that no public source shows: one Gaussian for each label, from noisy sums.

Mean and covariance of low frequencies are estimated from sums over the private records, which are
released with noise before S_0. Everything in this module works on those released sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pe_ray.components.moments import Floats, smat, svec
from pe_ray.config.kinds import Plugin
from pe_ray.errors import InputError
from pe_ray.files.array_files import read_arrays
from pe_ray.files.storage import parse_location
from pe_ray.plugins import EmbedderOptions, GeneratorOptions, Images, PrivateSums, Rows
from pe_ray.plugins.seeds import Seeds, normals
from pe_ray.values import MAX_SUMS, DistanceMetric, ImageShape

_KIND = "pe_ray.components.generators.gaussians:Coefficients"
_COUNT, _MEAN, _SECOND = (math.sqrt(share) for share in (0.02, 0.18, 0.8))
"""Weights of a record's three parts; their squares sum to 1 (benchmarks/gaussians.md)."""


class CoefficientsOptions(EmbedderOptions):
    """Options of Coefficients."""

    side: int
    """Frequencies kept along each axis."""

    def dim(self, shape: ImageShape) -> int:
        return self.side**2 * shape.channels


class Coefficients:
    """Low frequencies of an image: orthonormal DCT of pixels in [-1, 1], L2 norm at most 1.

    The norm is that of all pixels over the root of their number, which no frequency exceeds.
    """

    Options: ClassVar[type[EmbedderOptions]] = CoefficientsOptions
    metric: DistanceMetric = "l2"

    def __init__(self, options: CoefficientsOptions) -> None:
        self._side = options.side

    def embed(self, images: Images) -> NDArray[np.float32]:
        """Return coefficients, float32 [n, channels * side^2], the same in any batch."""
        height, width, channels = images.shape[1:]
        planes = images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(127.5) - np.float32(1)
        found = _cosines(self._side, height) @ planes @ _cosines(self._side, width).T
        scale = np.float32(1 / math.sqrt(height * width * channels))
        return np.asarray(found.reshape(len(images), -1) * scale)


@lru_cache(maxsize=8)
def _cosines(side: int, length: int) -> NDArray[np.float32]:
    """Return the first `side` rows of the orthonormal DCT-II matrix [side, length]."""
    frequency, place = np.arange(side)[:, None], np.arange(length) + 0.5
    rows = np.cos(np.pi / length * frequency * place) * math.sqrt(2 / length)
    rows[0] = math.sqrt(1 / length)
    return rows.astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMoments:
    """Counts, sums and second moments of coefficients z by label.

    With |z| clipped to 1, a record of label l adds

        1_l (x) (a, b z, c svec(z z^T)),    a^2 + b^2 + c^2 = 1,

    1_l the indicator of the label. Its norm is sqrt(a^2 + b^2 |z|^2 + c^2 |z|^4) <= 1.
    """

    num_labels: int
    dim: int

    @property
    def num_values(self) -> int:
        """Length of a record's vector."""
        return self.num_labels * self._width

    @property
    def _width(self) -> int:
        return 1 + self.dim + self.dim * (self.dim + 1) // 2

    def map_records(self, features: Floats, labels: NDArray[np.int32]) -> Floats:
        """Return one vector per record, [n, num_values], for coefficients [n, dim]."""
        lengths = np.sqrt(np.square(features).sum(axis=1, keepdims=True))
        points = features / np.maximum(lengths, 1.0)
        vectors = np.zeros((len(points), self.num_labels, self._width))
        own = [np.full((len(points), 1), _COUNT), _MEAN * points, _SECOND * svec(points)]
        vectors[np.arange(len(points)), labels] = np.concatenate(own, axis=1)
        return vectors.reshape(len(points), -1)

    def estimate(self, sums: Floats, sigma: float) -> tuple[Floats, Floats]:
        """Return means [labels, dim] and roots R [labels, dim, dim] of covariances R^T R.

        sigma: of the noise on each value. The pooled covariance and each label's difference from it
        keep the directions that stand out of their noise (see `shrink`).
        """
        parts = sums.reshape(self.num_labels, self._width)
        counts = np.maximum(parts[:, 0] / _COUNT, 1.0)
        means = parts[:, 1 : 1 + self.dim] / _MEAN / counts[:, None]
        means /= np.maximum(np.sqrt(np.square(means).sum(axis=1, keepdims=True)), 1.0)
        seconds = np.stack([smat(part[1 + self.dim :], self.dim) for part in parts]) / _SECOND
        scatters = seconds - np.einsum("l,li,lj->lij", counts, means, means)
        noise, total = sigma / _SECOND, float(counts.sum())
        pooled = shrink(scatters.sum(axis=0) / total, noise * math.sqrt(self.num_labels) / total)
        roots = []
        for scatter, count in zip(scatters, counts, strict=True):
            own = pooled + shrink(scatter / count - pooled, noise / count)
            values, vectors = np.linalg.eigh(own)
            roots.append((vectors * np.sqrt(np.maximum(values, 0.0))).T)
        return means, np.stack(roots)


def shrink(matrix: Floats, noise: float) -> Floats:
    """Return the estimate of a symmetric matrix of low rank that was seen with noise.

    noise: standard deviation of the diagonal; off it, 1 / sqrt(2) of that. An eigenvalue y becomes
    sign(y) sqrt(y^2 - e^2), or 0 below the edge e of the noise's own eigenvalues: the best choice
    for the squared error (Gavish and Donoho 2017, arXiv 1405.7511, for the Frobenius norm).
    """
    values, vectors = np.linalg.eigh(matrix)
    edge = 2.0 * noise * math.sqrt(len(matrix) / 2)
    kept = np.sign(values) * np.sqrt(np.maximum(values**2 - edge**2, 0.0))
    return np.asarray((vectors * kept) @ vectors.T)


class GaussiansOptions(GeneratorOptions):
    """Options of Gaussians."""

    least_rows: ClassVar[int] = 250

    image_size: int = Field(ge=4, le=1024)
    """Height and width, in pixels."""
    channels: Literal[1, 3] = 1
    coefficients: int = Field(default=10, ge=2, le=64)
    """Frequencies along each axis and channel; labels x coefficients^4 x channels^2 / 2 noisy
    numbers are released."""
    share: float = Field(default=0.3, ge=1e-6, lt=1)
    """Share of sum(1/sigma^2) that the sums get; the votes get the rest."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.coefficients > self.image_size:
            raise ValueError("coefficients: at most image_size")
        return self

    @property
    def image_shape(self) -> ImageShape:
        return ImageShape(height=self.image_size, width=self.image_size, channels=self.channels)

    def private_sums(self, num_labels: int) -> PrivateSums:
        options = CoefficientsOptions(side=self.coefficients)
        moments = ClassMoments(num_labels=num_labels, dim=options.dim(self.image_shape))
        if moments.num_values > MAX_SUMS:
            raise ValueError("generator.coefficients: too many for so many labels; lower it")
        embedder = Plugin(plugin_type="embedder", kind=_KIND, options=options)
        return PrivateSums(embedder=embedder, statistic=moments, share=self.share)

    def with_sums(self, file: str) -> ReleasedGaussiansOptions:
        return ReleasedGaussiansOptions(**self.model_dump(), file=file)

    def check_degree(self, degree: float) -> None:
        if not 0 <= degree <= 1:
            raise ValueError(f"degree {degree:g}: gaussians take 0 (the image) to 1 (a new draw)")


class ReleasedGaussiansOptions(GaussiansOptions):
    """Options of Gaussians whose sums are released."""

    file: str
    """.npz file of the released sums and their sigma."""


class Gaussians:
    """Draws the low frequencies of an image from its label's Gaussian.

    RANDOM_API: a draw. VARIATION_API with degree v: with m the label's mean image, image x becomes
    m + sqrt(1 - v^2) (x - m) + v (draw - m), which keeps the Gaussian as it is (Neal 1999). Images
    may be any generator's. A draw depends on the released sums and the seed alone.

    Before its sums are released, it draws from a public Gaussian: only to be tried and timed.
    """

    Options: ClassVar[type[GeneratorOptions]] = GaussiansOptions

    def __init__(self, options: GaussiansOptions, label_names: Sequence[str]) -> None:
        self._shape = shape = options.image_shape
        num_labels, side = len(label_names), options.coefficients
        if isinstance(options, ReleasedGaussiansOptions):
            moments: Any = options.private_sums(num_labels).statistic
            means, roots = moments.estimate(*_read_sums(options.file))
        else:
            dim = side**2 * shape.channels
            means, roots = (
                np.zeros((num_labels, dim)),
                np.tile(np.eye(dim) / dim, (num_labels, 1, 1)),
            )
        self._means, self._roots = means.astype(np.float32), roots.astype(np.float32)
        self._cosines = _cosines(side, options.image_size)
        self._scale = np.float32(127.5 * math.sqrt(shape.num_bytes))

    def random(self, labels: NDArray[np.int32], seeds: Seeds) -> Rows:
        """Draw an image of each label."""
        return {
            "image": _to_bytes(self._to_pixels(self._means[labels] + self._draw(labels, seeds)))
        }

    def vary(self, rows: Rows, degree: float, seeds: Seeds) -> Rows:
        """Move each image towards a draw of its label."""
        labels = rows["label"]
        mean = self._to_pixels(self._means[labels])
        moved = self._to_pixels(np.float32(degree) * self._draw(labels, seeds)) - np.float32(127.5)
        kept = np.float32(math.sqrt(1 - degree**2)) * (rows["image"] - mean)
        return {"image": _to_bytes(mean + kept + moved)}

    def _draw(self, labels: NDArray[np.int32], seeds: Seeds) -> NDArray[np.float32]:
        """Return draws of mean 0, [n, dim]; one product for each row, so batches don't matter."""
        noise = normals(seeds, self._means.shape[1])
        return np.asarray((noise[:, None, :] @ self._roots[labels])[:, 0])

    def _to_pixels(self, coefficients: NDArray[np.float32]) -> NDArray[np.float32]:
        side = len(self._cosines)
        planes = coefficients.reshape(len(coefficients), self._shape.channels, side, side)
        pixels = self._cosines.T @ planes @ self._cosines
        return np.asarray(pixels.transpose(0, 2, 3, 1) * self._scale + np.float32(127.5))


def _to_bytes(pixels: NDArray[np.float32]) -> Images:
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _read_sums(file: str) -> tuple[Floats, float]:
    """Return the released sums and their sigma."""
    try:
        arrays = read_arrays(parse_location(file))
    except FileNotFoundError:
        raise InputError(
            f"run: {file} is missing; run the same `pe-ray run` command again"
        ) from None
    return arrays["sums"], float(arrays["sigma"])
