"""Pixels: geometry, normalisation, and that an embedding never depends on its batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pe_ray.components.embedders.pixels import Pixels, PixelsOptions
from pe_ray.values import ImageShape


def images(num: int, height: int, width: int, channels: int, seed: int = 0) -> NDArray[np.uint8]:
    shape = (num, height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def embed(batch: NDArray[np.uint8], **options: Any) -> NDArray[np.float32]:
    return Pixels(PixelsOptions(**options)).embed(batch)


CASES: list[dict[str, Any]] = [
    {},
    {"size": 8},
    {"size": 20, "blur": 0.7},
    {"blur": 0.4, "normalize": False},
    {"grey": False, "size": 9},
]


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("shape", [(28, 28, 1), (8, 8, 1), (32, 32, 3), (17, 5, 3)])
def test_a_row_does_not_depend_on_its_batch(
    options: dict[str, Any], shape: tuple[int, int, int]
) -> None:
    batch = images(301, *shape)
    whole = embed(batch, **options)
    order = np.random.default_rng(1).permutation(len(batch))
    assert np.array_equal(embed(batch[order], **options), whole[order])
    for start, size in ((0, 1), (1, 2), (7, 3), (100, 64), (255, 46)):
        part = embed(batch[start : start + size].copy(), **options)
        assert np.array_equal(part, whole[start : start + size])
    assert whole.dtype == np.float32
    height, width, channels = shape
    declared = ImageShape(height=height, width=width, channels=channels)
    assert whole.shape == (301, PixelsOptions(**options).dim(declared))


def test_area_averages_when_shrinking() -> None:
    batch = images(3, 28, 28, 1)
    expected = batch.reshape(3, 14, 2, 14, 2).astype(np.float64).mean(axis=(2, 4)) / 255
    assert np.allclose(embed(batch, normalize=False).reshape(3, 14, 14), expected, atol=1e-6)


@pytest.mark.parametrize("size", [3, 8, 14, 40])
@pytest.mark.parametrize("blur", [0.0, 1.5])
def test_a_flat_image_stays_flat(size: int, blur: float) -> None:
    flat = np.full((1, 10, 23, 1), 51, dtype=np.uint8)
    assert np.allclose(embed(flat, size=size, blur=blur, normalize=False), 0.2, atol=1e-6)


def test_different_resolutions_of_one_picture_land_close() -> None:
    small = images(20, 8, 8, 1)
    large = small.repeat(4, axis=1).repeat(4, axis=2)
    assert np.allclose(embed(small, size=8), embed(large, size=8), atol=1e-6)


def test_colour_becomes_luma_unless_kept() -> None:
    grey = images(4, 12, 12, 1)
    assert np.allclose(embed(grey), embed(grey.repeat(3, axis=3)), atol=1e-6)
    red = np.zeros((1, 4, 4, 3), dtype=np.uint8)
    red[..., 0] = 255
    assert np.allclose(embed(red, normalize=False), 0.299, atol=1e-6)
    kept = embed(red, grey=False, size=4, normalize=False)
    assert kept.sum() == pytest.approx(16)


def test_norms() -> None:
    batch = images(50, 28, 28, 1)
    batch[7] = 0
    found = embed(batch)
    norms = np.linalg.norm(found, axis=1)
    assert norms[7] == 0
    assert np.isfinite(found).all()
    assert np.allclose(np.delete(norms, 7), 1, atol=1e-5)


def test_no_images() -> None:
    assert embed(np.zeros((0, 8, 8, 1), dtype=np.uint8)).shape == (0, 196)
