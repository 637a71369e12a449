"""What users read: the final set or its expansion, as parquet, webdataset or image folders."""

from __future__ import annotations

import io
import json
import math
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pe_ray.errors import InputError
from pe_ray.files.storage import Location, sync, write_many

Format = Literal["parquet", "webdataset", "folder"]
SUFFIXES: dict[Format, str] = {"parquet": "parquet", "webdataset": "tar", "folder": "done"}
"""Of a part's file; a part of a folder is a marker, written after its images."""


_BLOCK = 4096  # in which disks are given out
_TAR_BLOCK = 512
_ROW_BYTES = 16  # of parquet, beside the image
_ENTRY_BYTES = 64  # of an image in its folder
_PART_BYTES = _BLOCK + 256  # of any part: the end of its last block, and its lines in the manifest


def png(image: NDArray[np.uint8]) -> bytes:
    """PNG bytes of one image, uint8 [height, width, channels]."""
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(sink, format="PNG")
    return sink.getvalue()


def export_part(
    form: Format,
    directory: Location,
    first: int,
    pngs: Sequence[bytes],
    labels: NDArray[np.int32],
    names: Sequence[str],
) -> bytes:
    """Content of the part's file for rows first, first + 1, ...; writes the images of a folder."""
    if form == "parquet":
        return _parquet(pngs, labels, names)
    if form == "webdataset":
        return _webdataset(first, pngs, labels)
    for label in np.unique(labels):  # made again while the marker is missing
        rows = np.flatnonzero(labels == label).tolist()
        files = [(f"{first + row:010d}.png", pngs[row]) for row in rows]
        write_many(directory / folder_name(names[label]), files)
    sync(directory)  # before there is a marker
    return f"{len(pngs)} images\n".encode()


def folder_name(label: str) -> str:
    """The label's name, characters that a path can't hold percent-encoded."""
    return quote(label, safe=" ") if label.strip(".") else quote(label).replace(".", "%2E")


def require_folder_names(directory: Location, names: Sequence[str]) -> None:
    """Raise InputError where `directory`'s disk has no room in a name for a label's folder."""
    if not isinstance(directory, Path):
        return
    most = os.pathconf(directory, "PC_NAME_MAX")
    for name in names:
        length = len(folder_name(name))
        if length > most:
            raise InputError(
                f"--format: the label {name[:16]!r}... is too long for a folder's name: "
                f"{length} bytes, percent-encoded, of at most {most}; use parquet or "
                "webdataset"
            )


def disk_bytes(
    form: Format, pngs: Sequence[bytes], num_rows: int, num_parts: int, names: Sequence[str]
) -> int:
    """Disk that `num_rows` images take at most in so many parts, if `pngs` were drawn as they are:
    four standard errors above the mean, and with all that the format adds.
    """
    sizes = np.array([len(image) for image in pngs])
    fixed, of_part = 4 * _BLOCK + sum(len(name.encode()) for name in names), _PART_BYTES
    if form == "parquet":
        largest = max(pngs, key=len)
        of_part += len(_parquet([largest], np.zeros(1, np.int32), names)) - len(largest)
        sizes = sizes + _ROW_BYTES
    elif form == "webdataset":  # a header each, and the label in a block
        sizes = _whole(sizes, _TAR_BLOCK) + 3 * _TAR_BLOCK
        of_part += tarfile.RECORDSIZE
    else:
        sizes = _whole(sizes, _BLOCK) + _ENTRY_BYTES
        fixed += len(names) * _BLOCK
    row = sizes.mean() + 4 * sizes.std() * math.sqrt(1 / len(sizes) + 1 / num_rows)
    return math.ceil(num_rows * float(row)) + num_parts * of_part + fixed


def _whole(sizes: NDArray[np.int64], block: int) -> NDArray[np.int64]:
    return -(-sizes // block) * block


def _parquet(pngs: Sequence[bytes], labels: NDArray[np.int32], names: Sequence[str]) -> bytes:
    """Columns image (PNG bytes) and label, with the label names as HF datasets reads them."""
    features = {
        "image": {"_type": "Value", "dtype": "binary"},
        "label": {"_type": "ClassLabel", "names": list(names)},
    }
    table = pa.table(
        {
            "image": pa.array(pngs, type=pa.binary()),
            "label": pa.array(labels, type=pa.int64()),
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="none")
    return sink.getvalue()


def _webdataset(first: int, pngs: Sequence[bytes], labels: NDArray[np.int32]) -> bytes:
    """A tar with NNNNNNNNNN.png and NNNNNNNNNN.cls (the label's number) for each row."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row, (image, label) in enumerate(zip(pngs, labels, strict=True), start=first):
            for suffix, content in (("png", image), ("cls", str(label).encode())):
                entry = tarfile.TarInfo(f"{row:010d}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return sink.getvalue()
