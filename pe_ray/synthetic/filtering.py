"""Rows of an expansion that are left out: images that failed, and images that are nearly others.

Looks at generated images and samples of S_T only, all of them post-processing of releases.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pe_ray.files.storage import Location, list_names, write_many
from pe_ray.plugins import Images

_MARK = re.compile(r"\.dropped-(\d+)-part-.+")

Kept = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which rows are left out.

    failed: images of one colour, and variations that are equal to the sample that they vary.
    near: images that differ by less than so many grey levels from that sample, or from a row before
    them in the same file. The difference is the root of the mean square over all pixel values.
    """

    failed: bool = False
    near: float = 0.0

    def choose(self, images: Images, originals: Images | None) -> Kept:
        """Tell which images are kept, bool [n]. originals: the samples that they vary, if any."""
        kept = np.ones(len(images), dtype=bool)
        if self.failed:
            axes = (1, 2)
            kept &= (images.min(axis=axes) != images.max(axis=axes)).any(axis=1)
            if originals is not None:
                kept &= (images != originals).any(axis=(1, 2, 3))
        if self.near:
            if originals is not None:
                kept &= _difference(images, originals) >= self.near
            _drop_near(images, kept, self.near)
        return kept


def _difference(images: Images, others: Images) -> NDArray[np.float64]:
    """Return the root mean square difference of each image from its other one, [n]."""
    pairs = zip(images, others, strict=True)
    squares = [np.mean((a.astype(np.float64) - b) ** 2) for a, b in pairs]
    return np.sqrt(np.array(squares, dtype=np.float64))


def _drop_near(images: Images, kept: Kept, least: float) -> None:
    """Clear `kept` for each image that is nearer than `least` to an earlier one that is kept."""
    flat = images.reshape(len(images), -1).astype(np.float64)  # sums of squares are exact
    norms = np.einsum("ij,ij->i", flat, flat)
    products = flat @ flat.T
    for row in np.flatnonzero(kept):
        before = np.flatnonzero(kept[:row])
        squares = norms[before] + norms[row] - 2 * products[before, row]
        kept[row] = not (squares < least**2 * flat.shape[1]).any()


def note_dropped(directory: Location, part: str, dropped: Kept) -> None:
    """Tell how many rows a part lacks, in the name of an empty file that is written before it."""
    if dropped.any():
        write_many(directory, [(f".dropped-{dropped.sum()}-{part}", b"")])


def count_dropped(directory: Location) -> int:
    """Return how many rows all parts of an expansion lack."""
    return sum(int(mark[1]) for mark in map(_MARK.fullmatch, list_names(directory)) if mark)
