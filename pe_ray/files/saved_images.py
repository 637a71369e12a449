"""Save images that a Python program holds as a file, which `private.data` can name."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from pe_ray.errors import InputError
from pe_ray.files import images as stored_images
from pe_ray.files.layouts.columns import is_string
from pe_ray.files.storage import (
    GivenPath,
    Location,
    atomic_write,
    io_errors_as_input_errors,
    resolve_place,
)

_GROUP_ROWS = 512  # a task reads whole groups of rows
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA"})
_PRIVATE = 0o600


def save_images(
    images: Any,
    path: GivenPath,
    labels: Sequence[str] | Sequence[int] | None = None,
    users: Sequence[str] | Sequence[int] | None = None,
) -> Location:
    """Write images to one parquet file, complete or not at all, and return its path.

    images: a `datasets.Dataset` or a PyArrow table, whose columns are kept with their class names;
    or a sequence of images: PIL, arrays [h, w] or [h, w, 1, 3 or 4] of uint8, booleans or floats in
    [0, 1], or encoded bytes. Sequences become the column `image`.
    labels, users: one for each image; they become the columns `label` and `user`.

    Only the owner may read the file on a disk (mode 0600). An older file there is replaced. The
    file is made in memory.

    >>> import tempfile, numpy as np, pyarrow.parquet as pq
    >>> pictures = [np.zeros((8, 8), np.uint8), np.full((8, 8), 255, np.uint8)]
    >>> path = save_images(pictures, f"{tempfile.mkdtemp()}/pets.parquet", ["cat", "dog"])
    >>> pq.read_table(path)["label"].to_pylist()
    ['cat', 'dog']
    """
    place = resolve_place(path, "path")
    table = _to_table(images)
    for name, values in (("label", labels), ("user", users)):
        if values is not None:
            table = _add_column(table, name, values)
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=_GROUP_ROWS, compression="none")
    with io_errors_as_input_errors("path", place):
        atomic_write(place, sink.getvalue(), _PRIVATE)
    return place


def _to_table(images: Any) -> pa.Table:
    if isinstance(images, pa.Table):
        return images
    datasets = sys.modules.get("datasets")  # who has a data set has imported it
    if datasets is not None and isinstance(images, datasets.DatasetDict):
        raise InputError(f"images: holds the splits {', '.join(images)}; choose one: images[...]")
    if datasets is not None and isinstance(images, datasets.Dataset):
        return _embed_files(images)
    if isinstance(images, str | bytes) or not isinstance(images, Iterable):
        raise InputError("images: give a Dataset, a PyArrow table, or a list of images")
    encoded = [_encode(number, image) for number, image in enumerate(images)]
    return pa.table({"image": pa.array(encoded, pa.binary())})


def _embed_files(images: Any) -> pa.Table:
    """Return the rows of a data set, in its order, with the images that it only names."""
    from datasets.table import embed_table_storage

    held = images.with_format("arrow")[:]
    return embed_table_storage(held.cast(images.features.arrow_schema))


def _encode(number: int, image: Any) -> bytes:
    """Encode an image as PNG, with the pixels that a file of it would be read with."""
    if isinstance(image, bytes):
        return image
    try:
        if isinstance(image, Image.Image):
            picture = stored_images.normalize(image)
        else:
            picture = _from_array(np.asarray(image))
        if picture.mode not in _PNG_MODES:
            picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    except stored_images.Unusable as error:
        raise InputError(f"images[{number}]: {error.reason}") from None
    except (OSError, TypeError, ValueError):
        raise InputError(
            f"images[{number}]: give a PIL image, encoded bytes, or an array [height, width] or "
            "[height, width, 1, 3 or 4] of uint8, booleans or floats"
        ) from None
    sink = io.BytesIO()
    picture.save(sink, format="PNG")
    return sink.getvalue()


def _from_array(values: NDArray[Any]) -> Image.Image:
    if values.dtype.kind not in "fb" and values.dtype != np.uint8:
        raise TypeError
    if values.ndim not in (2, 3) or values.shape[2:] not in ((), (1,), (3,), (4,)):
        raise TypeError
    return stored_images.from_tensor(values)


def _add_column(table: pa.Table, name: str, values: Sequence[Any]) -> pa.Table:
    if name in table.column_names:
        raise InputError(f"{name}s: the table has a column {name!r} already; drop one of them")
    try:
        column = pa.array(values)
    except (pa.ArrowException, TypeError, ValueError):
        column = None
    if column is None or not (is_string(column.type) or pa.types.is_integer(column.type)):
        raise InputError(f"{name}s: give a text for each image, or a whole number for each")
    if len(column) != table.num_rows:
        raise InputError(f"{name}s: {len(column):,} for {table.num_rows:,} images")
    return table.append_column(name, column)
