"""Read image tables: decode the rows that count, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pe_ray.errors import InputError
from pe_ray.files import images
from pe_ray.files.image_tables import ImageTable, TableSlice, list_shards
from pe_ray.files.storage import open_seekable
from pe_ray.values import ImageShape

_BATCH_ROWS = 64  # decoded at a time: a photograph of 12 megapixels takes 36 MB
_COUNTED_ROWS = 65_536  # read at a time where no image is read


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageBatch:
    """Decoded rows of a slice.

    images: uint8 [height, width, channels] each. labels: int32, positions in the table's labels,
    -1 if it has none. stored_labels, users: as stored, None without a column. rows: int64, their
    numbers in the shard.
    """

    images: list[NDArray[np.uint8]]
    labels: NDArray[np.int32]
    stored_labels: list[Any]
    users: list[Any]
    rows: NDArray[np.int64]


def count_images(table: ImageTable, shards: Sequence[TableSlice]) -> list[int]:
    """Count the rows of each shard that pass `where`; InputError if there is none."""
    if not table.where:
        return [shard.stop - shard.start for shard in shards]
    counts = []
    for shard in shards:
        try:
            scan = _scan_parquet(table, shard, [], _COUNTED_ROWS)
            counts.append(sum(int(keep.sum()) for _, keep, _ in scan))
        except (OSError, pa.ArrowException, UnicodeError) as error:
            raise table.damage_error(shard, error) from None
    if not any(counts):
        raise InputError(f"{table.name_field('where')}: keeps no row of {table.data}; correct it")
    return counts


def read_batches(
    table: ImageTable, part: TableSlice, channels: int, wanted: NDArray[np.int64] | None = None
) -> Iterator[ImageBatch]:
    """Decode the rows of a slice that pass `where`, in order, at most 64 at a time.

    wanted: ascending positions among these rows, of those to decode; None for all.

    Guarantee: errors of a private table carry no content (see ImageTable).
    """
    first = 0
    try:
        for rows, kept, *columns in _read_stored(table, part):
            chosen = kept
            if wanted is not None:
                low, high = np.searchsorted(wanted, [first, first + len(kept)])
                chosen = kept[wanted[low:high] - first]
                first += len(kept)
            if len(chosen):
                # Not by Arrow: its `take` on a slice of nested fixed-size lists (tensors) returns
                # other rows' values (pyarrow 26).
                cells, labels, users = ([column[i] for i in chosen] for column in columns)
                yield ImageBatch(
                    images=_decode(table, part, rows[chosen], cells, channels),
                    labels=_match_labels(table, part, rows[chosen], labels),
                    stored_labels=labels,
                    users=users,
                    rows=rows[chosen],
                )
    except (OSError, pa.ArrowException, UnicodeError) as error:
        raise table.damage_error(part, error) from None


def read_images(
    table: ImageTable, shape: ImageShape, max_images: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Read all images, or at most `max_images` evenly spaced ones, resized to `shape`.

    Returns images uint8 [n, h, w, c] and labels int32 [n] (see ImageBatch).
    """
    shards = list_shards(table)
    counts = count_images(table, shards)
    total = sum(counts)
    wanted = evenly_spaced(total, total if max_images is None else max_images)
    found, labels, first = [], [], 0
    for shard, count in zip(shards, counts, strict=True):
        low, high = np.searchsorted(wanted, [first, first + count])
        for batch in read_batches(table, shard, shape.channels, wanted[low:high] - first):
            found += [images.resize(image, shape) for image in batch.images]
            labels.append(batch.labels)
        first += count
    return np.stack(found), np.concatenate(labels)


def evenly_spaced(num: int, at_most: int) -> NDArray[np.int64]:
    """Choose at most `at_most` of the rows 0..num-1, spread out because sets are in label order."""
    chosen = min(num, at_most)
    return np.arange(chosen, dtype=np.int64) * num // max(1, chosen)


def _decode(
    table: ImageTable,
    part: TableSlice,
    rows: NDArray[np.int64],
    cells: Sequence[Any],
    channels: int,
) -> list[NDArray[np.uint8]]:
    decoded = []
    for row, cell in zip(rows.tolist(), cells, strict=True):
        try:
            decoded.append(images.decode_image(cell, channels))
        except images.Unusable as error:
            raise table.row_error(part, row, error.reason) from None
    return decoded


def _match_labels(
    table: ImageTable, part: TableSlice, rows: NDArray[np.int64], labels: Sequence[Any]
) -> NDArray[np.int32]:
    if table.labels is None or table.label_column is None:
        return np.full(len(rows), -1 if table.labels is None else 0, dtype=np.int32)
    positions = []
    for row, label in zip(rows.tolist(), labels, strict=True):
        position = images.label_position(label, table.labels)
        if position is None:
            which = "label" if table.private else f"label {label!r}"
            raise table.row_error(part, row, f"{which} is not one of {table.name_field('labels')}")
        positions.append(position)
    return np.array(positions, dtype=np.int32)


def _read_stored(table: ImageTable, part: TableSlice) -> Iterator[tuple[Any, ...]]:
    """Yield row numbers, positions of those that count, and images, labels, users as stored."""
    if part.source is not None and not part.files:
        yield from _read_parquet(table, part)
        return
    stored: Sequence[Any] = part.paths
    labels: list[Any] = [part.label] * len(stored)
    if part.source is None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        stored = np.round(digits.images[part.start : part.stop] * (255.0 / 16.0)).astype(np.uint8)
        labels = digits.target[part.start : part.stop].tolist()
    for first in range(0, len(stored), _BATCH_ROWS):
        span = slice(first, first + _BATCH_ROWS)
        cells = stored[span]
        if part.source is not None:
            cells = [images.read_content(file) for file in cells]
        kept = np.arange(len(cells), dtype=np.int64)
        yield part.start + first + kept, kept, cells, labels[span], [None] * len(cells)


def _read_parquet(table: ImageTable, part: TableSlice) -> Iterator[tuple[Any, ...]]:
    columns = (table.image_column, table.label_column, table.user_column)
    read = [name for name in columns if name is not None]
    for rows, keep, batch in _scan_parquet(table, part, read, _BATCH_ROWS):
        cells = images.list_stored(batch.column(table.image_column))
        labels, users = (
            [None] * len(rows) if name is None else batch.column(name).to_pylist()
            for name in columns[1:]
        )
        yield rows, np.flatnonzero(keep), cells, labels, users


def _scan_parquet(
    table: ImageTable, part: TableSlice, columns: Sequence[str], batch_rows: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_], pa.RecordBatch]]:
    """Yield row numbers, which of these rows count, and the columns read, batch by batch.

    Rows count if they are in the slice and pass `where`; batches without such a row are skipped.
    """
    assert part.source is not None
    read = sorted({*columns, *table.where})
    with pq.ParquetFile(open_seekable(part.source)) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        edges = np.concatenate([[0], np.cumsum(sizes)])
        groups = np.flatnonzero((edges[:-1] < part.stop) & (edges[1:] > part.start))
        first = int(edges[groups[0]])
        for batch in file.iter_batches(batch_rows, row_groups=groups.tolist(), columns=read):
            rows = np.arange(first, first + batch.num_rows)
            first += batch.num_rows
            keep = (rows >= part.start) & (rows < part.stop)
            for name, value in table.where.items():
                keep = keep & [cell == value for cell in batch.column(name).to_pylist()]
            if keep.any():
                yield rows, keep, batch
            if first >= part.stop:
                return
    raise pa.ArrowInvalid("fewer rows than the file's footer says")
