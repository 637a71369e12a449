"""Layout: a CSV, TSV or JSON Lines file that lists images beside it, with their labels.

`metadata.csv` and `metadata.jsonl` with a column `file_name` are what Hugging Face reads as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json

from pe_ray.files.image_tables import Faults, ImageTable, TableSlice, locate_files, open_each
from pe_ray.files.layouts.columns import (
    LIST,
    Rows,
    is_string,
    list_batches,
    name_columns,
    open_shard,
)
from pe_ray.files.storage import Location

NAME = LIST
SUFFIXES = (".csv", ".tsv", ".jsonl")
NAMES = frozenset(f"metadata{suffix}" for suffix in SUFFIXES)
"""Lists that stand for the folder that they lie in."""
FILE_NAME = "file_name"
"""Column with the images' paths, where there is none named `image_column`."""


def list_shards(
    table: ImageTable, root: Location, names: Sequence[str], faults: Faults | None = None
) -> list[TableSlice]:
    """List the lists `names` below `root`, or `root` itself if there are none.

    Guarantee: reads names, but no image.
    """
    return open_each(_open, table, locate_files(root, names), faults)


def _open(table: ImageTable, file: Location, folder_values: Mapping[str, str]) -> TableSlice:
    listed = _read(table, file)
    column = listed.schema.field(table.image_column).type
    if not is_string(column):
        raise table.refuse(f"holds {column} in {file}, not paths of images", "image_column")
    # The check of columns is for images: paths stand for encoded ones.
    position = listed.schema.get_field_index(table.image_column)
    schema = listed.schema.set(position, pa.field(table.image_column, pa.binary()))
    return open_shard(table, NAME, file, listed.num_rows, schema, folder_values)


def list_images(table: ImageTable, part: TableSlice) -> list[Location]:
    """Return where the images are that a list names, in its order."""
    assert part.source is not None
    named = _read(table, part.source).column(table.image_column).to_pylist()
    return [_resolve(part.source, name) for name in named if name is not None]


def measure_images(table: ImageTable, shards: Sequence[TableSlice]) -> list[tuple[str, int]]:
    """Return (path, bytes) of the images that lists name; those that can't be reached are left out.

    Guarantee: reads names and sizes, but no image.
    """
    images = [image for part in shards for image in list_images(table, part)]
    return [(str(image), size) for image in images if (size := _measure(image)) is not None]


def _measure(image: Location) -> int | None:
    try:
        if isinstance(image, Path):
            return image.stat().st_size
        size: int | None = image.store.get_file_info(image.key).size
        return size
    except OSError:
        return None


def read_rows(
    table: ImageTable, part: TableSlice, columns: Sequence[str], batch_rows: int
) -> Iterator[Rows]:
    """Read the rows of a slice, at most `batch_rows` at a time, with the places of their images."""
    assert part.source is not None
    batches = _read(table, part.source).to_batches(max_chunksize=batch_rows)
    for rows, found in list_batches(iter(batches), part, 0, columns):
        if table.image_column in found:
            cells: list[Any] = [
                None if name is None else _resolve(part.source, name)
                for name in found[table.image_column]
            ]
            found = {**found, table.image_column: cells}
        yield rows, found


def _resolve(listing: Location, name: str) -> Location:
    """Return the image that a list names: a path below the list's folder, or an absolute one."""
    return listing.parent / name


def _read(table: ImageTable, file: Location) -> pa.Table:
    """Read a list; its column of paths is named as the table's images are."""
    try:
        source = pa.BufferReader(file.read_bytes())
        if str(file).lower().endswith(".jsonl"):
            listed = pyarrow.json.read_json(source)
        else:
            delimiter = "\t" if str(file).lower().endswith(".tsv") else ","
            options = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
            # Text: 001 is a number in one file and a name in another, and would be two users.
            users = {table.user_column: pa.string()} if table.user_column else {}
            convert = pyarrow.csv.ConvertOptions(column_types=users)
            listed = pyarrow.csv.read_csv(source, parse_options=options, convert_options=convert)
    except (OSError, pa.ArrowException, UnicodeError):
        raise table.refuse(f"{file} is not a readable list of files") from None
    names = listed.schema.names
    if table.image_column not in names and names.count(FILE_NAME) == 1:
        names = [table.image_column if name == FILE_NAME else name for name in names]
        listed = listed.rename_columns(names)
    if names.count(table.image_column) != 1:
        raise table.refuse(
            f"neither {table.image_column!r} nor {FILE_NAME!r} is in {file}; "
            f"{name_columns(table, NAME, names)}",
            "image_column",
        )
    return listed
