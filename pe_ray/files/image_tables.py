"""Tables of images: what private records, public images and references are all given as.

A table is a parquet file, a folder of them, a folder of images per class, or `sklearn:digits`.
Its files are local or in a store. Private and public tables differ only in what an error may say.
"""

from __future__ import annotations

import itertools
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pe_ray.errors import InputError, RecordError
from pe_ray.files import images
from pe_ray.files.storage import (
    Location,
    io_errors_as_input_errors,
    list_paths_below,
    open_seekable,
    resolve_place,
)

DIGITS = "sklearn:digits"


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
    """Tell whether the images `found` among the files `below` of a folder are rows."""
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


def _pack(names: Sequence[str]) -> bytes:
    """Compress names; most differ by a number only, so each takes a few bytes."""
    return zlib.compress(os.fsencode("\0".join(names)), 1) if names else b""


def _unpack(packed: bytes) -> list[str]:
    return os.fsdecode(zlib.decompress(packed)).split("\0") if packed else []
