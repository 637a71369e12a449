"""Layout: the 1,797 handwritten digits that come with scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pe_ray.files.image_tables import DIGITS, ImageTable, TableSlice
from pe_ray.files.label_names import explain_ambiguous
from pe_ray.files.layouts.columns import Rows

NAME = "digits"


def list_shards(table: ImageTable) -> list[TableSlice]:
    """Return the digits as one shard."""
    from sklearn.datasets import load_digits

    for option in ("user_column", "where"):
        if getattr(table, option):
            raise table.refuse(f"{DIGITS} has no columns", option)
    reason = explain_ambiguous(table.labels, table.label_values, None)
    if reason is not None and table.label_column is not None:
        raise table.refuse(f"{DIGITS} {reason}", "label_column")
    return [TableSlice(layout=NAME, source=None, stop=len(load_digits().target))]


def read_rows(
    table: ImageTable, part: TableSlice, columns: Sequence[str], batch_rows: int
) -> Iterator[Rows]:
    """Read the rows of a slice, at most `batch_rows` at a time."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255.0 / 16.0)).astype(np.uint8)
    for start in range(part.start, part.stop, batch_rows):
        rows = np.arange(start, min(start + batch_rows, part.stop))
        found = {table.image_column: pixels[rows]}
        if table.label_column is not None:
            found[table.label_column] = digits.target[rows].tolist()
        yield rows, found
