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

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pe_ray.errors import InputError
from pe_ray.files.public_images import PublicSource, count_images, decoded, files_of, image_rows
from pe_ray.files.storage import at_home, reported

_FORMAT = 1


class CachedImages:
    """Images uint8 [n, size, size, channels] (memory-mapped) and the class names of them.

    Row numbers are those of `image_rows`. An image that isn't square is cut to the square in its
    middle; then it is resized with Pillow's Lanczos filter.
    classes: names, sorted; class_of: int32 [n], positions in them.
    """

    def __init__(self, source: PublicSource, size: int, channels: int, cache: str | None) -> None:
        root, columns = at_home(source.data), (source.image_column, source.label_column)
        digest = hashlib.sha256(
            json.dumps([_FORMAT, str(root.resolve()), *columns, size, channels]).encode()
        )
        for file in files_of(source):
            with reported(f"{source.block}.data", file):
                stat = file.stat()
            digest.update(f"{file.relative_to(root)}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
        self.folder = cache_folder(cache) / digest.hexdigest()[:32]
        made = entry(self.folder / "images", lambda folder: _write(folder, source, size, channels))
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


def _write(folder: Path, source: PublicSource, size: int, channels: int) -> None:
    shape = (count_images(source), size, size, channels)
    stored = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype="u1", shape=shape)
    names: list[str] = []
    for position, (where, cell, label) in enumerate(image_rows(source)):
        stored[position] = resized(decoded(source, where, cell, channels), size)
        names.append("" if label is None else str(label))
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
