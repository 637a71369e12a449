"""What counts as data below a folder: each file once, and nothing that programs leave behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pe_ray.files.storage import Location

_LEFT_BY_PROGRAMS = frozenset(
    {
        *("@eadir", "#recycle", "#snapshot", "lost+found", "$recycle.bin"),
        *("system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini"),
    }
)
SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "dev"})
"""Names of folders that are parts of a data set, in small letters."""
HIDDEN = "hidden or temporary"
LEFT_BEHIND = "left by a file system"
LINKED_TWICE = "another path of a file that is read"
FOLDER_LINKS = "links to folders"
NOT_DATA = "neither images nor tables"
OTHER_SPLIT = "of another split"
NOT_KEPT = "not kept by where"
NOT_CURRENT = "without rows of the table's current version"
NOT_LISTED = "in no list of files"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """A file below a folder. name: its path there; size: bytes.

    identity: the same for all paths of one file; None where that can't be told.
    linked: whether a link leads to it.
    """

    name: str
    size: int
    identity: tuple[int, int] | None = None
    linked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderListing:
    """The files below a folder that may be data, sorted folder by folder.

    passed_over: reason -> names of what isn't read; a folder's name ends with a slash.
    second_paths: (a path that is not read, the path by which that file is), once
    `keep_first_paths` has chosen.
    """

    files: tuple[DataFile, ...]
    passed_over: dict[str, list[str]] = field(default_factory=dict)
    second_paths: tuple[tuple[str, str], ...] = ()

    @property
    def names(self) -> list[str]:
        return [file.name for file in self.files]

    def keep(self, wanted: Callable[[str], bool], reason: str) -> FolderListing:
        """Return the listing with only the files whose names are `wanted`."""
        kept = tuple(file for file in self.files if wanted(file.name))
        left = [file.name for file in self.files if not wanted(file.name)]
        passed_over = dict(self.passed_over)
        if left:
            passed_over[reason] = [*passed_over.get(reason, []), *left]
        return replace(self, files=kept, passed_over=passed_over)

    def keep_first_paths(self) -> FolderListing:
        """Return the listing with one path of each file: one without a link, else the first."""
        chosen: dict[Any, DataFile] = {}
        for file in sorted(self.files, key=lambda file: file.linked):
            chosen.setdefault(file.identity or file.name, file)
        first = {file.name: chosen[file.identity or file.name].name for file in self.files}
        listing = self.keep(lambda name: first[name] == name, LINKED_TWICE)
        second_paths = tuple((name, other) for name, other in first.items() if name != other)
        return replace(listing, second_paths=second_paths)


def list_data_files(folder: Location, labels: Collection[str] = ()) -> FolderListing:
    """List the files below `folder` that may be data, from names, sizes and links alone.

    Passed over are names that begin with . or _, and what file systems and desktops leave behind.
    Links to folders are followed at the top only. A file is listed by each of its paths.
    labels: names of folders at the top, or at that of a split, that are data however they begin.

    Raises OSError where a folder can't be listed.
    """
    passed_over: dict[str, list[str]] = {}
    found = _walk(folder, labels, passed_over) if isinstance(folder, Path) else _list(folder)
    files = []
    for file in sorted(found, key=lambda file: _folder_order(file.name)):
        fault = _find_fault(file.name, labels)
        if fault is None:
            files.append(file)
        else:
            _note(passed_over, *fault)
    return FolderListing(files=tuple(files), passed_over=passed_over)


def read_path_values(name: str) -> dict[str, str]:
    """Return what the folders in a path say of a file, as Hive writes it: `label=cat/a.parquet`.

    Column -> value, percent-decoded.
    """
    folders = name.split("/")[:-1]
    pairs = [folder.partition("=") for folder in folders if "=" in folder.strip("=")]
    return {unquote(column): unquote(value) for column, _, value in pairs}


def list_plain_folders(name: str) -> list[str]:
    """List the folders in a path that aren't such pairs."""
    return [folder for folder in name.split("/")[:-1] if "=" not in folder.strip("=")]


def _walk(
    folder: Path, labels: Collection[str], passed_over: dict[str, list[str]]
) -> Iterator[DataFile]:
    """Yield the files below a local folder; don't enter folders that are passed over."""
    waiting = [(folder, "", False)]
    while waiting:
        place, above, linked = waiting.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                name = f"{above}{entry.name}"
                is_link = entry.is_symlink()
                if not entry.is_dir():
                    if entry.is_file() or is_link:  # a link to nothing is reported when it is read
                        yield _describe(entry, name, linked or is_link)
                elif (fault := _find_fault(f"{name}/", labels)) is not None:
                    _note(passed_over, *fault)
                elif is_link and above:
                    _note(passed_over, FOLDER_LINKS, f"{name}/")
                else:
                    waiting.append((place / entry.name, f"{name}/", linked or is_link))


def _describe(entry: os.DirEntry[str], name: str, linked: bool) -> DataFile:
    try:
        state = entry.stat()
    except FileNotFoundError:
        return DataFile(name=name, size=0, linked=linked)
    identity = (state.st_dev, state.st_ino)
    return DataFile(name=name, size=state.st_size, identity=identity, linked=linked)


def _list(folder: Any) -> Iterator[DataFile]:
    """Yield the objects below a folder of a store."""
    from pyarrow.fs import FileSelector

    selector = FileSelector(folder.key, recursive=True, allow_not_found=True)
    for info in folder.store.get_file_info(selector):
        if info.is_file:
            yield DataFile(name=info.path.removeprefix(f"{folder.key}/"), size=info.size)


def _find_fault(name: str, labels: Collection[str]) -> tuple[str, str] | None:
    """Return why a file isn't data, and the path up to the part of it that says so."""
    parts = name.rstrip("/").split("/")
    is_top = True
    for depth, part in enumerate(parts):
        if is_top and part in labels:
            is_top = False
            continue
        is_top &= part.lower() in SPLITS or "=" in part
        reason = None
        if part.startswith((".", "_")):
            reason = HIDDEN
        elif part.casefold() in _LEFT_BY_PROGRAMS:
            reason = LEFT_BEHIND
        if reason is not None:
            is_folder = depth + 1 < len(parts) or name.endswith("/")
            return reason, "/".join(parts[: depth + 1]) + "/" * is_folder
    return None


def _note(passed_over: dict[str, list[str]], reason: str, name: str) -> None:
    names = passed_over.setdefault(reason, [])
    if name not in names[-1:]:  # objects of a store come one by one, sorted
        names.append(name)


def _folder_order(name: str) -> str:
    return name.replace("/", "\0")
