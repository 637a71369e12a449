"""Sources of private records: what one task reads, decoded and validated."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pe_ray.config.blocks import PrivateConfig
from pe_ray.errors import InputError, RecordError
from pe_ray.files import images
from pe_ray.files.storage import Location, files_below, location, names_below, reported, seekable

DIGITS = "sklearn:digits"
_READ_ROWS = 64  # decoded at a time: photographs of 12 megapixels take 36 MB each


class SourceError(InputError):
    """A file of records is damaged; says which shard, and nothing that it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateSlice:
    """What one task reads: rows start..stop-1 of shard `shard` (a file, or a class folder).

    files: of a class folder, the names of these rows' images, packed; listed once, since listing
    a large folder takes seconds.
    """

    shard: int
    source: str
    start: int
    stop: int
    files: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRecords:
    """Decoded records: images uint8 [h, w, c] each, labels int32 [n], users (digests) or None."""

    images: list[NDArray[np.uint8]]
    labels: NDArray[np.int32]
    users: NDArray[np.bytes_] | None
    rows: NDArray[np.int64]


def list_slices(config: PrivateConfig) -> list[PrivateSlice]:
    """How the data are shared out to tasks, from metadata alone.

    Guarantee: reads no record; raises InputError naming the field where the data can't be there.
    """
    with reported("private.data", location(config.data)):
        shards = list(_shards(config))
    total = sum(rows for _, rows, _ in shards)
    if total == 0:
        raise InputError(f"private.data: {config.data} holds no records")
    step = min(8192, max(256, -(-total // 8)))
    slices = []
    for shard, (source, rows, packed) in enumerate(shards):
        files = _unpacked(packed)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            its = _packed(files[start:stop])
            slices.append(
                PrivateSlice(shard=shard, source=source, start=start, stop=stop, files=its)
            )
    return slices


def _packed(files: Sequence[str]) -> bytes:
    """A few bytes a name, as they differ by a number mostly."""
    return zlib.compress(os.fsencode("\0".join(files)), 1) if files else b""


def _unpacked(packed: bytes) -> list[str]:
    return os.fsdecode(zlib.decompress(packed)).split("\0") if packed else []


def _shards(config: PrivateConfig) -> Iterator[tuple[str, int, bytes]]:
    """(source, number of rows, a class folder's images) of each shard, in a fixed order."""
    if config.data == DIGITS:
        if config.user_column or config.where:
            raise InputError(f"private: {DIGITS} has no columns for user_column or where")
        from sklearn.datasets import load_digits

        yield DIGITS, len(load_digits().target), b""
        return
    path = location(config.data)
    if not path.exists():
        raise InputError(f"private.data: {config.data} does not exist")
    files = [path] if path.is_file() else files_below(path, ".parquet")
    if files:
        for file in files:
            yield str(file), _parquet_rows(file, config), b""
        return
    if not isinstance(path, Path):
        raise InputError(
            f"private.data: {path} holds no .parquet files; copy a folder of images to a local disk"
        )
    folders = sorted(
        folder
        for folder in path.iterdir()
        if folder.is_dir() and (folder.name[0] != "." or folder.name in config.labels)
    )
    if not folders:
        raise InputError(
            f"private.data: {config.data} holds neither .parquet files nor a folder per class"
        )
    if config.user_column or config.where:
        raise InputError("private: image folders have no columns for user_column or where")
    for folder in folders:
        if folder.name not in config.labels:
            raise InputError("private.labels: a class folder of private.data is not among them")
        found = _class_images(folder)
        yield str(folder), len(found), _packed(found)


def _class_images(folder: Path) -> list[str]:
    """The images of one class; InputError where there is something else only."""
    found = [name for name in names_below(folder) if images.is_image(name)]
    if not found and any(folder.glob("[!.]*")):
        raise InputError(
            f"private.data: the folder of label {folder.name!r} holds no image; convert what it "
            f"holds ({', '.join(sorted(images.SUFFIXES))} are read), or empty it"
        )
    return found


def _parquet_rows(file: Location, config: PrivateConfig) -> int:
    try:
        with pq.ParquetFile(seekable(file)) as parquet:
            num_rows, schema = parquet.metadata.num_rows, parquet.schema_arrow
    except (OSError, pa.ArrowException, UnicodeError):
        raise InputError(f"private.data: {file} is not a readable parquet file") from None
    columns = schema.names
    wanted = {
        "image_column": config.image_column,
        "label_column": config.label_column,
        "user_column": config.user_column,
        **{f"where.{name}": name for name in config.where},
    }
    for option, name in wanted.items():
        if name is not None and columns.count(name) != 1:
            raise InputError(
                f"private.{option}: {name!r} is not in the data; columns are {', '.join(columns)}"
            )
    _check_types(schema, config)
    return int(num_rows)


def _check_types(schema: pa.Schema, config: PrivateConfig) -> None:
    reason = images.unsupported(schema.field(config.image_column).type)
    if reason is not None:
        raise InputError(f"private.image_column: {config.image_column!r} {reason}")
    if config.label_column is not None:
        kind = _plain(schema.field(config.label_column).type)
        if not (pa.types.is_integer(kind) or _is_string(kind)):
            raise InputError(f"private.label_column: holds {kind}; use integers or strings")
    if config.user_column is not None:
        kind = _plain(schema.field(config.user_column).type)
        # Others may write a user differently in another file (7.0 for 7), or run code when read.
        if not (pa.types.is_integer(kind) or _is_string(kind)):
            raise InputError(f"private.user_column: holds {kind}; use integers or strings")
    tests = {bool: pa.types.is_boolean, int: pa.types.is_integer, str: _is_string}
    for name, value in config.where.items():
        kind = _plain(schema.field(name).type)
        if not tests[type(value)](kind):
            raise InputError(f"private.where.{name}: {value!r} is not of the column's type, {kind}")


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def read_slice(part: PrivateSlice, config: PrivateConfig, channels: int) -> RawRecords:
    """Decode and validate the records of one slice; images get `channels` (1 luma, 3 RGB).

    Guarantee: stays inside zone 1; RecordError names shard and row, never content.
    """
    read = list(read_batches(part, config, channels))
    return RawRecords(
        images=[image for batch in read for image in batch.images],
        labels=np.concatenate([batch.labels for batch in read]),
        users=joined([batch.users for batch in read]),
        rows=np.concatenate([batch.rows for batch in read]),
    )


def read_batches(part: PrivateSlice, config: PrivateConfig, channels: int) -> Iterator[RawRecords]:
    """The slice's records in order, 64 at a time, so that images needn't all fit in memory; the
    rows before a bad one come first.

    Guarantee: as `read_slice`; SourceError where the file itself is damaged.
    """
    try:
        yield from _batches(part, config, channels)
    except (OSError, pa.ArrowException, UnicodeError) as error:  # their texts may quote records
        raise SourceError(
            f"private.data: shard {part.shard} can't be read ({type(error).__name__}): the file is "
            "damaged; copy it again"
        ) from None


def _batches(part: PrivateSlice, config: PrivateConfig, channels: int) -> Iterator[RawRecords]:
    for labels, users, cells, rows in _cells(part, config):
        good: list[NDArray[np.uint8]] = []
        numbers: list[int] = []
        digests: list[bytes] = []
        bad = None
        for label, user, cell, row in zip(labels, users, cells, rows, strict=True):
            try:
                number = _label(label, config)
                digest = b"" if config.user_column is None else _digest(user)
                good.append(images.pixels(cell, channels))
            except images.Unusable as error:
                bad = RecordError(shard=part.shard, row=int(row), reason=error.reason)
                break
            numbers.append(number)
            digests.append(digest)
        yield RawRecords(
            images=good,
            labels=np.array(numbers, dtype=np.int32),
            users=None if config.user_column is None else np.array(digests, dtype="S32"),
            rows=np.asarray(rows[: len(good)], dtype=np.int64),
        )
        if bad is not None:
            raise bad


_Cells = tuple[list[Any], list[Any], Sequence[Any], NDArray[np.int64]]
"""Labels, users, images as they are stored, row numbers; None for a column that isn't used."""


def _cells(part: PrivateSlice, config: PrivateConfig) -> Iterator[_Cells]:
    if part.files:
        folder = Path(part.source)
        stored: Sequence[Any] = [folder / name for name in _unpacked(part.files)]
        names: list[Any] = [folder.name] * len(stored)
    elif part.source == DIGITS:
        from sklearn.datasets import load_digits

        digits, rows = load_digits(), slice(part.start, part.stop)
        stored = np.round(digits.images[rows] * (255.0 / 16.0)).astype(np.uint8)
        names = digits.target[rows].tolist()
    else:
        yield from _parquet_cells(part, config)
        return
    for first in range(0, len(stored), _READ_ROWS):
        span = slice(first, first + _READ_ROWS)
        cells = [images.content(cell) if isinstance(cell, Path) else cell for cell in stored[span]]
        numbers = part.start + first + np.arange(len(cells), dtype=np.int64)
        labels = names[span] if config.label_column else [None] * len(cells)
        yield labels, [None] * len(cells), cells, numbers


def _parquet_cells(part: PrivateSlice, config: PrivateConfig) -> Iterator[_Cells]:
    """The slice's rows that pass `where`, by their numbers in the file.

    Rows are chosen from the lists of a whole batch, not by Arrow: `take` on a slice of nested
    fixed-size lists (tensors) answers with whatever lies in memory (pyarrow 26).
    """
    names = {config.image_column, config.label_column, config.user_column, *config.where}
    columns = sorted(name for name in names if name is not None)
    with pq.ParquetFile(seekable(location(part.source))) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        edges = np.concatenate([[0], np.cumsum(sizes)])
        groups = np.flatnonzero((edges[:-1] < part.stop) & (edges[1:] > part.start))
        first = int(edges[groups[0]])
        for batch in file.iter_batches(_READ_ROWS, row_groups=groups.tolist(), columns=columns):
            rows = np.arange(first, first + batch.num_rows)
            first += batch.num_rows
            keep = inside = (rows >= part.start) & (rows < part.stop)
            for name, value in config.where.items():
                keep = keep & [cell == value for cell in batch.column(name).to_pylist()]
            if inside.any():
                stored: tuple[Sequence[Any], ...] = (
                    _column(batch, config.label_column),
                    _column(batch, config.user_column),
                    images.values_of(batch.column(config.image_column)),
                )
                chosen = np.flatnonzero(keep).tolist()
                labels, users, cells = ([column[i] for i in chosen] for column in stored)
                yield labels, users, cells, rows[keep]
            if first >= part.stop:
                return
    raise pa.ArrowInvalid("fewer rows than the file's footer says")


def _column(batch: pa.RecordBatch, name: str | None) -> list[Any]:
    return [None] * batch.num_rows if name is None else batch.column(name).to_pylist()


def joined(users: Sequence[NDArray[np.bytes_] | None]) -> NDArray[np.bytes_] | None:
    """All digests in one array; None where there are none."""
    present = [part for part in users if part is not None]
    return np.concatenate(present) if present else None


def _label(value: Any, config: PrivateConfig) -> int:
    """Position in config.labels."""
    if config.label_column is None:
        return 0
    position = images.label_position(value, config.labels)
    if position is None:
        raise images.Unusable("label is not one of private.labels")
    return position


def _digest(user: Any) -> bytes:
    """128-bit digest (BLAKE2b, hexadecimal) of a user, so that users match across files."""
    if user is None:
        raise images.Unusable("user is null")
    return hashlib.blake2b(str(user).encode(), digest_size=16).hexdigest().encode()
