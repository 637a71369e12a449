"""Public reference images. The readers are those of private records; the records are not private.

`tuning.config` refuses a reference that is the private data.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pe_ray.blocks import PrivateConfig
from pe_ray.private.audit import read_images
from pe_ray.values import ImageShape


def public_images(
    source: PrivateConfig, shape: ImageShape
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Images uint8 [n, h, w, c] and labels int32 [n] of a PUBLIC data set.

    Guarantee: none is needed; whoever names private data here publishes them.
    """
    return read_images(source.model_copy(update={"user_column": None}), shape)
