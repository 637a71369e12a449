"""A public image set on disk: decoded and resized once per machine, then mapped into memory.

The cache is an ordinary folder, since everything in it is public. The first process fills an
entry while others wait. A killed process leaves nothing that others take for an entry.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pe_ray.errors import InputError
from pe_ray.files.image_batches import count_images, read_batches
from pe_ray.files.image_shards import list_shards
from pe_ray.files.image_tables import ImageTable, TableSlice
from pe_ray.files.locks import locked
from pe_ray.files.storage import (
    file_version,
    find_cache,
    io_errors_as_input_errors,
    resolve_place,
)
from pe_ray.values import Framing

_FORMAT = 2


class CachedImages:
    """Images uint8 [n, height, width, channels] (memory-mapped) and their class names.

    Rows are in the table's order.
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
        self.folder = cache_folder(cache) / digest.hexdigest()[:32]
        made = fill_entry(
            self.folder / "images", lambda folder: _write(folder, table, shards, framing)
        )
        self.images: NDArray[np.uint8] = np.load(
            made / "images.npy", mmap_mode="r", allow_pickle=False
        )
        self.class_of: NDArray[np.int32] = np.load(made / "class_of.npy", allow_pickle=False)
        self.classes: list[str] = json.loads((made / "classes.json").read_text())


def cache_folder(given: str | None) -> Path:
    """Return the folder of public caches; default: pe_ray/public in the user's cache folder."""
    if given is not None:
        return Path(given)
    return find_cache() / "pe_ray" / "public"


def fill_entry(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return the cache entry `folder`; if it is missing, one process fills it with `make`."""
    if folder.exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f".{folder.name}.lock")):
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


def _write(folder: Path, table: ImageTable, shards: Sequence[TableSlice], framing: Framing) -> None:
    sides = framing.shape
    shape = (sum(count_images(table, shards)), sides.height, sides.width, sides.channels)
    stored = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype="u1", shape=shape)
    names: list[str] = []
    for shard in shards:
        for batch in read_batches(table, shard, framing):
            stored[len(names) : len(names) + len(batch.images)] = batch.images
            names += [name or "" for name in batch.names]
    stored.flush()
    classes, class_of = np.unique(np.array(names), return_inverse=True)
    np.save(folder / "class_of.npy", class_of.astype(np.int32))
    (folder / "classes.json").write_text(json.dumps(classes.tolist()))
