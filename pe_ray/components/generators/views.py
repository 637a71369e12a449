"""Views of public images: a square part of one, or one in more background, at a random place."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageColor, ImageOps

from pe_ray.files.images import to_pillow
from pe_ray.plugins import Images
from pe_ray.plugins.seeds import Seeds, uniforms


def view_images(
    images: Images,
    size: int,
    seeds: Seeds,
    sides: tuple[float, float],
    *,
    mirror: bool,
    background: str,
) -> Images:
    """Return a view of each square image, uint8 [n, size, size, channels].

    sides: least and greatest side of a view, in sides of the image; all between are equally likely.
    A view lies within its image, or holds all of it: every such place is equally likely.
    mirror: whether half of the views are mirrored. A view depends on its image and seed alone.
    """
    full = images.shape[1]
    margin = math.ceil(full * max(0.0, sides[1] - 1))
    mode = "L" if images.shape[3] == 1 else "RGB"
    color = ImageColor.getcolor(background, mode)
    views = np.empty((len(images), size, size, images.shape[3]), dtype=np.uint8)
    for row, (side, across, down, turn) in enumerate(uniforms(seeds, 4)):
        shown = full * (sides[0] + side * (sides[1] - sides[0]))
        left, top = margin + across * (full - shown), margin + down * (full - shown)
        whole = ImageOps.expand(to_pillow(images[row]), margin, color)
        view = whole.resize(
            (size, size), Image.Resampling.BICUBIC, (left, top, left + shown, top + shown)
        )
        views[row] = np.asarray(view).reshape(size, size, -1)
        if mirror and turn < 0.5:
            views[row] = views[row, :, ::-1]
    return views
