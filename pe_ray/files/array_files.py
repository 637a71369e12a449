"""Arrays and tables as contents of files; files of named arrays, each with a digest."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pe_ray.errors import DamagedFileError, InputError
from pe_ray.files.digests import (
    compute_digest,
    locate_digest,
    read_with_digest,
    write_with_digest,
)
from pe_ray.files.storage import Location

Arrays = Mapping[str, NDArray[Any]]


def encode_table(table: pa.Table, compression: str = "zstd") -> bytes:
    """Return a table as a file's content (.parquet)."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression=compression)
    return sink.getvalue()


def encode_array(values: NDArray[Any]) -> bytes:
    """Return an array as a file's content (.npy)."""
    sink = io.BytesIO()
    np.save(sink, values, allow_pickle=False)
    return sink.getvalue()


def encode_arrays(arrays: Arrays) -> bytes:
    """Return arrays as a file's content (.npz)."""
    sink = io.BytesIO()
    np.savez(sink, allow_pickle=False, **arrays)
    return sink.getvalue()


def write_arrays(file: Location, arrays: Arrays) -> None:
    """Write arrays, with a digest."""
    write_with_digest(file, encode_arrays(arrays))


def read_arrays(file: Location) -> dict[str, NDArray[Any]]:
    """Return the arrays that were written; DamagedFileError where they are not those."""
    content = io.BytesIO(read_with_digest(file))
    try:
        with np.load(content, allow_pickle=False) as stored:
            return dict(stored)
    except (BadZipFile, ValueError, OSError, KeyError, EOFError):  # of a version without digests
        raise DamagedFileError(str(file)) from None


def holds_arrays(file: Location) -> bool:
    """Tell whether the file is there and undamaged."""
    try:
        return file.exists() and bool(read_arrays(file))
    except DamagedFileError:
        return False


def keep_arrays(file: Location, content: bytes) -> None:
    """Write a lost or a new file of arrays, as `encode_arrays` made it.

    InputError where it held something else: what was released since may depend on that.
    """
    digest = locate_digest(file)
    if digest.exists() and digest.read_bytes() != compute_digest(content).encode():
        raise InputError(
            f"{file}: was damaged, and this machine doesn't make the same again; restore it from a "
            "copy, or repeat the command on a machine like the one that made it"
        )
    write_with_digest(file, content)
