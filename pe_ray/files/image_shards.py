"""Find the files of an image table: which are read, which are passed over and why.

A folder's layout follows from the names in it. The first of these that it holds is its data:

0. the current rows of a table of Delta Lake or Apache Iceberg
1. a data set that `datasets` saved to disk, or Arrow files
2. parquet files
3. tar files
4. lists of files (metadata.csv and the like)
5. images in a folder for each class
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType

from pe_ray.files import images
from pe_ray.files.data_folders import (
    HIDDEN,
    NOT_CURRENT,
    NOT_DATA,
    NOT_KEPT,
    NOT_LISTED,
    OTHER_SPLIT,
    SPLITS,
    FolderListing,
    list_data_files,
    list_plain_folders,
    read_path_values,
)
from pe_ray.files.image_tables import (
    DIGITS,
    SPLIT,
    Faults,
    ImageTable,
    TableSlice,
    open_each,
    pack_names,
)
from pe_ray.files.layouts import (
    arrow_files,
    class_folders,
    digits,
    file_lists,
    lake_tables,
    parquet_files,
    tar_shards,
)
from pe_ray.files.storage import (
    Location,
    io_errors_as_input_errors,
    resolve_place,
)

LAYOUTS: Mapping[str, ModuleType] = {
    layout.NAME: layout
    for layout in (arrow_files, parquet_files, tar_shards, file_lists, class_folders, digits)
}
_BY_ENDING = (arrow_files, parquet_files, tar_shards)
_SPLIT_LIST = "dataset_dict.json"
_MARKERS = {"_delta_log": lake_tables.DELTA, ".hoodie": "Apache Hudi"}
_FOREIGN = {
    re.compile(r"(^|/)_delta_log/$"): lake_tables.DELTA,
    re.compile(r"(^|/)\.hoodie/$"): "Apache Hudi",
    re.compile(r"(^|/)metadata/[^/]+\.metadata\.json$"): lake_tables.ICEBERG,
}
"""What such a table has in its folder, among names that are passed over or listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundShards:
    """The shards of a table, and what its folder holds besides.

    passed_over: reason -> names of what is not read. files: (path, bytes) of each file that holds
    a table or an image, once for each time that it is named; empty for a single file.
    """

    shards: list[TableSlice]
    passed_over: Mapping[str, Sequence[str]] = field(default_factory=dict)
    files: Sequence[tuple[str, int]] = field(default=(), repr=False)

    @property
    def num_files(self) -> int:
        """How many files are read."""
        return len(self.files) or 1


def list_shards(table: ImageTable) -> list[TableSlice]:
    """List the files or class folders of a table, each whole; see `find_shards`."""
    return find_shards(table).shards


def find_shards(table: ImageTable, faults: Faults | None = None) -> FoundShards:
    """Find the files or class folders of a table, each whole; at least one row in all.

    faults: gets every file or folder that can't be read, and its error. None: the first is raised.

    Guarantee: reads names, sizes and schemas, but no row.
    """
    if table.data == DIGITS:
        return FoundShards(shards=digits.list_shards(table))
    path = resolve_place(table.data, table.name_field("data"))
    with io_errors_as_input_errors(table.name_field("data"), path):
        if not path.exists():
            raise table.refuse(f"{table.data} does not exist")
        find = _find_in_file if path.is_file() else _find_in_folder
        found = find(table, path, faults)
    shards = [replace(part, shard=shard) for shard, part in enumerate(found.shards)]
    if not any(part.stop for part in shards) and not faults:
        if table.where and found.passed_over.get(NOT_KEPT):
            raise table.refuse(f"keeps no file of {table.data}; correct it", "where")
        raise table.refuse(f"{table.data} holds no image")
    return replace(found, shards=[part for part in shards if part.stop])


def split_shards(shards: Sequence[TableSlice]) -> list[TableSlice]:
    """Split shards into about 8 slices or more, each of at most 8192 rows."""
    total = sum(shard.stop for shard in shards)
    step = min(8192, max(256, -(-total // 8)))
    slices = []
    for shard in shards:
        names = shard.names
        for start in range(0, shard.stop, step):
            stop = min(start + step, shard.stop)
            files = pack_names(names[start:stop])
            slices.append(replace(shard, start=start, stop=stop, files=files))
    return slices


def _find_in_file(table: ImageTable, file: Location, faults: Faults | None) -> FoundShards:
    _refuse_foreign(table, file, None)
    name = file.name.lower()
    layouts = [layout for layout in (*_BY_ENDING, file_lists) if name.endswith(layout.SUFFIXES)]
    layout = layouts[0] if layouts else parquet_files
    shards = layout.list_shards(table, file, [], faults)
    files = file_lists.measure_images(table, shards) if layout is file_lists else ()
    return FoundShards(shards=shards, files=files)


def _find_in_folder(table: ImageTable, root: Location, faults: Faults | None) -> FoundShards:
    listing = list_data_files(root, table.labels or ())
    kind = lake_tables.find_kind(listing)
    if kind is not None:
        return _find_in_lake(table, root, listing, kind, faults)
    _refuse_foreign(table, root, listing)
    root, listing, split = _choose_split(table, root, listing)
    if split:  # what the folder says needs no column
        where = {name: value for name, value in table.where.items() if name != SPLIT}
        table = replace(table, where=where)
    listing = _keep_partitions(table, listing).keep_first_paths()
    layout = _choose_layout(listing)
    if layout is class_folders:
        shards = class_folders.list_shards(table, root, listing, faults)
    else:
        names = [name for name in listing.names if _is_of(layout, name)]
        shards = layout.list_shards(table, root, names, faults)
    if layout is file_lists:
        listing = _keep_listed(table, root, shards, listing)
        files = file_lists.measure_images(table, shards)
    else:
        in_classes = layout is class_folders
        read = {str(part.source) for part in shards} | {place for place, _ in faults or ()}
        listing = listing.keep(
            lambda name: str(root / name) in read or (in_classes and images.is_image(name)),
            NOT_DATA,
        )
        files = [(str(root / file.name), file.size) for file in listing.files]
    if not shards and not listing.passed_over.get(NOT_KEPT) and not faults:
        raise table.refuse(f"{table.data} holds neither tables, nor lists of files, nor images")
    shards = [replace(part, folder_values={**split, **part.folder_values}) for part in shards]
    return FoundShards(shards=shards, passed_over=listing.passed_over, files=files)


def _find_in_lake(
    table: ImageTable, root: Location, listing: FolderListing, kind: str, faults: Faults | None
) -> FoundShards:
    files = lake_tables.list_files(table, root, listing, kind)
    listing = listing.keep(files.__contains__, NOT_CURRENT)
    listing = _keep_partitions(table, listing, files.__getitem__)
    current = [(root / name, files[name]) for name in listing.names]
    shards = open_each(parquet_files.open_file, table, current, faults)
    sizes = [(str(root / file.name), file.size) for file in listing.files]
    return FoundShards(shards=shards, passed_over=listing.passed_over, files=sizes)


def _choose_layout(listing: FolderListing) -> ModuleType:
    """Return the first layout that has a file in the folder."""
    for layout in (*_BY_ENDING, file_lists):
        if any(_is_of(layout, name) for name in listing.names):
            return layout
    return class_folders


def _is_of(layout: ModuleType, name: str) -> bool:
    """Tell by its name whether a file in a folder is a table of this layout."""
    if layout is file_lists:
        return name.rpartition("/")[2].lower() in file_lists.NAMES
    return name.lower().endswith(layout.SUFFIXES)


def _keep_listed(
    table: ImageTable, root: Location, shards: Sequence[TableSlice], listing: FolderListing
) -> FolderListing:
    """Return the listing with only the images that the lists `shards` name."""
    listed = {
        os.path.normpath(str(image))
        for part in shards
        for image in file_lists.list_images(table, part)
    }
    files = tuple(file for file in listing.files if not _is_of(file_lists, file.name))
    listing = replace(listing, files=files)
    return listing.keep(lambda name: os.path.normpath(str(root / name)) in listed, NOT_LISTED)


def _keep_partitions(
    table: ImageTable,
    listing: FolderListing,
    list_values: Callable[[str], Mapping[str, str]] = read_path_values,
) -> FolderListing:
    """Leave out the files whose partition (by default their folders') contradicts `where`."""

    def wanted(name: str) -> bool:
        values = list_values(name)
        return all(str(value) == values.get(key, str(value)) for key, value in table.where.items())

    return listing.keep(wanted, NOT_KEPT)


def _choose_split(
    table: ImageTable, root: Location, listing: FolderListing
) -> tuple[Location, FolderListing, dict[str, str]]:
    """Enter the split of a folder of splits; return it, its files and the column that it gives.

    `where: {split: NAME}` chooses. One split alone needs no choice.
    """
    splits = _list_splits(table, root, listing.keep_first_paths())
    if not splits:
        return root, listing, {}
    wanted = table.where.get(SPLIT)
    if wanted is None and len(splits) == 1:
        wanted = splits[0]
    if wanted not in splits:
        raise table.refuse(
            f"{table.data} holds the splits {', '.join(splits)}; choose one by where: "
            f"{{split: {splits[0]}}}, or give its folder",
            "data" if wanted is None else f"where.{SPLIT}",
        )
    listing = listing.keep(lambda name: name.startswith(f"{wanted}/"), OTHER_SPLIT)
    files = tuple(
        replace(file, name=file.name.removeprefix(f"{wanted}/")) for file in listing.files
    )
    return root / str(wanted), replace(listing, files=files), {SPLIT: str(wanted)}


def _list_splits(table: ImageTable, root: Location, listing: FolderListing) -> list[str]:
    """List the folders at the top if they are splits, not classes."""
    if _SPLIT_LIST in listing.names:
        try:
            return [str(name) for name in json.loads((root / _SPLIT_LIST).read_bytes())["splits"]]
        except (ValueError, KeyError, TypeError):
            raise table.refuse(
                f"{root / _SPLIT_LIST} is not what datasets writes; save the data anew"
            ) from None
    tops = {name.partition("/")[0] for name in listing.names if list_plain_folders(name)}
    named = sorted(tops)
    has_classes = _choose_layout(listing) is class_folders and table.label_column is not None
    if has_classes and not tops.isdisjoint(table.labels or ()):
        return []
    return named if named and all(name.lower() in SPLITS for name in named) else []


def _refuse_foreign(table: ImageTable, path: Location, listing: FolderListing | None) -> None:
    """Refuse folders and files of table formats that keep deleted rows and old versions."""
    hidden = listing.passed_over.get(HIDDEN, []) if listing else []
    names = [*hidden, *(listing.names if listing else [])]
    found = [kind for marker, kind in _FOREIGN.items() if any(map(marker.search, names))]
    for place in (path, *path.parents):
        found += [kind for marker, kind in _MARKERS.items() if (place / marker).exists()]
    if found:
        raise table.refuse(
            f"{path} is a table of {found[0]} or in one, so its files hold deleted rows and old "
            f"versions too; {lake_tables.EXPORT}{_name_library(found[0])}"
        )


def _name_library(kind: str) -> str:
    library = lake_tables.LIBRARIES.get(kind)
    return f"; or give the table's own folder, with {library} installed" if library else ""


def count_passed_over(found: FoundShards) -> dict[str, int]:
    """Count the names that are passed over, by reason."""
    return {reason: len(names) for reason, names in found.passed_over.items()}


def summarize(found: FoundShards) -> str:
    """Say how many files are read, and how many names are passed over and why."""
    left = [
        f"{len(names):,} {reason} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for reason, names in found.passed_over.items()
    ]
    return f"{found.num_files:,} read" + (f"; passed over: {'; '.join(left)}" if left else "")
