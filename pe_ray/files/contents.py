"""Digests of what files hold, so that another content at the same path is noticed.

Links are followed. Names that begin with a dot are left out: tools keep their own notes there.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from pe_ray.files.storage import (
    Location,
    ObjectPath,
    expand_home,
    file_version,
    parse_location,
)

State = tuple[int, ...]
"""Of a file: size, times and inode. No content changes without it."""

_IMAGES = "data"  # key of image sets, which may be too large to read at every start
_LARGE = 1 << 30  # bytes of such a set; beyond, its names and sizes stand for its content
_WORDS = {
    *("kind", "labels", "where", "image_column", "label_column", "user_column"),
    *("classes", "texts", "prompt", "prompts", "revision"),
}
"""Keys under which a text never names a file."""


def list_named(tree: Any, field: str = "", *, within: bool = False) -> Iterator[tuple[str, str]]:
    """Yield (dotted key, text) of all plain values that may name a file.

    These are the texts in a plugin's options, and every image set.
    within: whether `tree` lies in such options.
    """
    if isinstance(tree, str):
        if within or names_images(field):
            yield field, tree
    elif isinstance(tree, Mapping):
        within = within or "kind" in tree or field == "tuning.space"
        for name, below in tree.items():
            if name not in _WORDS:
                yield from list_named(below, f"{field}.{name}".lstrip("."), within=within)
    elif isinstance(tree, list | tuple):
        for below in tree:
            yield from list_named(below, field, within=within)


def find_place(text: str) -> Location | None:
    """Return the local file or folder, or the place in a store, that `text` names."""
    try:
        place = parse_location(text)
    except ValueError:
        return None
    if isinstance(place, Path) and not (text and os.path.exists(place)):
        return None
    return place


def holds_own_work(place: Path) -> bool:
    """Tell whether the working directory or the home folder lies in `place`.

    Its content changes with every run, so it says nothing about a plugin.
    """
    folder = str(place.resolve())
    try:
        own = [os.path.realpath(each) for each in (os.curdir, expand_home("~"))]
    except FileNotFoundError:  # the working directory was removed
        return False
    return any(os.path.commonpath([each, folder]) == folder for each in own)


def digest_place(place: Location, *, images: bool = False) -> str | None:
    """Return a digest of a file, or of all files in a folder; None where there is none to read.

    images: an image set of more than 1 GiB is known by the names and sizes of its files. In a
    store, a file is known by what the store says of it, and a folder by names and sizes.
    """
    if isinstance(place, ObjectPath):
        try:
            return _digest_objects(place)
        except (OSError, pa.ArrowException):
            return None
    states = read_states(place)
    if not states:
        return None
    if images and sum(state[0] for state in states.values()) > _LARGE:
        return _digest_sizes({name: state[0] for name, state in states.items()})
    digests = {name: _digest_file(str(place / name), state) for name, state in states.items()}
    if "" in digests:
        return digests[""] and f"sha256:{digests['']}"
    return f"sha256:{_digest(sorted(digests.items()))}"


def read_states(place: Path) -> dict[str, State]:
    """Return relative name -> state of each file in a folder; of a file, "" -> its state."""
    if not place.is_dir():
        return _stat_each({"": place})
    paths: dict[str, Path] = {}
    for parent, folders, files in walk_links(place):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        below = (Path(parent, name) for name in files if name[0] != ".")
        paths |= {path.relative_to(place).as_posix(): path for path in below}
    return _stat_each(paths)


def walk_links(place: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk a folder as `os.walk` does, through links too, but enter each folder once."""
    seen: set[str] = set()
    for parent, folders, files in os.walk(place, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link that leads back
            folders.clear()
        else:
            seen.add(real)
            yield parent, folders, files


def stat_entries(place: Path, *, folders: bool) -> dict[str, State]:
    """Return name -> state of what lies directly in a folder; folders: whether of those too.

    Of a file, the same as `read_states`.
    """
    if not place.is_dir():
        return read_states(place)
    paths = {name: place / name for name in os.listdir(place) if name[0] != "."}
    return _stat_each(paths, folders=folders)


def read_named_states(options: Mapping[str, Any]) -> dict[str, dict[str, State]]:
    """Return text -> states of the local files that a plugin's options name, without reading them.

    Of an image set, which may be large, only those of what lies directly in its folder.
    """
    found: dict[str, dict[str, State]] = {}
    for field, text in list_named(options, within=True):
        place = find_place(text)
        if isinstance(place, Path) and not holds_own_work(place):
            images = names_images(field)
            found[text] = stat_entries(place, folders=True) if images else read_states(place)
    return found


def names_images(field: str) -> bool:
    """Tell whether the value of the dotted key `field` names an image set."""
    return field.rpartition(".")[2] == _IMAGES


def _stat_each(paths: Mapping[str, Path], *, folders: bool = False) -> dict[str, State]:
    states: dict[str, State] = {}
    for name, path in paths.items():
        with suppress(OSError):  # a link to nothing
            found = path.stat()
            if folders or stat.S_ISREG(found.st_mode):
                times = found.st_mtime_ns, found.st_ctime_ns
                states[name] = (found.st_size, *times, found.st_ino)
    return states


@lru_cache(maxsize=1 << 16)
def _digest_file(path: str, state: State) -> str | None:
    """Return the SHA-256 (hex) of a file, None where it can't be read.

    state: a process reads the file again when it changes.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _digest_objects(place: ObjectPath) -> str | None:
    from pyarrow.fs import FileSelector, FileType

    kind = place.store.get_file_info(place.key).type
    if kind == FileType.File:
        return f"version:{_digest(file_version(place))}"
    if kind != FileType.Directory:
        return None
    infos = place.store.get_file_info(FileSelector(place.key, recursive=True))
    return _digest_sizes({info.path: info.size for info in infos if info.is_file})


def _digest_sizes(sizes: Mapping[str, int]) -> str:
    return f"sizes:{_digest(sorted(sizes.items()))}"


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
