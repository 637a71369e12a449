"""Tables of images: private records, public images and references are all read here.

A table is a parquet file, a folder of them, a folder of images per class, or `sklearn:digits`.
Its files are local or in a store. Private and public tables differ only in what an error may say.
"""

from __future__ import annotations

import itertools
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pe_ray.errors import InputError, RecordError
from pe_ray.files import images
from pe_ray.files.storage import (
    Location,
    io_errors_as_input_errors,
    list_paths_below,
    open_seekable,
    resolve_place,
)
from pe_ray.values import ImageShape

DIGITS = "sklearn:digits"
_BATCH_ROWS = 64  # decoded at a time: a photograph of 12 megapixels takes 36 MB
_COUNTED_ROWS = 65_536  # read at a time where no image is read


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTable:
    """Where images are stored, what their columns mean, and what an error may say about them.

    block: block of the configuration, with which the field in an error begins.
    private: whether errors must carry no content. They then name a shard, a row and a fixed
    reason, but no stored value, class folder or image file.
    labels: names of all labels. None: labels stay as they are stored.
    label_column: None if there are no labels; each row then has the only one of `labels`.
    where: column -> value. Rows with another value are skipped.
    fields: option -> field that an error names, where it is not in `block`.
    """

    block: str
    private: bool
    data: str
    labels: tuple[str, ...] | None = None
    image_column: str = "image"
    label_column: str | None = "label"
    user_column: str | None = None
    where: Mapping[str, str | int | bool] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)

    def name_field(self, option: str) -> str:
        """Return the full name of an option."""
        return self.fields.get(option, f"{self.block}.{option}")

    def row_error(self, part: TableSlice, row: int, reason: str) -> InputError:
        """Return the error for a row; a private table's `reason` must be one of a fixed few."""
        where = f"shard {part.shard}, row {row}" if self.private else part.place(row)
        kind = RecordError if self.private else InputError
        return kind(f"{self.name_field('data')}: {where}: {reason}; correct or remove it")

    def damage_error(self, part: TableSlice, error: Exception) -> InputError:
        """Return the error for a slice that can't be read; `error` may quote what is stored."""
        if self.private:
            where = f"{self.name_field('data')}: shard {part.shard}"
            return RecordError(
                f"{where} can't be read ({type(error).__name__}): it is damaged; copy it again"
            )
        reason = " ".join(str(error).split())[:200]
        return InputError(f"{self.name_field('data')}: {part.source} can't be read ({reason})")


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSlice:
    """Rows start..stop-1 of a shard, which is a parquet file or the images of one folder.

    source: the file or folder; None for the digits.
    label: the class folder's name; None in a file, and for images outside the class folders.
    files: packed names of a folder's images in these rows. A folder is listed only once, since
    that takes seconds for a large one.
    """

    shard: int
    source: Location | None
    start: int
    stop: int
    label: str | None = None
    files: bytes = field(default=b"", repr=False)

    @property
    def paths(self) -> list[Location]:
        """Return the images of a folder, or the parquet file."""
        if self.source is None:
            return []
        if not self.files:
            return [self.source]
        return [self.source / name for name in _unpack(self.files)]

    def place(self, row: int) -> str:
        """Say where a row of a public table is."""
        return str(self.paths[row - self.start]) if self.files else f"{self.source}, row {row}"


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


def list_shards(table: ImageTable) -> list[TableSlice]:
    """List the files or class folders of a table, each whole; at least one row in all.

    Guarantee: reads names, sizes and schemas, but no row.
    """
    if table.data == DIGITS:
        from sklearn.datasets import load_digits

        _refuse_columns(table)
        return [TableSlice(shard=0, source=None, start=0, stop=len(load_digits().target))]
    path = resolve_place(table.data, table.name_field("data"))
    with io_errors_as_input_errors(table.name_field("data"), path):
        if not path.exists():
            raise InputError(f"{table.name_field('data')}: {table.data} does not exist")
        names = [] if path.is_file() else list_paths_below(path)
        files = [path / name for name in names if name.endswith(".parquet")]
        if path.is_file():
            files = [path]
        shards = _list_files(table, files) if files else _list_classes(table, path, names)
    if not shards:
        raise InputError(f"{table.name_field('data')}: {table.data} holds no image")
    return shards


def split_shards(shards: Sequence[TableSlice]) -> list[TableSlice]:
    """Split shards into about 8 slices or more, each of at most 8192 rows."""
    total = sum(shard.stop for shard in shards)
    step = min(8192, max(256, -(-total // 8)))
    slices = []
    for shard in shards:
        names = _unpack(shard.files)
        for start in range(0, shard.stop, step):
            stop = min(start + step, shard.stop)
            files = _pack(names[start:stop])
            slices.append(replace(shard, start=start, stop=stop, files=files))
    return slices


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


def _list_files(table: ImageTable, files: Sequence[Location]) -> list[TableSlice]:
    counts = [_count_stored(table, file) for file in files]
    return [
        TableSlice(shard=shard, source=file, start=0, stop=count)
        for shard, (file, count) in enumerate(zip(files, counts, strict=True))
        if count
    ]


def _count_stored(table: ImageTable, file: Location) -> int:
    """Return the rows of a parquet file, from its footer, if it has the columns."""
    try:
        with pq.ParquetFile(open_seekable(file)) as parquet:
            num_rows, schema = parquet.metadata.num_rows, parquet.schema_arrow
    except (OSError, pa.ArrowException, UnicodeError):
        raise InputError(
            f"{table.name_field('data')}: {file} is not a readable parquet file"
        ) from None
    _check_columns(table, file, schema)
    return int(num_rows)


def _check_columns(table: ImageTable, file: Location, schema: pa.Schema) -> None:
    where = table.name_field("where")
    names = {option: getattr(table, option) for option in ("label_column", "user_column")}
    named = {table.name_field(option): name for option, name in names.items() if name is not None}
    tested = {f"{where}.{name}": name for name in table.where}
    image = {table.name_field("image_column"): table.image_column}
    for option, name in {**image, **named, **tested}.items():
        if schema.names.count(name) != 1:
            raise InputError(
                f"{option}: {name!r} is not in {file}; columns are {', '.join(schema.names)}"
            )
    reason = images.explain_unsupported(schema.field(table.image_column).type)
    if reason is not None:
        raise InputError(f"{table.name_field('image_column')}: {table.image_column!r} {reason}")
    for option, name in named.items():
        kind = _plain(schema.field(name).type)
        # Files may write another type differently (7.0 for 7), or run code when it is read.
        if not (pa.types.is_integer(kind) or _is_string(kind)):
            raise InputError(f"{option}: holds {kind}; use integers or strings")
    tests = {bool: pa.types.is_boolean, int: pa.types.is_integer, str: _is_string}
    for name, value in table.where.items():
        kind = _plain(schema.field(name).type)
        if not tests[type(value)](kind):
            raise InputError(f"{where}.{name}: {value!r} is not of the column's type, {kind}")


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _refuse_columns(table: ImageTable) -> None:
    for option in ("user_column", "where"):
        if getattr(table, option):
            raise InputError(
                f"{table.name_field(option)}: {table.data} has no columns; only parquet files have"
            )


def _list_classes(table: ImageTable, root: Location, names: Sequence[str]) -> list[TableSlice]:
    """List a folder of images: folders at its top are the classes, and may be links."""
    if isinstance(root, Path):
        links = [entry for entry in root.iterdir() if entry.is_symlink() and entry.is_dir()]
        linked = [f"{link.name}/{name}" for link in links for name in list_paths_below(link)]
        names = sorted([*names, *linked], key=lambda name: name.replace("/", "\0"))
    shards: list[TableSlice] = []
    for label, group in itertools.groupby(names, _class_folder):
        below = [name if label is None else name.removeprefix(f"{label}/") for name in group]
        found = [name for name in below if images.is_image(name)]
        if not _counts(table, label, below, found):
            continue
        shards.append(
            TableSlice(
                shard=len(shards),
                source=root if label is None else root / label,
                start=0,
                stop=len(found),
                label=label,
                files=_pack(found),
            )
        )
    if not shards:
        raise InputError(
            f"{table.name_field('data')}: {table.data} holds neither .parquet files nor images"
        )
    _refuse_columns(table)
    return shards


def _class_folder(name: str) -> str | None:
    folder, separator, _ = name.partition("/")
    return folder if separator else None


def _counts(
    table: ImageTable, label: str | None, below: Sequence[str], found: Sequence[str]
) -> bool:
    """Whether the images `found` among the files `below` of a folder are rows of the table."""
    data, labels, known = table.name_field("data"), table.name_field("labels"), table.labels or ()
    if label is None:
        if found and known and not table.private:
            raise InputError(
                f"{data}: an image has no label of {labels}; move it into a class folder, or set "
                f"{table.name_field('label_column')}: null"
            )
        return bool(found) and not table.private
    if label.startswith(".") and label not in known:
        return False
    if known and label not in known and (found or table.private):
        which = "a class folder" if table.private else f"the folder {label!r}"
        raise InputError(f"{labels}: {which} of {data} is not among them")
    if label in known and not found and any(name[0] != "." for name in below):
        raise InputError(
            f"{data}: the folder of label {label!r} holds no image; convert what it holds "
            f"({', '.join(sorted(images.SUFFIXES))} are read), or empty it"
        )
    return bool(found)


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


def _pack(names: Sequence[str]) -> bytes:
    """Compress names; most differ by a number only, so each takes a few bytes."""
    return zlib.compress(os.fsencode("\0".join(names)), 1) if names else b""


def _unpack(packed: bytes) -> list[str]:
    return os.fsdecode(zlib.decompress(packed)).split("\0") if packed else []
