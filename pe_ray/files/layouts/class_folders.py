"""Layout: a folder of images for each class, whose name is the label."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

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
    _refuse_two_labels(table, root, listing, faults)
    shards: list[TableSlice] = []
    for key, group in itertools.groupby(listing.names, lambda name: _find_class(table, name)):
        label, folder_values = key
        names = list(group)
        found = [name for name in names if images.is_image(name)]
        _check_class(table, root, label, names, found, faults)
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


def _refuse_two_labels(
    table: ImageTable, root: Location, listing: FolderListing, faults: Faults | None
) -> None:
    """Refuse files that have a path in two classes: either label may be meant."""
    for second, first in listing.second_paths:
        if table.label_column is not None and images.is_image(second):
            classes = {_find_class(table, name)[0] for name in (first, second)}
            if len(classes) > 1:
                error = table.refuse(
                    f"{first} and {second} are one file with two labels; remove one of the links"
                )
                raise_or_note(faults, root / second, error)


def _check_class(
    table: ImageTable,
    root: Location,
    label: str | None,
    names: Sequence[str],
    found: Sequence[str],
    faults: Faults | None,
) -> None:
    """Refuse what of the files `names` of a class, of which `found` are images, can't be read."""
    undecoded = [name for name in names if images.is_undecoded_image(name)]
    for name in undecoded:
        error = table.refuse(f"{name}: {images.explain_undecoded(name)}")
        raise_or_note(faults, root / name, error)
    if table.label_column is None or not table.labels:
        return
    known = [unicodedata.normalize("NFC", name) for name in table.labels]
    if label is None:
        if found:
            error = table.refuse(
                f"{table.data} holds images outside of class folders, which have no label; "
                "move them into a folder for each label, or set "
                f"{table.name_field('label_column')}: null if there is one label only"
            )
            raise_or_note(faults, root, error)
        return
    folder = root / names[0].partition("/")[0]
    if label not in known and (found or table.private):
        which = "a class folder" if table.private else f"the folder {label!r}"
        error = table.refuse(f"{which} of {table.name_field('data')} is not among them", "labels")
        raise_or_note(faults, folder, error)
    if label in known and not found and not undecoded:
        error = table.refuse(
            f"the folder of label {label!r} holds no file that ends as an image does "
            f"({', '.join(sorted(images.list_suffixes()))}); convert, rename or remove what "
            "it holds"
        )
        raise_or_note(faults, folder, error)


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
