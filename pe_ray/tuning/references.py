"""Public reference images that trials are compared with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pe_ray.files.image_tables import ImageTable, read_images
from pe_ray.tuning.search_config import PublicObjective, TuningConfig
from pe_ray.values import ImageShape


def read_reference(
    tuning: TuningConfig, shape: ImageShape
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Read images uint8 [n, h, w, c] and labels int32 [n] of the search's PUBLIC reference.

    Guarantee: none is needed. The configuration refuses the private data as a reference; whoever
    names other private data here publishes them.
    """
    source, objective = tuning.reference, tuning.objective
    assert source is not None, "checked with the configuration"
    own = isinstance(objective, PublicObjective) and objective.reference is not None
    table = ImageTable(
        block="tuning.objective.reference" if own else "tuning.public_data",
        private=False,
        data=source.data,
        labels=source.labels,
        image_column=source.image_column,
        label_column=source.label_column,
        where=source.where,
    )
    return read_images(table, shape)
