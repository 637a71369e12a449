"""Layout: tar files as WebDataset writes them: members that share a name are one row."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pe_ray.files import images
from pe_ray.files.image_tables import Faults, ImageTable, TableSlice, locate_files, open_each
from pe_ray.files.label_names import is_number
from pe_ray.files.layouts.columns import Rows
from pe_ray.files.storage import Location, open_seekable

NAME = "tar"
SUFFIXES = (".tar",)
CLASS_NAMES = "classes.json"
"""Beside tars: what the numbers in their .cls files stand for."""


@dataclass(frozen=True, slots=True)
class _Member:
    """A piece of a tar."""

    tar: Location
    offset: int
    size: int

    def read_bytes(self) -> bytes:
        with _open(self.tar) as file:
            file.seek(self.offset)
            return bytes(file.read(self.size))


def list_shards(
    table: ImageTable, root: Location, names: Sequence[str], faults: Faults | None = None
) -> list[TableSlice]:
    """List the tars `names` below `root`, or `root` itself if there are none.

    Guarantee: reads the names of members, but no content.
    """
    folder = root if names else root.parent
    class_names = _read_class_names(table, folder / CLASS_NAMES)
    shards = open_each(_open_tar, table, locate_files(root, names), faults)
    return [replace(shard, class_names=class_names) for shard in shards]


def _open_tar(table: ImageTable, tar: Location, folder_values: Mapping[str, str]) -> TableSlice:
    rows = _list_rows(table, tar)
    return TableSlice(layout=NAME, source=tar, stop=len(rows), folder_values=folder_values)


def read_rows(
    table: ImageTable, part: TableSlice, columns: Sequence[str], batch_rows: int
) -> Iterator[Rows]:
    """Read the rows of a slice, at most `batch_rows` at a time, with the places of their images.

    The label is what the member .cls or .txt holds, or what .json gives under `label_column`, as it
    gives all other columns.
    """
    assert part.source is not None
    members = _list_rows(table, part.source)
    if len(members) < part.stop:
        raise tarfile.ReadError("fewer rows than were listed")
    for start in range(part.start, part.stop, batch_rows):
        chosen = members[start : min(start + batch_rows, part.stop)]
        fields = [_read_fields(table, row) for row in chosen]
        found: dict[str, Sequence[Any]] = {
            name: [field.get(name) for field in fields]
            for name in columns
            if name not in part.folder_values
        }
        found[table.image_column] = [_choose_image(table, row) for row in chosen]
        yield np.arange(start, start + len(chosen)), found


def _list_rows(table: ImageTable, tar: Location) -> list[dict[str, _Member]]:
    """List the rows of a tar that have an image: ending -> member."""
    rows: dict[str, dict[str, _Member]] = {}
    try:
        with _open(tar) as file, tarfile.open(fileobj=file, mode="r:") as members:
            for member in members:
                folder, _, name = member.name.rpartition("/")
                key, _, ending = name.partition(".")
                if not member.isfile() or not key or name.startswith("_"):
                    continue
                row = rows.setdefault(f"{folder}/{key}", {})
                if ending.lower() in row:
                    which = "a member" if table.private else member.name
                    raise table.refuse(f"{tar} holds {which} twice; write it anew")
                row[ending.lower()] = _Member(tar, member.offset_data, member.size)
    except (OSError, tarfile.TarError):
        raise table.refuse(f"{tar} is not a readable tar") from None
    found = [row for row in rows.values() if _list_images(row)]
    for row in found:
        if len(_list_images(row)) > 1 and table.image_column not in row:
            which = "" if table.private else f" ({', '.join(sorted(_list_images(row)))})"
            raise table.refuse(
                f"{tar} has several images a row{which}; name the ending of one", "image_column"
            )
    return found


def _list_images(row: Mapping[str, _Member]) -> list[str]:
    return [ending for ending in row if images.is_image(f"x.{ending}")]


def _choose_image(table: ImageTable, row: Mapping[str, _Member]) -> _Member:
    named = table.image_column if table.image_column in row else _list_images(row)[0]
    return row[named]


def _read_fields(table: ImageTable, row: Mapping[str, _Member]) -> Mapping[str, Any]:
    """Return what a row holds beside its image; a number in .cls is an integer."""
    fields: dict[str, Any] = {}
    if "json" in row:
        loaded = json.loads(row["json"].read_bytes())
        fields = loaded if isinstance(loaded, dict) else {}
    if table.label_column is not None and table.label_column not in fields:
        member = row.get("cls") or row.get("txt")
        text = None if member is None else member.read_bytes().decode().strip()
        value = int(text) if text is not None and is_number(text) else text
        fields = {**fields, table.label_column: value}
    return fields


def _read_class_names(table: ImageTable, file: Location) -> tuple[str, ...] | None:
    if not file.exists():
        return None
    try:
        names = json.loads(file.read_bytes())
    except ValueError:
        names = None
    if not isinstance(names, list):
        raise table.refuse(f"{file} is not a list of names in JSON")
    return tuple(map(str, names))


def _open(tar: Location) -> Any:
    return tar.open("rb") if isinstance(tar, Path) else open_seekable(tar)
