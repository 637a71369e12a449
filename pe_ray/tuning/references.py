"""Public reference images. The readers are those of private records; the records are not private.

`tuning.config` refuses a reference that is the private data.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pe_ray.errors import InputError
from pe_ray.private.evaluation import read_images
from pe_ray.tuning.search_config import PublicObjective, TuningConfig
from pe_ray.values import ImageShape


def public_images(
    tuning: TuningConfig, shape: ImageShape
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Images uint8 [n, h, w, c] and labels int32 [n] of the search's PUBLIC reference.

    Guarantee: none is needed; whoever names private data here publishes them.
    """
    source, objective = tuning.reference, tuning.objective
    assert source is not None, "checked with the configuration"
    own = isinstance(objective, PublicObjective) and objective.reference is not None
    block = "tuning.objective.reference" if own else "tuning.public_data"
    try:
        images, labels = read_images(source.model_copy(update={"user_column": None}), shape)
    except InputError as error:
        raise InputError(str(error).replace("private.", f"{block}.", 1)) from None
    if not len(images):
        raise InputError(f"{block}.where: keeps no record to compare with; mend its values")
    return images, labels
