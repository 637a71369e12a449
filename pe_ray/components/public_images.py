"""A public image set on disk: decoded and resized once per machine, then mapped into memory.

The cache is an ordinary folder, since everything in it is public. Whoever comes first fills an
entry while others wait; a killed process leaves nothing that is taken for an entry.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from pe_ray import images
from pe_ray.errors import InputError

OPTION = "generator.data"
_READ_ROWS = 64  # decoded at a time, as photographs of 12 megapixels take 36 MB each
_FORMAT = 1


class PublicImages:
    """Images uint8 [n, size, size, channels] (memory-mapped) and the class names of them.

    Row numbers follow the files' sorted paths, and the rows in each. An image that isn't square is
    cut to the square in its middle; then it is resized with Pillow's Lanczos filter.
    classes: names, sorted; class_of: int32 [n], positions in them.
    """

    def __init__(
        self,
        *,
        data: str,
        image_column: str,
        label_column: str | None,
        size: int,
        channels: int,
        cache: str | None,
    ) -> None:
        root = Path(data)
        files = _files(root)
        settings = [_FORMAT, str(root.resolve()), image_column, label_column, size, channels]
        digest = hashlib.sha256(json.dumps(settings).encode())
        for file in files:
            stat = file.stat()
            digest.update(f"{file.relative_to(root)}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
        self.folder = cache_folder(cache) / digest.hexdigest()[:32]

        def make(folder: Path) -> None:
            rows = _rows(root, files, image_column, label_column)
            _write(folder, rows, _count(files), size, channels)

        made = entry(self.folder / "images", make)
        self.images: NDArray[np.uint8] = np.load(
            made / "images.npy", mmap_mode="r", allow_pickle=False
        )
        self.class_of: NDArray[np.int32] = np.load(made / "class_of.npy", allow_pickle=False)
        self.classes: list[str] = json.loads((made / "classes.json").read_text())


def cache_folder(given: str | None) -> Path:
    """The folder of public caches: as given, or pe_ray/public in the user's cache folder."""
    if given is not None:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pe_ray" / "public"


def entry(folder: Path, make: Callable[[Path], None]) -> Path:
    """The cache entry `folder`; where it is missing, `make` fills it, in one process at a time."""
    if folder.exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f".{folder.name}.lock")):
            if not folder.exists():
                for stale in folder.parent.glob(f".{folder.name}.part-*"):  # of a killed process
                    shutil.rmtree(stale)
                aside = folder.with_name(f".{folder.name}.part-{uuid.uuid4().hex}")
                aside.mkdir()
                make(aside)
                aside.rename(folder)
    except OSError as error:
        raise InputError(
            f"generator.cache: {folder.parent} can't be written ({error.strerror}); give another "
            "folder"
        ) from error
    return folder


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _files(root: Path) -> list[Path]:
    if not root.exists():
        raise InputError(f"{OPTION}: {root} does not exist on this machine")
    if root.is_file():
        if root.suffix != ".parquet":
            raise InputError(f"{OPTION}: {root} is no .parquet file; give one, or a folder")
        return [root]
    files = sorted(root.rglob("*.parquet")) or images.image_files(root)
    if not files:
        raise InputError(f"{OPTION}: {root} holds neither .parquet files nor images")
    return files


def _count(files: list[Path]) -> int:
    """Number of images, from metadata alone."""
    if files[0].suffix != ".parquet":
        return len(files)
    try:
        return sum(int(pq.read_metadata(file).num_rows) for file in files)
    except pa.ArrowException as error:
        raise InputError(f"{OPTION}: not a readable parquet file: {error}") from error


Row = tuple[str, Any, str]
"""Where it is (for errors), what is stored, class name."""


def _rows(
    root: Path, files: list[Path], image_column: str, label_column: str | None
) -> Iterator[Row]:
    for file in files:
        if file.suffix == ".parquet":
            yield from _parquet_rows(file, image_column, label_column)
        else:
            below = file.relative_to(root).parts
            yield str(file), file.read_bytes(), below[0] if len(below) > 1 else ""


def _parquet_rows(file: Path, image_column: str, label_column: str | None) -> Iterator[Row]:
    with pq.ParquetFile(file) as parquet:
        schema = parquet.schema_arrow
        for option, name in (("image_column", image_column), ("label_column", label_column)):
            if name is not None and schema.names.count(name) != 1:
                raise InputError(
                    f"generator.{option}: {name!r} is not in {file}; columns are "
                    f"{', '.join(schema.names)}"
                )
        reason = images.unsupported(schema.field(image_column).type)
        if reason is not None:
            raise InputError(f"generator.image_column: {image_column!r} {reason}")
        columns = [image_column, *([label_column] if label_column else [])]
        row = 0
        for batch in parquet.iter_batches(_READ_ROWS, columns=columns):
            cells = images.values_of(batch.column(image_column))
            labels = batch.column(label_column).to_pylist() if label_column else [""] * len(cells)
            for cell, label in zip(cells, labels, strict=True):
                yield f"{file}, row {row}", cell, "" if label is None else str(label)
                row += 1


def _write(folder: Path, rows: Iterator[Row], num_rows: int, size: int, channels: int) -> None:
    if num_rows == 0:
        raise InputError(f"{OPTION}: holds no images")
    shape = (num_rows, size, size, channels)
    stored = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype="u1", shape=shape)
    names: list[str] = []
    for position, (where, cell, name) in enumerate(rows):
        try:
            stored[position] = resized(images.pixels(cell, channels), size)
        except images.Unusable as error:
            raise InputError(f"{OPTION}: {where}: {error.reason}; mend or remove it") from None
        names.append(name)
    stored.flush()
    classes, class_of = np.unique(np.array(names), return_inverse=True)
    np.save(folder / "class_of.npy", class_of.astype(np.int32))
    (folder / "classes.json").write_text(json.dumps(classes.tolist()))


def resized(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """`image` [h, w, c] as [size, size, c]: the square in its middle, by Pillow's Lanczos."""
    height, width, channels = image.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    if side == size:
        return square
    made = Image.fromarray(square[:, :, 0] if channels == 1 else square)
    made = made.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(made).reshape(size, size, channels)
