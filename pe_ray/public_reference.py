"""Public images, read to stand beside synthetic ones: parquet, or a folder of images per class.

Never for private records: errors quote names and labels, and nothing here bounds who sees what.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from pe_ray import images
from pe_ray.errors import InputError
from pe_ray.values import ImageShape

_READ_ROWS = 64  # decoded at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicSource:
    """Where public images are.

    field: the configuration's block, for errors. labels: names in order. label_column: None where
    the images have no labels.
    """

    field: str
    data: str
    labels: tuple[str, ...]
    image_column: str = "image"
    label_column: str | None = "label"
    where: Mapping[str, str | int | bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicImages:
    """images uint8 [n, h, w, c]; labels int32 [n], -1 where there is none."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int32]


def evenly_spaced(num: int, at_most: int) -> NDArray[np.int64]:
    """At most `at_most` of the rows 0..num-1: sets are often in label order."""
    chosen = min(num, at_most)
    return np.arange(chosen, dtype=np.int64) * num // max(1, chosen)


def count_public(source: PublicSource) -> int:
    """Number of images, at least 1; decodes none. InputError names the field that is wrong."""
    path = Path(source.data)
    if not path.exists():
        raise InputError(f"{source.field}.data: {source.data} does not exist")
    if _parquet_files(path):
        dataset, keep = _dataset(source)
        try:
            count = int(dataset.count_rows(filter=keep))
        except pa.ArrowException as error:
            raise InputError(
                f"{source.field}: can't be read ({' '.join(str(error).split())[:200]})"
            ) from None
    else:
        count = len(_files(source))
    if not count:
        raise InputError(f"{source.field}: {source.data} holds no image that passes `where`")
    return count


def read_public(source: PublicSource, shape: ImageShape, max_images: int) -> PublicImages:
    """At most `max_images` of the images, evenly spaced, brought to `shape`.

    Holds these and a few more, never the whole set.
    """
    wanted = evenly_spaced(count_public(source), max_images)
    read, labels = [], []
    for row, cell, label in _chosen(source, wanted):
        try:
            image = images.pixels(cell, shape.channels)
        except images.Unusable as error:
            raise InputError(f"{source.field}.data: image {row}: {error.reason}") from None
        read.append(images.resized(image, shape))
        labels.append(_position(label, source))
    return PublicImages(images=np.stack(read), labels=np.array(labels, dtype=np.int32))


def _chosen(source: PublicSource, wanted: NDArray[np.int64]) -> Iterator[tuple[int, Any, Any]]:
    """(row, image as it is stored, label) of the rows `wanted`, which ascend."""
    if not _parquet_files(Path(source.data)):
        files = _files(source)
        for row in wanted:
            folder, file = files[row]
            yield int(row), file.read_bytes(), folder
        return
    dataset, keep = _dataset(source)
    names = [name for name in (source.image_column, source.label_column) if name is not None]
    first = 0
    for batch in dataset.to_batches(
        columns=names, filter=keep, batch_size=_READ_ROWS, batch_readahead=1, fragment_readahead=1
    ):
        low, high = np.searchsorted(wanted, [first, first + batch.num_rows])
        if low < high:
            taken = batch.take(pa.array(wanted[low:high] - first))
            cells = images.values_of(taken.column(source.image_column))
            labels: Sequence[Any] = [None] * len(cells)
            if source.label_column is not None:
                labels = taken.column(source.label_column).to_pylist()
            yield from zip(wanted[low:high].tolist(), cells, labels, strict=True)
        first += batch.num_rows


def _position(label: Any, source: PublicSource) -> int:
    if source.label_column is None:
        return -1
    position = images.label_position(label, source.labels)
    if position is None:
        raise InputError(
            f"{source.field}: the label {label!r} is not one of private.labels; leave those images "
            "out by `where`, or set label_column: null"
        )
    return position


def _parquet_files(path: Path) -> list[str]:
    return [str(path)] if path.is_file() else sorted(map(str, path.rglob("*.parquet")))


def _dataset(source: PublicSource) -> tuple[ds.Dataset, pc.Expression | None]:
    """The rows, and which of them to keep."""
    try:
        dataset = ds.dataset(_parquet_files(Path(source.data)), format="parquet", partitioning=None)
    except (OSError, pa.ArrowException):
        raise InputError(f"{source.field}.data: {source.data} is not readable parquet") from None
    columns = {"image_column": source.image_column, "label_column": source.label_column}
    columns |= {f"where.{name}": name for name in source.where}
    for field, name in columns.items():
        if name is not None and dataset.schema.names.count(name) != 1:
            raise InputError(
                f"{source.field}.{field}: {name!r} is not in the data; columns are "
                f"{', '.join(dataset.schema.names)}"
            )
    reason = images.unsupported(dataset.schema.field(source.image_column).type)
    if reason is not None:
        raise InputError(f"{source.field}.image_column: {source.image_column!r} {reason}")
    keep = None
    for name, value in source.where.items():
        equal = pc.field(name) == value
        keep = equal if keep is None else keep & equal
    return dataset, keep


def _files(source: PublicSource) -> list[tuple[str, Path]]:
    """(class, image file) of a folder of images per class, in a fixed order."""
    if source.where:
        raise InputError(f"{source.field}.where: image folders have no columns")
    path = Path(source.data)
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir())
    return [(folder.name, file) for folder in folders for file in images.image_files(folder)]
