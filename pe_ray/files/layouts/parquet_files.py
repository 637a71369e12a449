"""Layout: parquet files. Folders in their paths may hold columns, as Hive writes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pe_ray.files.image_tables import Faults, ImageTable, TableSlice, locate_files, open_each
from pe_ray.files.layouts.columns import Rows, list_batches, open_shard
from pe_ray.files.storage import Location, open_seekable

NAME = "parquet"
SUFFIXES = (".parquet", ".pq", ".parq")


def list_shards(
    table: ImageTable, root: Location, names: Sequence[str], faults: Faults | None = None
) -> list[TableSlice]:
    """List the files `names` below `root`, or `root` itself if there are none, from footers."""
    return open_each(open_file, table, locate_files(root, names), faults)


def open_file(table: ImageTable, file: Location, folder_values: Mapping[str, str]) -> TableSlice:
    """Open a file as a shard; `folder_values` are columns that its place gives all rows."""
    try:
        with pq.ParquetFile(open_seekable(file)) as parquet:
            num_rows, schema = int(parquet.metadata.num_rows), parquet.schema_arrow
    except (OSError, pa.ArrowException, UnicodeError):
        raise table.refuse(f"{file} is not a readable parquet file") from None
    return open_shard(table, NAME, file, num_rows, schema, folder_values)


def read_rows(
    table: ImageTable, part: TableSlice, columns: Sequence[str], batch_rows: int
) -> Iterator[Rows]:
    """Read the rows of a slice, at most `batch_rows` at a time, from its row groups alone."""
    assert part.source is not None
    with pq.ParquetFile(open_seekable(part.source)) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        edges = np.concatenate([[0], np.cumsum(sizes)])
        groups = np.flatnonzero((edges[:-1] < part.stop) & (edges[1:] > part.start))
        stored = [name for name in columns if name in file.schema_arrow.names]
        batches = file.iter_batches(batch_rows, row_groups=groups.tolist(), columns=stored)
        yield from list_batches(batches, part, int(edges[groups[0]]), stored)
