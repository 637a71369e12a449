"""The few samples that a report shows, small enough for a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pe_ray.report.facts import Facts
from pe_ray.synthetic.export import png
from pe_ray.synthetic.population_files import read_population

Image = NDArray[np.uint8]
"""One image, uint8 [height, width, channels]."""

SAMPLES_PER_LABEL = 12
LABELS_SHOWN = 20
ITERATIONS_SHOWN = 7
THUMBNAIL = 96  # pixels of a side at most
PIXEL_ART = 64  # up to this side images are kept exact and drawn with hard pixels


def samples_of(facts: Facts, iteration: int) -> dict[int, list[Image]]:
    """Label -> evenly spaced samples of S_iteration, reduced to thumbnails; the first labels only.

    Holds one label's images at a time, beside the thumbnails.
    """
    layout, strips = facts.layouts[iteration], {}
    shown = [label for label, count in enumerate(layout.counts) if count][:LABELS_SHOWN]
    for label in shown:
        start, stop = layout.label_range(label)
        count = min(SAMPLES_PER_LABEL, stop - start)
        ids = np.linspace(start, stop - 1, count).astype(np.int64)
        options = facts.config.generator_at(iteration).options
        rows = read_population(facts.run.population(iteration), ids, options)
        strips[label] = [thumbnail(image) for image in rows["image"]]
    return strips


def chosen(count: int, most: int) -> list[int]:
    """At most `most` of 0 .. count - 1, evenly spaced, with both ends."""
    return [int(i) for i in np.unique(np.linspace(0, count - 1, min(count, most)).round())]


def strip(images: Sequence[Image], columns: int) -> Image:
    """Images of one shape in rows of `columns`."""
    return grid([images[i : i + columns] for i in range(0, len(images), columns)])


def grid(rows: Sequence[Sequence[Image]]) -> Image:
    """Rows of images of one shape as one image; short rows end in black."""
    height, width, channels = rows[0][0].shape
    joined = np.zeros((len(rows) * height, max(map(len, rows)) * width, channels), np.uint8)
    for row, images in enumerate(rows):
        line = np.concatenate(list(images), axis=1)
        joined[row * height : (row + 1) * height, : line.shape[1]] = line
    return joined


def data_uri(image: Image, side: int) -> str:
    """`image`, made of images `side` pixels large, for a page: exact where they are small."""
    if side <= PIXEL_ART or image.shape[2] == 1:
        return "data:image/png;base64," + base64.b64encode(png(image)).decode()
    from PIL import Image as Pillow

    sink = io.BytesIO()
    Pillow.fromarray(image).save(sink, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(sink.getvalue()).decode()


def thumbnail(image: Image) -> Image:
    """`image`, reduced to at most THUMBNAIL pixels a side."""
    height, width, channels = image.shape
    scale = THUMBNAIL / max(height, width)
    if scale >= 1:
        return image
    from PIL import Image as Pillow

    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    flat = Pillow.fromarray(image[:, :, 0] if channels == 1 else image)
    reduced = flat.resize(size, Pillow.Resampling.LANCZOS)
    return np.asarray(reduced).reshape(size[1], size[0], channels)
