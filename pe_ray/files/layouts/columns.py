"""Columns that several layouts have: check them against a table, and list a batch of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pe_ray.files import images
from pe_ray.files.image_tables import ImageTable, TableSlice
from pe_ray.files.label_names import explain_ambiguous, read_class_names
from pe_ray.files.storage import Location

LIST = "list of files"
"""Layout of files that people write by hand."""
Rows = tuple[NDArray[np.int64], Mapping[str, Sequence[Any]]]
"""Numbers of rows in their shard, and column -> their values."""


def open_shard(
    table: ImageTable,
    layout: str,
    source: Location,
    num_rows: int,
    schema: pa.Schema,
    folder_values: Mapping[str, str],
) -> TableSlice:
    """Return a file as a shard, whose columns are those that the table names.

    Guarantee: depends on names and schema only.
    """
    check_columns(table, layout, source, schema, folder_values)
    return TableSlice(
        layout=layout,
        source=source,
        stop=num_rows,
        folder_values=folder_values,
        class_names=read_class_names(schema, table.label_column),
    )


def check_columns(
    table: ImageTable,
    layout: str,
    file: Location,
    schema: pa.Schema,
    folder_values: Mapping[str, str],
) -> None:
    """Raise InputError, naming the option, unless the file has the columns that the table names."""
    named = {
        option: name
        for option in ("image_column", "label_column", "user_column")
        if (name := getattr(table, option)) is not None
    }
    tested = {f"where.{name}": name for name in table.where}
    for option, name in {**named, **tested}.items():
        count = schema.names.count(name)
        if count != 1 and (count or option == "image_column" or name not in folder_values):
            known = name_columns(table, layout, [*schema.names, *folder_values])
            raise table.refuse(f"{name!r} is not in {file}; {known}", option)
    reason = images.explain_unsupported(schema.field(table.image_column).type)
    if reason is not None:
        raise table.refuse(f"{table.image_column!r} {reason}", "image_column")
    for option in ("label_column", "user_column"):
        name = named.get(option)
        if name is not None and name in schema.names:
            _check_names(table, option, schema, name)
    tests = {bool: pa.types.is_boolean, int: pa.types.is_integer, str: is_string}
    for name, value in table.where.items():
        if name in schema.names:
            kind = plain_type(schema.field(name).type)
            if not tests[type(value)](kind):
                raise table.refuse(
                    f"{value!r} is not of the column's type, {kind}", f"where.{name}"
                )


def is_string(kind: pa.DataType) -> bool:
    """Tell whether a column holds text, whatever its encoding."""
    kind = plain_type(kind)
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values, where a dictionary encodes them."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def name_columns(table: ImageTable, layout: str, names: Sequence[str]) -> str:
    """Name the columns of a file; of a private list only their number.

    The first line of a list without a header is a record.
    """
    if table.private and layout == LIST:
        return f"its first line has {len(names)} names, which must be those of its columns"
    return f"columns are {', '.join(names)}"


def _check_names(table: ImageTable, option: str, schema: pa.Schema, name: str) -> None:
    """Refuse columns that name a label or a user by anything but integers and text."""
    kind = plain_type(schema.field(name).type)
    # Files may write another type differently (7.0 for 7), or run code when it is read.
    if not (pa.types.is_integer(kind) or is_string(kind)):
        shown = "nested values" if pa.types.is_nested(kind) else kind  # a field may be a name
        raise table.refuse(f"{name!r} holds {shown}; use integers or strings", option)
    if option == "label_column" and pa.types.is_integer(kind):
        reason = explain_ambiguous(table, read_class_names(schema, name))
        if reason is not None:
            raise table.refuse(f"{name!r} {reason}", option)


def list_batches(
    batches: Iterator[pa.RecordBatch], part: TableSlice, first: int, columns: Sequence[str]
) -> Iterator[Rows]:
    """List the rows of the slice in consecutive batches, the first of which begins at row `first`.

    Raises pa.ArrowInvalid where they end before the slice does.
    """
    for batch in batches:
        rows = np.arange(first, first + batch.num_rows)
        first += batch.num_rows
        chosen = (rows >= part.start) & (rows < part.stop)
        if chosen.any():
            # Whole columns, then rows: Arrow's `take` on a slice of nested fixed-size lists
            # (tensors) returns other rows' values (pyarrow 26).
            yield (
                rows[chosen],
                {
                    name: _choose(images.list_stored(batch.column(name)), chosen)
                    for name in columns
                    if name in batch.schema.names
                },
            )
        if first >= part.stop:
            return
    raise pa.ArrowInvalid("fewer rows than the file's footer says")


def _choose(values: Sequence[Any], chosen: NDArray[np.bool_]) -> Sequence[Any]:
    return values if chosen.all() else [values[i] for i in np.flatnonzero(chosen).tolist()]
