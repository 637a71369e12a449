"""Layout: a folder of images for each class, whose name is the label."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pe_ray.errors import InputError
from pe_ray.files import images
from pe_ray.files.data_folders import FolderListing, list_plain_folders, read_path_values
from pe_ray.files.folder_names import label_of
from pe_ray.files.image_tables import Faults, ImageTable, TableSlice, pack_names, raise_or_note
from pe_ray.files.layouts.columns import Rows
from pe_ray.files.storage import Location

NAME = "class folders"


def list_shards(
    table: ImageTable, root: Location, listing: FolderListing, faults: Faults | None = None
) -> list[TableSlice]:
    """List the images of each class. Guarantee: depends on names and links only.

    A folder at the top is a class. Its name is the label, which may be percent-encoded as in our
    own exports. Where folders are written COLUMN=VALUE and one of them gives `label_column`, that
    is the class.
    """
    for name, error in _find_two_labels(table, listing):
        raise_or_note(faults, root / name, error)
    shards: list[TableSlice] = []
    for key, group in itertools.groupby(listing.names, lambda name: _find_class(table, name)):
        label, folder_values = key
        names = list(group)
        found = [name for name in names if images.is_image(name)]
        for place, error in _find_class_faults(table, root, label, names, found):
            raise_or_note(faults, place, error)
        _check_folder_columns(table, root, folder_values)
        if found:
            shards.append(
                TableSlice(
                    layout=NAME,
                    source=root,
                    stop=len(found),
                    label=label,
                    folder_values=folder_values,
                    files=pack_names(found),
                )
            )
    return shards


def _find_class(table: ImageTable, name: str) -> tuple[str | None, dict[str, str]]:
    folder_values, plain = read_path_values(name), list_plain_folders(name)
    named = folder_values.get(table.label_column or "")
    if named is None and plain:
        named = label_of(plain[0], table.labels or ())
    return named, folder_values


def _find_two_labels(table: ImageTable, listing: FolderListing) -> Iterator[tuple[str, InputError]]:
    """Find files that have a path in two classes: either label may be meant."""
    for second, first in listing.second_paths:
        if table.label_column is not None and images.is_image(second):
            classes = {_find_class(table, name)[0] for name in (first, second)}
            if len(classes) > 1:
                yield (
                    second,
                    table.refuse(
                        f"{first} and {second} are one file with two labels; remove one of the "
                        "links"
                    ),
                )


def _find_class_faults(
    table: ImageTable,
    root: Location,
    label: str | None,
    names: Sequence[str],
    found: Sequence[str],
) -> Iterator[tuple[Location, InputError]]:
    """Find what of the files `names` of a class, `found` among them, can't be read."""
    undecoded = [name for name in names if images.is_undecoded_image(name)]
    for name in undecoded:
        yield root / name, table.refuse(f"{name}: {images.explain_undecoded(name)}")
    if table.label_column is None:
        return
    known = [unicodedata.normalize("NFC", name) for name in table.labels or ()]
    if label is None:
        if found and known:
            yield (
                root,
                table.refuse(
                    f"{table.data} holds images outside of class folders, which have no label; "
                    "move them into a folder for each label, or set "
                    f"{table.name_field('label_column')}: null if there is one label only"
                ),
            )
        return
    folder = root / names[0].partition("/")[0]
    if known and label not in known and (found or table.private):
        which = "a class folder" if table.private else f"the folder {label!r}"
        yield (
            folder,
            table.refuse(f"{which} of {table.name_field('data')} is not among them", "labels"),
        )
    if known and label in known and not found and not undecoded:
        yield (
            folder,
            table.refuse(
                f"the folder of label {label!r} holds no file that ends as an image does "
                f"({', '.join(sorted(images.list_suffixes()))}); convert, rename or remove "
                "what it holds"
            ),
        )


def _check_folder_columns(
    table: ImageTable, root: Location, folder_values: Mapping[str, str]
) -> None:
    columns = {"user_column": table.user_column, **{f"where.{name}": name for name in table.where}}
    for option, name in columns.items():
        if name is not None and name not in folder_values:
            raise table.refuse(
                f"{root} holds images in folders, which have no column {name!r}; only tables, "
                f"lists of files and folders named {name}=VALUE have",
                option,
            )


def read_rows(
    table: ImageTable, part: TableSlice, columns: Sequence[str], batch_rows: int
) -> Iterator[Rows]:
    """Say where the images of a slice are, at most `batch_rows` at a time."""
    paths = part.paths
    for start in range(0, len(paths), batch_rows):
        chosen: list[Any] = paths[start : start + batch_rows]
        found = {table.image_column: chosen}
        if table.label_column is not None:
            found[table.label_column] = [part.label] * len(chosen)
        yield part.start + np.arange(start, start + len(chosen)), found
