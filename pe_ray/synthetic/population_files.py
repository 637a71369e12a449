"""Population files: a closed schema, written whole and read by row."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pe_ray.files import storage
from pe_ray.files.parts import MANIFEST, Part, list_parts, read_table
from pe_ray.files.storage import Location
from pe_ray.plugins import GeneratorOptions, Rows
from pe_ray.values import ImageShape


def population_schema(options: GeneratorOptions) -> pa.Schema:
    """Return the only columns a population file may have; images as fixed-size binary."""
    shape = options.image_shape
    fields = [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("parent", pa.int64()),
        pa.field("degree", pa.float32()),
        pa.field("image", pa.binary(shape.num_bytes), nullable=False),
    ]
    for name, (dtype, width) in options.columns.items():
        value = pa.from_numpy_dtype(np.dtype(dtype))
        fields.append(pa.field(name, value if width == 1 else pa.list_(value, width)))
    return pa.schema(fields, metadata={"shape": json.dumps(asdict(shape))})


def population_part(rows: Rows, options: GeneratorOptions) -> bytes:
    """Encode `rows` as parquet; parent -1 and degree NaN are stored as null."""
    schema = population_schema(options)
    assert set(rows) == set(schema.names), "a population has exactly the columns of its schema"
    shape = options.image_shape
    arrays = []
    for field in schema:
        values = rows[field.name]
        if field.name == "image":
            raw = pa.py_buffer(np.ascontiguousarray(values, dtype=np.uint8).tobytes())
            arrays.append(
                pa.Array.from_buffers(pa.binary(shape.num_bytes), len(values), [None, raw])
            )
        elif field.name in ("parent", "degree"):
            missing = np.isnan(values) if field.name == "degree" else values < 0
            arrays.append(pa.array(values, type=field.type, mask=missing))
        elif pa.types.is_fixed_size_list(field.type):
            flat = pa.array(np.ascontiguousarray(values).reshape(-1), type=field.type.value_type)
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, field.type.list_size))
        else:
            arrays.append(pa.array(values, type=field.type))
    sink = io.BytesIO()
    pq.write_table(pa.table(arrays, schema=schema), sink, compression="zstd")
    return sink.getvalue()


def read_population(directory: Location, ids: NDArray[np.int64], options: GeneratorOptions) -> Rows:
    """Read rows `ids` (int64 [n], in any order, with repeats) of a complete population.

    DamagedFileError where a part that holds one of them isn't what was written.
    """
    wanted, back = np.unique(ids, return_inverse=True)
    schema = population_schema(options)
    tables = []
    for part in _known_parts(directory, storage.file_version(directory / MANIFEST)):
        low, high = np.searchsorted(wanted, [part.start, part.stop])
        if low < high:
            table = read_table(directory, part, schema=schema)
            tables.append(table.take(wanted[low:high] - part.start))
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    return {name: _numpy(table, name, options.image_shape)[back] for name in schema.names}


@lru_cache(maxsize=4)
def _known_parts(directory: Location, _version: tuple[Any, ...]) -> list[Part]:
    """List the parts once per process: listing every part for every part is quadratic."""
    return list_parts(directory)


def read_parents(directory: Location) -> NDArray[np.int64]:
    """Read the parents of a complete population, int64 [num_samples]; -1 where there is none."""
    columns = [read_table(directory, part, columns=["parent"]) for part in list_parts(directory)]
    return np.asarray(pa.concat_tables(columns).column("parent").fill_null(-1))


def _numpy(table: pa.Table, name: str, shape: ImageShape) -> NDArray[Any]:
    column = table.column(name).combine_chunks()
    if name == "image":
        raw = np.frombuffer(column.buffers()[1] or b"", dtype=np.uint8)
        images = raw.reshape(-1, shape.height, shape.width, shape.channels)
        return images[column.offset : column.offset + len(column)]
    if name == "parent":
        return np.asarray(column.fill_null(-1))
    if pa.types.is_fixed_size_list(column.type):
        return np.asarray(column.flatten()).reshape(len(column), column.type.list_size)
    return np.asarray(column.to_numpy(zero_copy_only=False))
