"""Layout: Arrow files, such as folders that `datasets.Dataset.save_to_disk` wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pe_ray.files.image_tables import Faults, ImageTable, TableSlice, locate_files, open_each
from pe_ray.files.layouts.columns import Rows, list_batches, open_shard
from pe_ray.files.storage import Location, open_seekable

NAME = "arrow"
SUFFIXES = (".arrow", ".feather")
STATE = "state.json"
"""Beside the files of a saved data set; it lists those that belong to it."""


def list_shards(
    table: ImageTable, root: Location, names: Sequence[str], faults: Faults | None = None
) -> list[TableSlice]:
    """List the files `names` below `root`, or `root` itself if there are none, from schemas."""
    if not names:
        return open_each(_open, table, [(root, {})], faults)
    folders = dict.fromkeys(name.rpartition("/")[0] for name in names)
    saved = [name for folder in folders for name in _list_saved(table, root, folder, names)]
    return open_each(_open, table, locate_files(root, saved), faults)


def _list_saved(
    table: ImageTable, root: Location, folder: str, names: Sequence[str]
) -> Sequence[str]:
    """List the files in a folder, without the caches that `datasets` keeps beside saved ones."""
    here = [name for name in names if name.rpartition("/")[0] == folder]
    place = root / folder if folder else root
    state = place / STATE
    if not state.exists():
        return here
    try:
        about = json.loads(state.read_bytes())
        listed = [file["filename"] for file in about["_data_files"]]
    except (ValueError, KeyError, TypeError):
        raise table.refuse(f"{state} is not what datasets writes; save the data anew") from None
    if about.get("_indices_data_files") or about.get("_indices_files"):
        raise table.refuse(
            f"{place} holds a selection of rows; save it anew after flatten_indices()"
        )
    saved = sorted(f"{folder}/{name}".removeprefix("/") for name in listed)
    missing = set(saved) - set(here)
    if missing:
        raise table.refuse(f"{root} lacks {min(missing)}; copy it again")
    return saved


def _open(table: ImageTable, file: Location, folder_values: Mapping[str, str]) -> TableSlice:
    try:
        with _open_source(file) as source:
            schema, batches = _read_batches(source)
            num_rows = sum(batch.num_rows for batch in batches)
    except (OSError, pa.ArrowException, UnicodeError):
        raise table.refuse(f"{file} is not a readable Arrow file") from None
    return open_shard(table, NAME, file, num_rows, schema, folder_values)


def read_rows(
    table: ImageTable, part: TableSlice, columns: Sequence[str], batch_rows: int
) -> Iterator[Rows]:
    """Read the rows of a slice, at most `batch_rows` at a time."""
    assert part.source is not None
    with _open_source(part.source) as source:
        pieces = _cut(_read_batches(source)[1], batch_rows)
        yield from list_batches(pieces, part, 0, columns)


def _cut(batches: Iterator[pa.RecordBatch], batch_rows: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for start in range(0, batch.num_rows, batch_rows):
            yield batch.slice(start, batch_rows)


def _open_source(file: Location) -> Any:
    return pa.memory_map(str(file)) if isinstance(file, Path) else open_seekable(file)


def _read_batches(source: Any) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Return the schema and the batches of a file, be it one with a footer or a stream."""
    try:
        file = pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        stream = pa.ipc.open_stream(source)
        return stream.schema, stream
    return file.schema, map(file.get_batch, range(file.num_record_batches))
