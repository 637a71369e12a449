"""Tables of Delta Lake and Apache Iceberg, whose current rows lie in parquet files.

Deleted rows and old versions lie beside them, so the format's own library says what counts:
`deltalake` or `pyiceberg`, if it is installed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from pe_ray.files.data_folders import HIDDEN, FolderListing
from pe_ray.files.image_tables import ImageTable
from pe_ray.files.storage import Location, ObjectPath, parse_location

DELTA, ICEBERG = "Delta Lake", "Apache Iceberg"
LIBRARIES = {DELTA: "deltalake", ICEBERG: "pyiceberg"}
_METADATA = re.compile(r"metadata/v?(\d+)[-.][^/]*metadata\.json")
_HINT = "metadata/version-hint.text"
EXPORT = "export its current rows to parquet files in another folder"


Values = dict[str, str]
"""Columns that its partition gives a file."""


def find_kind(listing: FolderListing) -> str | None:
    """Return the format of the table whose folder this is, if its library is installed."""
    kind = None
    if "_delta_log/" in listing.passed_over.get(HIDDEN, ()):
        kind = DELTA
    elif any(map(_METADATA.fullmatch, listing.names)):
        kind = ICEBERG
    return kind if kind and find_spec(LIBRARIES[kind]) else None


def list_files(
    table: ImageTable, root: Location, listing: FolderListing, kind: str
) -> dict[str, Values]:
    """Return the files that hold the current rows, with what the table says of their partitions.

    Guarantee: reads no record.
    """
    try:
        files = _list_delta(root) if kind == DELTA else _list_iceberg(root, listing)
    except _UnreadableError as error:
        raise table.refuse(f"{root} is a table of {kind} {error}; {EXPORT}") from None
    except Exception as error:  # the libraries raise many types
        raise table.refuse(
            f"{root} is a table of {kind} that {LIBRARIES[kind]} can't read "
            f"({type(error).__name__}); {EXPORT}"
        ) from None
    missing = files.keys() - set(listing.names)
    if missing:
        raise table.refuse(f"{root} is a table of {kind} that lacks {min(missing)}; {EXPORT}")
    return files


class _UnreadableError(Exception):
    """What a table has that its files alone don't tell; the text holds no content."""


def _list_delta(root: Location) -> dict[str, Values]:
    from deltalake import DeltaTable
    from pyarrow.dataset import get_partition_keys

    place = str(root) if isinstance(root, Path) else f"{root.scheme}://{root.key}"
    stored = DeltaTable(
        place, storage_options=_list_options(root, "aws_endpoint_url", "aws_region")
    )
    about = stored.metadata()
    if about.configuration.get("delta.columnMapping.mode", "none") != "none":
        raise _UnreadableError("with a mapping of columns")
    files = {}
    # Raises where a file isn't all current (deletion vectors), or needs a newer reader.
    for fragment in stored.to_pyarrow_dataset().get_fragments():
        values = get_partition_keys(fragment.partition_expression)
        named = {name: values.get(name) for name in about.partition_columns}
        files[fragment.path] = _to_text(named)
    return files


def _list_iceberg(root: Location, listing: FolderListing) -> dict[str, Values]:
    from pyiceberg.table import StaticTable
    from pyiceberg.transforms import IdentityTransform

    newest = root / _find_metadata(root, listing)
    place = str(newest) if isinstance(newest, Path) else f"{newest.scheme}://{newest.key}"
    stored = StaticTable.from_metadata(place, _list_options(root, "s3.endpoint", "s3.region"))
    columns = {
        (each.field_id, each.name) for made in stored.schemas().values() for each in made.fields
    }
    if any(len({pair[side] for pair in columns}) < len(columns) for side in (0, 1)):
        raise _UnreadableError("whose columns were renamed")
    files = {}
    for task in stored.scan().plan_files():
        if task.delete_files:
            raise _UnreadableError("with deleted rows in its files")
        values = {
            stored.schema().find_column_name(part.source_id): task.file.partition[position]
            for position, part in enumerate(stored.specs()[task.file.spec_id].fields)
            if isinstance(part.transform, IdentityTransform)
        }
        files[_name_below(root, task.file.file_path)] = _to_text(values)
    return files


def _find_metadata(root: Location, listing: FolderListing) -> str:
    """Return the file with the newest state of a table."""
    versions: dict[int, list[str]] = {}
    for name in listing.names:
        found = _METADATA.fullmatch(name)
        if found:
            versions.setdefault(int(found[1]), []).append(name)
    newest = max(versions)
    if _HINT in listing.names:
        newest = int((root / _HINT).read_bytes())
    if len(versions[newest]) > 1:
        raise _UnreadableError("with two newest versions")
    return versions[newest][0]


def _name_below(root: Location, path: str) -> str:
    """Return the name that a file with an absolute path has below the table's folder."""
    place = parse_location(re.sub(r"^s3[an]://", "s3://", path)).resolve()
    if isinstance(root, Path) and isinstance(place, Path) and place.is_relative_to(root):
        return place.relative_to(root).as_posix()
    if isinstance(root, ObjectPath) and isinstance(place, ObjectPath):
        return place.key.removeprefix(f"{root.key}/")
    raise _UnreadableError("with files elsewhere")


def _to_text(values: Mapping[str, Any]) -> Values:
    if None in values.values():
        raise _UnreadableError("with a partition of missing values")
    return {name: str(value) for name, value in values.items()}


def _list_options(root: Location, endpoint: str, region: str) -> dict[str, str]:
    """Return how a library is told what the URI of a store tells; keys are theirs."""
    if isinstance(root, Path):
        return {}
    told = dict(parse_qsl(root.query))
    options = {}
    if "endpoint_override" in told:
        scheme = told.get("scheme", "https")
        options = {endpoint: f"{scheme}://{told['endpoint_override']}"}
        options |= {"aws_allow_http": "true"} if scheme == "http" else {}
    return options | ({region: told["region"]} if "region" in told else {})
