"""Files of released values: atomic parts, a manifest that makes a stage complete, a closed schema.

A part appears under its final name only when it is whole (see pe_ray.storage); a stage counts as
done only when its manifest exists and every part has the size that it states. Content isn't
compared: what we write can't be torn at its full size, as it is synced before it gets its name.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pe_ray import storage
from pe_ray.plugins import GeneratorOptions, Rows
from pe_ray.storage import Location, atomic_write
from pe_ray.values import ImageShape

MANIFEST = ".manifest.json"  # hidden: readers of folders pass over it
MAX_PART_BYTES = 32 << 20
_PART = re.compile(r"part-(\d{10,})-(\d{10,})\.\w+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file, holding rows start..stop-1 of its stage."""

    file: str
    start: int
    stop: int
    num_bytes: int


def part_ranges(num_rows: int, row_bytes: int, rows_per_part: int | None) -> list[tuple[int, int]]:
    """Row ranges of the parts: enough of them to share out, none too large to hold in memory."""
    rows = part_rows(num_rows, row_bytes, rows_per_part)
    return [(start, min(start + rows, num_rows)) for start in range(0, num_rows, rows)]


def part_rows(num_rows: int, row_bytes: int, rows_per_part: int | None) -> int:
    """Rows of a part, but for the last."""
    return rows_per_part or min(4096, max(1, -(-num_rows // 32)), MAX_PART_BYTES // row_bytes or 1)


def part_name(start: int, stop: int, suffix: str) -> str:
    return f"part-{start:010d}-{stop:010d}.{suffix}"


def write_part(directory: Location, start: int, stop: int, suffix: str, content: bytes) -> Part:
    """Write one whole part."""
    name = part_name(start, stop, suffix)
    atomic_write(directory / name, content)
    return Part(file=name, start=start, stop=stop, num_bytes=len(content))


def found_parts(
    directory: Location, ranges: Sequence[tuple[int, int]], suffix: str
) -> list[Part | None]:
    """The part of each range that an earlier start wrote, None where there is none, or where it has
    another size than a manifest of that start states.
    """
    sizes, stated = storage.sizes(directory), {}
    if MANIFEST in sizes:
        with suppress(ValueError, KeyError, TypeError):  # torn: then it states nothing
            listed = json.loads((directory / MANIFEST).read_bytes())["parts"]
            stated = {part["file"]: part["num_bytes"] for part in listed}
    found: list[Part | None] = []
    for start, stop in ranges:
        name = part_name(start, stop, suffix)
        if name in sizes and stated.get(name, sizes[name]) == sizes[name]:
            found.append(Part(file=name, start=start, stop=stop, num_bytes=sizes[name]))
        else:
            found.append(None)
    return found


def rows_found(directory: Location) -> int:
    """Rows in the parts of a stage so far, complete or not, by their names."""
    spans = [_PART.fullmatch(name) for name in storage.sizes(directory)]
    return sum(int(span[2]) - int(span[1]) for span in spans if span)


def commit(directory: Location, parts: Sequence[Part], extra: Mapping[str, Any]) -> None:
    """Declare a stage complete; files that are none of its parts are removed first."""
    parts = sorted(parts, key=lambda part: part.start)
    expected = 0
    for part in parts:
        assert part.start == expected, "parts must cover the stage without gap or overlap"
        expected = part.stop
    ours = {part.file for part in parts}
    for name in storage.sizes(directory).keys() - ours:
        if _PART.fullmatch(storage.left_aside(name) or name):
            (directory / name).unlink(missing_ok=True)  # of a worker that outlived its driver
    manifest = {"num_rows": expected, "parts": [asdict(part) for part in parts], **extra}
    atomic_write(directory / MANIFEST, json.dumps(manifest, indent=1).encode())


def manifest_of(directory: Location) -> dict[str, Any] | None:
    """The manifest of a complete stage; None where it, or any part, is missing or torn."""
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
        sizes = storage.sizes(directory)
        whole = all(sizes.get(part["file"]) == Part(**part).num_bytes for part in manifest["parts"])
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return manifest if whole else None


def parts_of(directory: Location) -> list[Part]:
    """Parts of a complete stage, in row order."""
    manifest = manifest_of(directory)
    if manifest is None:
        raise FileNotFoundError(f"{directory}: stage is not complete")
    return [Part(**part) for part in manifest["parts"]]


@lru_cache(maxsize=4)
def _known_parts(directory: Location, _version: tuple[Any, ...]) -> list[Part]:
    """`parts_of`, once per process: looking at every part for every part is quadratic."""
    return parts_of(directory)


def population_schema(options: GeneratorOptions) -> pa.Schema:
    """The only columns a population file may have; images as fixed-size binary (read fastest)."""
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
    """Parquet bytes of `rows`; parent -1 and degree NaN are stored as null."""
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
    """Rows `ids` (int64 [n], in any order, repeats allowed) of a complete population."""
    wanted, back = np.unique(ids, return_inverse=True)
    schema = population_schema(options)
    tables = []
    for part in _known_parts(directory, storage.version(directory / MANIFEST)):
        low, high = np.searchsorted(wanted, [part.start, part.stop])
        if low < high:
            table = pq.read_table(
                storage.whole(directory / part.file), schema=schema, partitioning=None
            )
            tables.append(table.take(wanted[low:high] - part.start))
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    return {name: _numpy(table, name, options.image_shape)[back] for name in schema.names}


def read_parents(directory: Location, start: int, stop: int) -> NDArray[np.int64]:
    """Parents of rows start..stop-1 of a complete population, int64 [stop - start]; -1 for none."""
    found = [np.empty(0, dtype=np.int64)]
    for part in parts_of(directory):
        low, high = max(start, part.start), min(stop, part.stop)
        if low < high:
            table = pq.read_table(
                storage.whole(directory / part.file), columns=["parent"], partitioning=None
            )
            parents = np.asarray(table.column("parent").fill_null(-1))
            found.append(parents[low - part.start : high - part.start])
    return np.concatenate(found)


def _numpy(table: pa.Table, name: str, shape: ImageShape) -> NDArray[Any]:
    column = table.column(name).combine_chunks()
    if name == "image":
        raw = np.frombuffer(column.buffers()[1] or b"", dtype=np.uint8)
        first = column.offset * shape.num_bytes
        raw = raw[first : first + len(column) * shape.num_bytes]
        return raw.reshape(len(column), shape.height, shape.width, shape.channels)
    if name == "parent":
        return np.asarray(column.fill_null(-1))
    if pa.types.is_fixed_size_list(column.type):
        return np.asarray(column.flatten()).reshape(len(column), column.type.list_size)
    return np.asarray(column.to_numpy(zero_copy_only=False))
