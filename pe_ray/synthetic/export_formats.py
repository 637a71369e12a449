"""Formats that the final set and its expansions are written in.

To add a format, write a class with the two members of `ExportFormat`, as those below.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pe_ray.files.array_files import encode_table
from pe_ray.files.folder_names import folder_name
from pe_ray.files.layouts.tar_shards import CLASS_NAMES
from pe_ray.files.storage import (
    Location,
    atomic_write,
    io_errors_as_input_errors,
    sync,
    write_many,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledImages:
    """Rows first, first + 1, ... of a set: images as PNG, their labels [n] and all label names."""

    first: int
    pngs: Sequence[bytes]
    labels: NDArray[np.int32]
    names: Sequence[str]


class ExportFormat(Protocol):
    """How labelled images are written for readers. A format holds no state."""

    suffix: ClassVar[str]
    """Ending of a part's file."""

    @staticmethod
    def write(directory: Location, images: LabelledImages) -> bytes:
        """Return the content of the part's file for `images`.

        May write further files, which must outlive a crash once this returns. A part may be written
        again.
        """
        ...


def make_table(images: LabelledImages) -> pa.Table:
    """Return columns image ({bytes: PNG, path: null}) and label, as HF datasets reads them."""
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": list(images.names)},
    }
    columns = {
        "image": pa.StructArray.from_arrays(
            [pa.array(images.pngs, pa.binary()), pa.nulls(len(images.pngs), pa.string())],
            ["bytes", "path"],
        ),
        "label": pa.array(images.labels, type=pa.int64()),
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.table(columns).replace_schema_metadata(metadata)


class Parquet:
    """The columns of `make_table`."""

    suffix = "parquet"

    @staticmethod
    def write(directory: Location, images: LabelledImages) -> bytes:
        return encode_table(make_table(images), compression="none")


class WebDataset:
    """Tar shards with NNNNNNNNNN.png and NNNNNNNNNN.cls (the label's number) for each row.

    `classes.json` beside them lists the label names, in the order of these numbers.
    """

    suffix = "tar"

    @staticmethod
    def write(directory: Location, images: LabelledImages) -> bytes:
        names = directory / CLASS_NAMES
        if not names.exists():
            content = json.dumps(list(images.names), ensure_ascii=False).encode()
            atomic_write(names, content)
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            rows = zip(images.pngs, images.labels, strict=True)
            for row, (image, label) in enumerate(rows, start=images.first):
                for suffix, content in (("png", image), ("cls", str(label).encode())):
                    entry = tarfile.TarInfo(f"{row:010d}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
        return sink.getvalue()


class ImageFolder:
    """A folder of PNG files per label; a part's own file is a marker, written after its images.

    A folder has its label's name (see files.folder_names). Readers that take a folder named
    `train` for a split need the files' pattern (docs/expand.md).
    """

    suffix = "done"

    @staticmethod
    def write(directory: Location, images: LabelledImages) -> bytes:
        for label in np.unique(images.labels):
            rows = np.flatnonzero(images.labels == label).tolist()
            files = [(f"{images.first + row:010d}.png", images.pngs[row]) for row in rows]
            folder = directory / folder_name(images.names[label])
            with io_errors_as_input_errors("--format", folder):  # a label may be too long a name
                write_many(folder, files)
        sync(directory)  # before there is a marker
        return f"{len(images.pngs)} images\n".encode()
