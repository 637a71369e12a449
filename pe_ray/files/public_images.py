"""Public image sets on disk: parquet files, or a folder of images whose folders are the classes.

Never for private records: errors quote names and labels, and nothing here bounds who sees what.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pe_ray.errors import InputError
from pe_ray.files import images
from pe_ray.files.storage import at_home, names_below, reported
from pe_ray.values import ImageShape

_READ_ROWS = 64  # decoded at a time, as photographs of 12 megapixels take 36 MB each


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicSource:
    """Where public images are.

    block: of the configuration, for errors. label_column: None where the images have no labels.
    where: column -> value; rows with other values are passed over.
    """

    block: str
    data: str
    image_column: str = "image"
    label_column: str | None = "label"
    where: Mapping[str, str | int | bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicImages:
    """images uint8 [n, h, w, c]; labels int32 [n], -1 where there is none."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int32]


PublicRow = tuple[str, Any, str | int | None]
"""Where it is (for errors), what is stored, its label: as stored, or its folder at the top."""


def files_of(source: PublicSource) -> list[Path]:
    """The source's files by sorted path: parquet, or, where there is none, images."""
    path = at_home(source.data)
    with reported(f"{source.block}.data", path):
        if not path.exists():
            raise InputError(f"{source.block}.data: {path} does not exist on this machine")
        if path.is_file():
            return [path]
        below = names_below(path)
    files = [path / name for name in below if name.endswith(".parquet")]
    files = files or [path / name for name in below if images.is_image(name)]
    if not files:
        raise InputError(f"{source.block}.data: {path} holds neither .parquet files nor images")
    return files


def count_images(source: PublicSource) -> int:
    """Number of images, at least 1; decodes none. InputError names the field that is wrong."""
    files = files_of(source)
    if _is_folder_of_images(source, files):
        count = len(files)
    else:
        count = sum(_count(source, file) for file in files)
    if not count:
        passes = " that passes `where`" if source.where else ""
        raise InputError(f"{source.block}.data: {source.data} holds no image{passes}")
    return count


def check_public(source: PublicSource, names: Sequence[str]) -> None:
    """Raise InputError where the images can't be there, or a folder is none of `names`."""
    count_images(source)
    files = files_of(source)
    if source.label_column is not None and _is_folder_of_images(source, files):
        for label in dict.fromkeys(_folder(source, file) for file in files):
            _position(source, label, names)


def image_rows(
    source: PublicSource, wanted: NDArray[np.int64] | None = None
) -> Iterator[PublicRow]:
    """The images in the order of `files_of`, and in each file's order; nothing is decoded.

    wanted: ascending numbers in this order of those to give; None: all.
    """
    files = files_of(source)
    if _is_folder_of_images(source, files):
        for number in range(len(files)) if wanted is None else wanted:
            file = files[number]
            yield str(file), images.content(file), _folder(source, file)
        return
    names = [name for name in (source.image_column, source.label_column) if name is not None]
    first = 0
    for file in files:
        for row, batch in _batches(source, file, names):
            chosen = np.arange(batch.num_rows)
            if wanted is not None:
                low, high = np.searchsorted(wanted, [first, first + batch.num_rows])
                chosen = wanted[low:high] - first
            first += batch.num_rows
            if len(chosen):
                yield from _cells(source, file, row[chosen], batch.take(pa.array(chosen)))


def evenly_spaced(num: int, at_most: int) -> NDArray[np.int64]:
    """At most `at_most` of the rows 0..num-1: sets are often in label order."""
    chosen = min(num, at_most)
    return np.arange(chosen, dtype=np.int64) * num // max(1, chosen)


def read_public(
    source: PublicSource, names: Sequence[str], shape: ImageShape, max_images: int
) -> PublicImages:
    """At most `max_images` of the images, evenly spaced, brought to `shape`; labels are `names`.

    Holds these and a few more, never the whole set.
    """
    wanted = evenly_spaced(count_images(source), max_images)
    read, labels = [], []
    for where, stored, label in image_rows(source, wanted):
        read.append(images.resized(decoded(source, where, stored, shape.channels), shape))
        labels.append(-1 if source.label_column is None else _position(source, label, names))
    return PublicImages(images=np.stack(read), labels=np.array(labels, dtype=np.int32))


def decoded(source: PublicSource, where: str, stored: Any, channels: int) -> NDArray[np.uint8]:
    """The image that a row of `image_rows` stores, uint8 [h, w, channels]."""
    try:
        return images.pixels(stored, channels)
    except images.Unusable as error:
        raise InputError(
            f"{source.block}.data: {where}: {error.reason}; mend or remove it"
        ) from None


def _position(source: PublicSource, label: Any, names: Sequence[str]) -> int:
    position = images.label_position(label, names)
    if position is None:
        which = "an image has no label" if label is None else f"the label {label!r} is not one"
        raise InputError(
            f"{source.block}.data: {which} of private.labels; leave those images out, or set "
            "label_column: null"
        )
    return position


def _is_folder_of_images(source: PublicSource, files: Sequence[Path]) -> bool:
    if files[0].suffix.lower() not in images.SUFFIXES:
        return False
    if source.where:
        raise InputError(f"{source.block}.where: image folders have no columns")
    return True


def _folder(source: PublicSource, file: Path) -> str | None:
    """The image's folder at the top; None where it is in none."""
    below = file.relative_to(source.data).parts
    return below[0] if len(below) > 1 else None


def _count(source: PublicSource, file: Path) -> int:
    """Rows of a parquet file that pass `where`."""
    if not source.where:
        with _opened(source, file) as parquet:
            return int(parquet.metadata.num_rows)
    return sum(batch.num_rows for _, batch in _batches(source, file, []))


def _batches(
    source: PublicSource, file: Path, names: Sequence[str]
) -> Iterator[tuple[NDArray[np.int64], pa.RecordBatch]]:
    """(row numbers in the file, columns `names` of them) of the rows that pass `where`."""
    read = list(dict.fromkeys([*names, *source.where]))
    first = 0
    with _opened(source, file) as parquet:
        try:
            for batch in parquet.iter_batches(_READ_ROWS if names else 65_536, columns=read):
                keep = pa.array(np.ones(batch.num_rows, dtype=bool))
                for name, value in source.where.items():
                    keep = pc.and_(keep, pc.fill_null(pc.equal(batch.column(name), value), False))
                rows = first + np.flatnonzero(keep.to_numpy(zero_copy_only=False))
                first += batch.num_rows
                yield rows, batch.filter(keep)
        except (OSError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{source.block}: {file} can't be read ({reason})") from None


def _opened(source: PublicSource, file: Path) -> pq.ParquetFile:
    """The file, if it has the columns asked for."""
    try:
        parquet = pq.ParquetFile(file)
    except (OSError, pa.ArrowException):
        raise InputError(f"{source.block}.data: {file} is not readable parquet") from None
    schema = parquet.schema_arrow
    columns = {"image_column": source.image_column, "label_column": source.label_column}
    columns |= {f"where.{name}": name for name in source.where}
    for option, name in columns.items():
        if name is not None and schema.names.count(name) != 1:
            raise InputError(
                f"{source.block}.{option}: {name!r} is not in {file}; columns are "
                f"{', '.join(schema.names)}"
            )
    reason = images.unsupported(schema.field(source.image_column).type)
    if reason is not None:
        raise InputError(f"{source.block}.image_column: {source.image_column!r} {reason}")
    return parquet


def _cells(
    source: PublicSource, file: Path, rows: NDArray[np.int64], batch: pa.RecordBatch
) -> Iterator[PublicRow]:
    labels: Sequence[Any] = [None] * batch.num_rows
    if source.label_column is not None:
        labels = batch.column(source.label_column).to_pylist()
    cells = images.values_of(batch.column(source.image_column))
    for row, cell, label in zip(rows.tolist(), cells, labels, strict=True):
        yield f"{file}, row {row}", cell, label
