"""A public image set on disk: decoded and resized once, in parts, then mapped into memory.

The cache is an ordinary folder, since everything in it is public. Where machines share it, its
parts are made once for all of them. Processes that need them at the same time share the parts out.
A killed process leaves nothing that others take for a part.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_ray.errors import InputError
from pe_ray.files.image_batches import read_batches
from pe_ray.files.image_shards import list_shards, split_shards
from pe_ray.files.image_tables import ImageTable, TableSlice
from pe_ray.files.locks import locked
from pe_ray.files.storage import (
    file_version,
    find_cache,
    io_errors_as_input_errors,
    resolve_place,
)
from pe_ray.runtime.watchdog import note_progress
from pe_ray.values import Framing

_FORMAT = 3


class PartedArray:
    """An array whose rows lie in several files, one after the other, mapped into memory."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.parts = [np.load(file, mmap_mode="r", allow_pickle=False) for file in files]
        self._starts = np.cumsum([0, *map(len, self.parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return the rows, in the order given; they may repeat."""
        of_part = np.searchsorted(self._starts, rows, side="right") - 1
        found = np.empty((len(rows), *self.parts[0].shape[1:]), self.parts[0].dtype)
        for number in np.unique(of_part):
            here = of_part == number
            found[here] = self.parts[number][rows[here] - self._starts[number]]
        return found


class CachedImages:
    """Images uint8 [n, height, width, channels] and their class names.

    Rows are in the table's order. cache: folder; default: pe_ray/public in the user's cache folder.
    classes: names, sorted; class_of: int32 [n], positions in them.
    """

    def __init__(self, table: ImageTable, framing: Framing, cache: str | None) -> None:
        shards, root = list_shards(table), resolve_place(table.data, table.name_field("data"))
        columns = (table.image_column, table.label_column)
        digest = hashlib.sha256(
            json.dumps([_FORMAT, str(root), *columns, asdict(framing)]).encode()
        )
        for file in (file for shard in shards for file in shard.paths):
            with io_errors_as_input_errors(table.name_field("data"), file):
                state = "|".join(map(str, file_version(file)))
            digest.update(f"{os.path.relpath(str(file), str(root))}|{state}\n".encode())
        caches = Path(cache) if cache is not None else find_cache() / "pe_ray" / "public"
        self.folder = caches / digest.hexdigest()[:32]
        slices = split_shards(shards)
        if not slices:
            raise table.refuse(f"{table.data} holds no image", "data")
        made = fill_parts(
            self.folder / "images",
            len(slices),
            lambda number, folder: _write(folder, table, slices[number], framing),
        )
        self.images = PartedArray([folder / "images.npy" for folder in made])
        names = np.concatenate(
            [np.load(folder / "names.npy", allow_pickle=False) for folder in made]
        )
        classes, class_of = np.unique(names, return_inverse=True)
        self.classes: list[str] = classes.tolist()
        self.class_of: NDArray[np.int32] = class_of.astype(np.int32)


def fill_parts(folder: Path, num: int, make: Callable[[int, Path], None]) -> list[Path]:
    """Return the entries 0, 1, ... in `folder`; those that are missing are filled with `make`.

    Each process begins somewhere else and leaves out what others are filling, until only that is
    missing.
    """
    entries, first = [folder / f"{number:05d}" for number in range(num)], uuid.uuid4().int % num
    for wait in (False, True):
        for number in (*range(first, num), *range(first)):
            _fill_entry(entries[number], partial(make, number), wait=wait)
            note_progress()
    return entries


def _fill_entry(folder: Path, make: Callable[[Path], None], *, wait: bool) -> None:
    """Fill the entry `folder` with `make` if it is missing and, unless `wait`, nobody does."""
    if folder.exists():
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f".{folder.name}.lock"), None if wait else 0):
            if not folder.exists():
                for stale in folder.parent.glob(f".{folder.name}.part-*"):  # of a killed process
                    shutil.rmtree(stale)
                aside = folder.with_name(f".{folder.name}.part-{uuid.uuid4().hex}")
                aside.mkdir()
                make(aside)
                aside.rename(folder)
    except OSError as error:
        if isinstance(error, TimeoutError) and not wait:
            return
        raise InputError(
            f"generator.cache: {folder.parent} can't be written ({error.strerror}); give another "
            "folder"
        ) from error


def _write(folder: Path, table: ImageTable, part: TableSlice, framing: Framing) -> None:
    images, names = [], list[str]()
    for batch in read_batches(table, part, framing):
        images.append(batch.images)
        names += [name or "" for name in batch.names]
    np.save(folder / "images.npy", np.concatenate(images))
    np.save(folder / "names.npy", np.array(names))
