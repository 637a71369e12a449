"""Read image tables: decode the rows that count, a batch at a time."""

from __future__ import annotations

import tarfile
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from json import JSONDecodeError
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pe_ray.errors import InputError
from pe_ray.files import images
from pe_ray.files.image_shards import LAYOUTS, list_shards
from pe_ray.files.image_tables import ImageTable, TableSlice
from pe_ray.files.label_names import find_name
from pe_ray.files.layouts.columns import Rows
from pe_ray.values import Framing

_BATCH_ROWS = 64  # decoded at a time: a photograph of 12 megapixels takes 36 MB
_COUNTED_ROWS = 65_536  # read at a time where no image is read


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageBatch:
    """Decoded rows of a slice.

    images: uint8 [n, height, width, channels]. labels: int32 [n], positions in the table's labels,
    -1 if it has none. names: what the stored labels stand for, None without a column. users: as
    stored, None without a column. rows: int64 [n], their numbers in the shard.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int32]
    names: list[str | None]
    users: list[Any]
    rows: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBatch:
    """Rows of a slice as they are stored; `names`, `users` and `rows` as in ImageBatch.

    cells: images, not decoded. labels: as stored, None without a column.
    """

    cells: list[Any]
    labels: list[Any]
    names: list[str | None]
    users: list[Any]
    rows: NDArray[np.int64]


def count_images(table: ImageTable, shards: Sequence[TableSlice]) -> list[int]:
    """Count the rows of each shard that pass `where`; InputError if there is none."""
    tested = [name for name in table.where if any(name not in s.folder_values for s in shards)]
    if not tested:
        return [shard.stop - shard.start for shard in shards]
    counts = []
    for shard in shards:
        with _report_damage(table, shard):
            found = _read_rows(table, shard, tested, _COUNTED_ROWS)
            counts.append(sum(len(_select(table, shard, *rows)) for rows in found))
    if not any(counts):
        raise table.refuse(f"keeps no row of {table.data}; correct it", "where")
    return counts


def read_batches(
    table: ImageTable, part: TableSlice, framing: Framing, wanted: NDArray[np.int64] | None = None
) -> Iterator[ImageBatch]:
    """Decode the rows that `read_stored_rows` yields.

    Guarantee: errors of a private table carry no content (see ImageTable).
    """
    for stored in read_stored_rows(table, part, wanted):
        yield ImageBatch(
            images=_decode(table, part, stored, framing),
            labels=_match_labels(table, part, stored),
            names=stored.names,
            users=stored.users,
            rows=stored.rows,
        )


def read_stored_rows(
    table: ImageTable, part: TableSlice, wanted: NDArray[np.int64] | None = None
) -> Iterator[StoredBatch]:
    """Read the rows of a slice that pass `where`, in order, at most 64 at a time; decode none.

    wanted: ascending positions among these rows, of those to read; None for all.

    Guarantee: errors of a private table carry no content (see ImageTable).
    """
    columns = (table.image_column, table.label_column, table.user_column, *table.where)
    read = [name for name in dict.fromkeys(columns) if name is not None]
    first = 0
    with _report_damage(table, part):
        for rows, found in _read_rows(table, part, read, _BATCH_ROWS):
            chosen = _select(table, part, rows, found)
            if wanted is not None:
                low, high = np.searchsorted(wanted, [first, first + len(chosen)])
                first, chosen = first + len(chosen), chosen[wanted[low:high] - first]
            if len(chosen):
                cells, labels, users = (_take(part, name, found, chosen) for name in columns[:3])
                names = [find_name(table, label, part.class_names) for label in labels]
                yield StoredBatch(
                    cells=cells, labels=labels, names=names, users=users, rows=rows[chosen]
                )


def read_images(
    table: ImageTable, framing: Framing, max_images: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Read all images, or at most `max_images` evenly spaced ones.

    Returns images uint8 [n, h, w, c] and labels int32 [n] (see ImageBatch).
    """
    found = [(batch.images, batch.labels) for batch in read_spaced(table, framing, max_images)]
    images, labels = zip(*found, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def read_spaced(
    table: ImageTable, framing: Framing, max_images: int | None = None
) -> Iterator[ImageBatch]:
    """Read all images, or at most `max_images` evenly spaced ones, at most 64 at a time."""
    shards = list_shards(table)
    counts = count_images(table, shards)
    total = sum(counts)
    wanted = evenly_spaced(total, total if max_images is None else max_images)
    first = 0
    for shard, count in zip(shards, counts, strict=True):
        low, high = np.searchsorted(wanted, [first, first + count])
        yield from read_batches(table, shard, framing, wanted[low:high] - first)
        first += count


def evenly_spaced(num: int, at_most: int) -> NDArray[np.int64]:
    """Choose at most `at_most` of the rows 0..num-1, spread out because sets are in label order."""
    chosen = min(num, at_most)
    return np.arange(chosen, dtype=np.int64) * num // max(1, chosen)


@contextmanager
def _report_damage(table: ImageTable, part: TableSlice) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (OSError, pa.ArrowException, UnicodeError, JSONDecodeError, tarfile.TarError) as error:
        raise table.damage_error(part, error) from None


def _read_rows(
    table: ImageTable, part: TableSlice, columns: Sequence[str], batch_rows: int
) -> Iterator[Rows]:
    rows: Iterator[Rows] = LAYOUTS[part.layout].read_rows(table, part, columns, batch_rows)
    return rows


def _select(
    table: ImageTable, part: TableSlice, rows: NDArray[np.int64], found: Mapping[str, Sequence[Any]]
) -> NDArray[np.int64]:
    """Return the positions of rows that pass `where`; what folders say was tested before."""
    keep = np.ones(len(rows), dtype=np.bool_)
    for name, value in table.where.items():
        if name in found:
            keep &= [cell == value for cell in found[name]]
    return np.flatnonzero(keep)


def _take(
    part: TableSlice,
    name: str | None,
    found: Mapping[str, Sequence[Any]],
    chosen: NDArray[np.int64],
) -> list[Any]:
    """Return a column's chosen values: what is stored, or what folders say; None without one."""
    if name is None:
        return [None] * len(chosen)
    if name in found:
        return [found[name][i] for i in chosen]
    return [part.folder_values[name]] * len(chosen)


def _decode(
    table: ImageTable, part: TableSlice, stored: StoredBatch, framing: Framing
) -> NDArray[np.uint8]:
    shape, rows = framing.shape, stored.rows
    decoded = np.empty((len(rows), shape.height, shape.width, shape.channels), dtype=np.uint8)
    for position, (row, cell) in enumerate(zip(rows.tolist(), stored.cells, strict=True)):
        try:
            decoded[position] = images.frame_image(cell, framing)
        except images.Unusable as error:
            raise table.row_error(part, row, error.reason) from None
    return decoded


def _match_labels(table: ImageTable, part: TableSlice, stored: StoredBatch) -> NDArray[np.int32]:
    matched = find_labels(table, stored.names)
    if table.labels is not None and -1 in matched:
        first = matched.tolist().index(-1)
        reason = explain_label(table, stored.names[first], stored.labels[first])
        raise table.row_error(part, int(stored.rows[first]), reason)
    return matched


def find_labels(table: ImageTable, names: Sequence[str | None]) -> NDArray[np.int32]:
    """Return the positions of names in the table's labels; -1 for what isn't among them."""
    if table.labels is None or table.label_column is None:
        return np.full(len(names), -1 if table.labels is None else 0, dtype=np.int32)
    positions = {unicodedata.normalize("NFC", name): i for i, name in enumerate(table.labels)}
    return np.array([positions.get(name or "", -1) for name in names], dtype=np.int32)


def explain_label(table: ImageTable, name: str | None, label: Any) -> str:
    """Say that a label is not among the table's; quote it unless the table is private."""
    shown = label if name is None else name
    which = "label" if table.private else f"label {shown!r}"
    return f"{which} is not one of {table.name_field('labels')}"
