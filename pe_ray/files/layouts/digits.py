"""Layout: the 1,797 handwritten digits that come with scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_ray.files.image_tables import DIGITS, ImageTable, TableSlice
from pe_ray.files.label_names import explain_ambiguous
from pe_ray.files.layouts.columns import Rows

NAME = "digits"


def list_shards(table: ImageTable) -> list[TableSlice]:
    """Return the digits as one shard."""
    for option in ("user_column", "where"):
        if getattr(table, option):
            raise table.refuse(f"{DIGITS} has no columns", option)
    reason = explain_ambiguous(table, None)
    if reason is not None and table.label_column is not None:
        raise table.refuse(f"{DIGITS} {reason}", "label_column")
    return [TableSlice(layout=NAME, source=None, stop=len(_read_values()))]


def read_rows(
    table: ImageTable, part: TableSlice, columns: Sequence[str], batch_rows: int
) -> Iterator[Rows]:
    """Read the rows of a slice, at most `batch_rows` at a time."""
    values = _read_values()
    pixels: Any = np.round(values[:, :-1] * (255.0 / 16.0)).astype(np.uint8).reshape(-1, 8, 8)
    for start in range(part.start, part.stop, batch_rows):
        rows = np.arange(start, min(start + batch_rows, part.stop))
        found = {table.image_column: pixels[rows]}
        if table.label_column is not None:
            found[table.label_column] = values[rows, -1].astype(int).tolist()
        yield rows, found


@cache
def _read_values() -> NDArray[np.float64]:
    """Read the file that scikit-learn has; to import scikit-learn takes seconds.

    Shape [1797, 65]: 64 pixels from 0 to 16, then the digit.
    """
    package = find_spec("sklearn")
    assert package is not None
    file = Path(str(package.origin)).parent / "datasets" / "data" / "digits.csv.gz"
    values: NDArray[np.float64] = np.loadtxt(file, delimiter=",")
    return values
