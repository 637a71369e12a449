"""What users read: the final set or its expansion, as parquet, webdataset or image folders."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from typing import Literal
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pe_ray.storage import Location, write_many

Format = Literal["parquet", "webdataset", "folder"]
SUFFIXES: dict[Format, str] = {"parquet": "parquet", "webdataset": "tar", "folder": "done"}
"""Of a part's file; a part of a folder is a marker, written after its images."""


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
    return f"{len(pngs)} images\n".encode()


def folder_name(label: str) -> str:
    """The label's name, characters that a path can't hold percent-encoded."""
    return quote(label, safe=" ") if label.strip(".") else quote(label).replace(".", "%2E")


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
