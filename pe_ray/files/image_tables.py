"""Tables of images: what private records, public images and references are all given as.

A table is `sklearn:digits`, a file, or a folder in one of several layouts (`files/layouts`). Its
files are local or in a store. Private and public tables differ only in what an error may say.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pe_ray.errors import InputError, RecordError
from pe_ray.files.data_folders import read_path_values
from pe_ray.files.storage import Location
from pe_ray.values import LabelValues

DIGITS = "sklearn:digits"
SPLIT = "split"
"""Column that folders named train, test and the like give their files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTable:
    """Where images are stored, what their columns mean, and what an error may say about them.

    block: block of the configuration, with which the field in an error begins.
    private: whether errors about rows must carry no content. They then name a shard, a row and a
    fixed reason, but no stored value, class folder or image file.
    labels: names of all labels. None: labels stay as they are stored.
    label_values: what integers mean that no class names explain (label_names.py).
    label_column: None if there are no labels; each row then has the only one of `labels`.
    where: column -> value. Rows with another value are skipped.
    fields: option -> field that an error names, where it is not in `block`.
    """

    block: str
    private: bool
    data: str
    labels: tuple[str, ...] | None = None
    label_values: LabelValues = "name"
    image_column: str = "image"
    label_column: str | None = "label"
    user_column: str | None = None
    where: Mapping[str, str | int | bool] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)

    def name_field(self, option: str) -> str:
        """Return the full name of an option."""
        return self.fields.get(option, f"{self.block}.{option}")

    def refuse(self, reason: str, option: str = "data") -> InputError:
        """Return the error about an option, from names of files and columns alone."""
        return InputError(f"{self.name_field(option)}: {reason}")

    def row_error(self, part: TableSlice, row: int, reason: str) -> InputError:
        """Return the error for a row; a private table's `reason` must be one of a fixed few."""
        where = f"shard {part.shard}, row {row}" if self.private else part.place(row)
        kind = RecordError if self.private else InputError
        return kind(f"{self.name_field('data')}: {where}: {reason}; correct or remove it")

    def damage_error(self, part: TableSlice, error: Exception) -> InputError:
        """Return the error for a slice that can't be read; `error` may quote what is stored."""
        if self.private:
            where = f"{self.name_field('data')}: shard {part.shard}"
            return RecordError(
                f"{where} can't be read ({type(error).__name__}): it is damaged; copy it again"
            )
        reason = " ".join(str(error).split())[:200]
        return self.refuse(f"{part.source} can't be read ({reason})")


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSlice:
    """Rows start..stop-1 of a shard, which is one file or the images of one folder.

    layout: what lists and reads it (files/layouts). source: the file or folder; None for digits.
    label: the class folder's name; None in a file, and for images outside the class folders.
    folder_values: columns that the names of folders give all rows.
    class_names: what the file says that its integer labels stand for.
    files: packed names of a folder's images in these rows. A folder is listed only once, since
    that takes seconds for a large one.
    """

    layout: str
    shard: int = 0
    source: Location | None
    start: int = 0
    stop: int
    label: str | None = None
    folder_values: Mapping[str, str] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    files: bytes = field(default=b"", repr=False)

    @property
    def paths(self) -> list[Location]:
        """Return the images of a folder, or the file."""
        if self.source is None:
            return []
        if not self.files:
            return [self.source]
        return [self.source / name for name in self.names]

    @property
    def names(self) -> list[str]:
        """Return the names of a folder's images in these rows."""
        return os.fsdecode(zlib.decompress(self.files)).split("\0") if self.files else []

    def place(self, row: int) -> str:
        """Say where a row of a public table is."""
        if self.files:
            return str(self.paths[row - self.start])
        return f"{self.source or self.layout}, row {row}"


Faults = list[tuple[str, InputError]]
"""(Path of a file or folder, why it can't be read), of each that keeps a table from being read."""


def raise_or_note(faults: Faults | None, place: object, error: InputError) -> None:
    """Raise `error`, or note it where faults are collected."""
    if faults is None:
        raise error
    faults.append((str(place), error))


def locate_files(root: Location, names: Sequence[str]) -> list[tuple[Location, Mapping[str, str]]]:
    """Return (file, columns that the folders below `root` give it) of each name.

    `root` itself if there are no names.
    """
    return [(root / name, read_path_values(name)) for name in names] or [(root, {})]


def open_each(
    open_file: Callable[[ImageTable, Location, Mapping[str, str]], TableSlice],
    table: ImageTable,
    files: Sequence[tuple[Location, Mapping[str, str]]],
    faults: Faults | None,
) -> list[TableSlice]:
    """Open files, given with the columns that folders give them; note or raise the errors."""
    opened = []
    for file, folder_values in files:
        try:
            opened.append(open_file(table, file, folder_values))
        except InputError as error:
            raise_or_note(faults, file, error)
    return opened


def pack_names(names: Sequence[str]) -> bytes:
    """Compress names; most differ by a number only, so each takes a few bytes."""
    return zlib.compress(os.fsencode("\0".join(names)), 1) if names else b""
