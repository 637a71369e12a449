"""The few samples that a report shows, small enough for a page."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Resampling

from pe_ray.files.images import to_pillow
from pe_ray.report.facts import Facts
from pe_ray.synthetic.population_files import read_population

Image = NDArray[np.uint8]
"""One image, uint8 [height, width, channels]."""
T = TypeVar("T")

SAMPLES_PER_LABEL = 12
LABELS_SHOWN = 20
THUMBNAIL = 96
"""Most pixels of a thumbnail's side."""
PIXEL_ART = 64
"""Images up to this side are stored without loss and drawn with hard pixels."""
_READ_BYTES = 1 << 26


def read_samples(facts: Facts, iteration: int) -> dict[int, list[Image]]:
    """Return thumbnails of evenly spaced samples of S_iteration, by label.

    Holds the full images of as many labels as fit into _READ_BYTES, at least one.
    """
    layout, samples = facts.layouts[iteration], {}
    options = facts.config.generator_at(iteration).options
    labels = [label for label, count in enumerate(layout.counts) if count][:LABELS_SHOWN]
    at_once = max(1, _READ_BYTES // (SAMPLES_PER_LABEL * options.image_shape.num_bytes))
    for first in range(0, len(labels), at_once):
        some = labels[first : first + at_once]
        ids = [pick_evenly(range(*layout.label_range(label)), SAMPLES_PER_LABEL) for label in some]
        rows = read_population(facts.run.population(iteration), np.concatenate(ids), options)
        images = iter(rows["image"])
        for label, of_label in zip(some, ids, strict=True):
            samples[label] = [reduce_image(image) for image in islice(images, len(of_label))]
    return samples


def pick_evenly(items: Sequence[T], most: int) -> list[T]:
    """Return at most `most` of `items`, evenly spaced, with both ends."""
    places = np.linspace(0, len(items) - 1, min(len(items), most)).round()
    return [items[place] for place in np.unique(places).astype(int)]


def join_images(rows: Sequence[Sequence[Image]]) -> Image:
    """Join rows of images of one shape into one image; short rows end in black."""
    height, width, channels = rows[0][0].shape
    joined = np.zeros((len(rows) * height, max(map(len, rows)) * width, channels), np.uint8)
    for row, images in enumerate(rows):
        line = np.concatenate(list(images), axis=1)
        joined[row * height : (row + 1) * height, : line.shape[1]] = line
    return joined


def reduce_image(image: Image) -> Image:
    """Return `image`, reduced to at most THUMBNAIL pixels a side."""
    reduced = to_pillow(image)
    reduced.thumbnail((THUMBNAIL, THUMBNAIL), Resampling.LANCZOS, reducing_gap=None)
    return np.asarray(reduced).reshape(reduced.height, reduced.width, -1)
