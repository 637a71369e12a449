"""All records of a slice at once, where a test has no need of batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pe_ray.config.blocks import PrivateConfig
from pe_ray.files.image_batches import ImageBatch
from pe_ray.files.image_shards import split_shards
from pe_ray.files.image_tables import TableSlice
from pe_ray.private.records import find_records, read_records
from pe_ray.values import Framing, ImageShape


def list_slices(config: PrivateConfig) -> list[TableSlice]:
    """Share the records out to slices, as a run does."""
    return split_shards(find_records(config).shards)


def read_slice(part: TableSlice, config: PrivateConfig, shape: ImageShape) -> ImageBatch:
    """Read the batches of a slice, which has at least one record, into one."""
    framing = Framing(shape=shape, resize=config.resize, background=config.background)
    batches = list(read_records(part, config, framing))
    return replace(
        batches[0],
        images=np.concatenate([batch.images for batch in batches]),
        labels=np.concatenate([batch.labels for batch in batches]),
        rows=np.concatenate([batch.rows for batch in batches]),
    )
