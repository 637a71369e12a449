"""Formats that the final set and its expansions are written in.

To add a format, write a class with the four members of `ExportFormat`, as those below.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pe_ray.errors import InputError
from pe_ray.files.class_folders import folder_name
from pe_ray.files.layouts.tar_shards import CLASS_NAMES
from pe_ray.files.storage import Location, atomic_write, sync, write_many

BLOCK_BYTES = 4096  # disks are given out in blocks of this size
_TAR_BLOCK = 512
_ROW_BYTES = 16  # of parquet, besides the image
_ENTRY_BYTES = 64  # of an image in its folder


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledImages:
    """Rows first, first + 1, ... of a set: images as PNG, their labels [n] and all label names."""

    first: int
    pngs: Sequence[bytes]
    labels: NDArray[np.int32]
    names: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes on disk. rows: of some images, int64 [n]; part: of any part besides; fixed: of all."""

    rows: NDArray[np.int64]
    part: int = 0
    fixed: int = 0


class ExportFormat(Protocol):
    """How labelled images are written for readers. A format holds no state."""

    suffix: ClassVar[str]
    """Ending of a part's file."""

    @staticmethod
    def check(directory: Location, names: Sequence[str]) -> None:
        """Raise InputError where `directory` can't hold images with the label names `names`."""
        ...

    @staticmethod
    def write(directory: Location, images: LabelledImages) -> bytes:
        """Return the content of the part's file for `images`.

        May write further files, which must outlive a crash once this returns. A part may be written
        again.
        """
        ...

    @staticmethod
    def measure(pngs: Sequence[bytes], names: Sequence[str]) -> Footprint:
        """Return what images like `pngs` take on disk, at most."""
        ...


class Parquet:
    """Columns image (PNG bytes) and label, with the label names as HF datasets reads them."""

    suffix = "parquet"

    @staticmethod
    def check(directory: Location, names: Sequence[str]) -> None:
        pass

    @staticmethod
    def write(directory: Location, images: LabelledImages) -> bytes:
        features = {
            "image": {"_type": "Value", "dtype": "binary"},
            "label": {"_type": "ClassLabel", "names": list(images.names)},
        }
        columns = {
            "image": pa.array(images.pngs, type=pa.binary()),
            "label": pa.array(images.labels, type=pa.int64()),
        }
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        sink = io.BytesIO()
        table = pa.table(columns).replace_schema_metadata(metadata)
        pq.write_table(table, sink, compression="none")
        return sink.getvalue()

    @staticmethod
    def measure(pngs: Sequence[bytes], names: Sequence[str]) -> Footprint:
        largest = max(pngs, key=len)
        label = np.zeros(1, dtype=np.int32)
        one = LabelledImages(first=0, pngs=[largest], labels=label, names=names)
        part = len(Parquet.write(Path(), one)) - len(largest)
        return Footprint(rows=_sizes(pngs) + _ROW_BYTES, part=part)


class WebDataset:
    """Tar shards with NNNNNNNNNN.png and NNNNNNNNNN.cls (the label's number) for each row.

    `classes.json` beside them lists the label names, in the order of these numbers.
    """

    suffix = "tar"

    @staticmethod
    def check(directory: Location, names: Sequence[str]) -> None:
        pass

    @staticmethod
    def write(directory: Location, images: LabelledImages) -> bytes:
        names = directory / CLASS_NAMES
        if not names.exists():
            atomic_write(names, WebDataset._list_names(images.names))
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            rows = zip(images.pngs, images.labels, strict=True)
            for row, (image, label) in enumerate(rows, start=images.first):
                for suffix, content in (("png", image), ("cls", str(label).encode())):
                    entry = tarfile.TarInfo(f"{row:010d}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
        return sink.getvalue()

    @staticmethod
    def measure(pngs: Sequence[bytes], names: Sequence[str]) -> Footprint:
        # Two headers, and the label in a block.
        rows = _whole(_sizes(pngs), _TAR_BLOCK) + 3 * _TAR_BLOCK
        fixed = len(WebDataset._list_names(names)) + BLOCK_BYTES
        return Footprint(rows=rows, part=tarfile.RECORDSIZE, fixed=fixed)

    @staticmethod
    def _list_names(names: Sequence[str]) -> bytes:
        return json.dumps(list(names), ensure_ascii=False).encode()


class ImageFolder:
    """A folder of PNG files per label; a part's own file is a marker, written after its images.

    A folder has its label's name (see class_folders). Readers that take a folder named `train` for
    a split need the files' pattern (docs/expand.md).
    """

    suffix = "done"

    @staticmethod
    def check(directory: Location, names: Sequence[str]) -> None:
        if not isinstance(directory, Path):
            return
        most = os.pathconf(directory, "PC_NAME_MAX")
        for name in names:
            length = len(os.fsencode(folder_name(name)))
            if length > most:
                raise InputError(
                    f"--format: the label {name[:16]!r}... is too long for a folder's name: "
                    f"{length} bytes, percent-encoded, of at most {most}; use parquet or "
                    "webdataset"
                )

    @staticmethod
    def write(directory: Location, images: LabelledImages) -> bytes:
        for label in np.unique(images.labels):
            rows = np.flatnonzero(images.labels == label).tolist()
            files = [(f"{images.first + row:010d}.png", images.pngs[row]) for row in rows]
            write_many(directory / folder_name(images.names[label]), files)
        sync(directory)  # before there is a marker
        return f"{len(images.pngs)} images\n".encode()

    @staticmethod
    def measure(pngs: Sequence[bytes], names: Sequence[str]) -> Footprint:
        rows = _whole(_sizes(pngs), BLOCK_BYTES) + _ENTRY_BYTES
        return Footprint(rows=rows, fixed=len(names) * BLOCK_BYTES)


def _sizes(pngs: Sequence[bytes]) -> NDArray[np.int64]:
    return np.array([len(image) for image in pngs], dtype=np.int64)


def _whole(sizes: NDArray[np.int64], block: int) -> NDArray[np.int64]:
    return -(-sizes // block) * block
