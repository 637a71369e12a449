"""Files of a stage, by themselves: manifest, parts, columns, and the pixels of images."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from pe_ray.files.parts import MANIFEST, Part, load_manifest, read_part
from pe_ray.files.storage import Location, list_names
from pe_ray.values import LabelLayout
from pe_ray.verifying.findings import Differs, Step, require

Digests = NDArray[np.uint64]
"""Digests of images' pixels, [n, 2]."""

_STATED = {"num_rows", "parts", "digest", "rows_made", "seconds"}
_IMAGE_TYPES = (pa.binary(), pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def list_stage_steps(
    directory: Location,
    wanted: Mapping[str, Any],
    may_state: Collection[str],
    look: Callable[[Part, pa.Table], None],
) -> Iterator[Step]:
    """Yield the steps for a stage's manifest, its parts, and files that are none of them.

    wanted: what the manifest must state. may_state: what else it may. look: at the rows of a part.
    """
    manifest = load_manifest(directory)
    parts = [Part(**part) for part in manifest["parts"]] if manifest else []
    parts.sort(key=lambda part: part.start)
    check = partial(_check_manifest, directory, manifest, parts, wanted, may_state)
    yield str(directory / MANIFEST), check
    for part in parts:
        yield str(directory / part.file), partial(_check_part, directory, part, look)
    if manifest:
        for name in sorted(list_names(directory) - {MANIFEST, *(part.file for part in parts)}):
            yield str(directory / name), partial(require, False, "isn't in the manifest")


def _check_manifest(
    directory: Location,
    manifest: dict[str, Any] | None,
    parts: Sequence[Part],
    wanted: Mapping[str, Any],
    may_state: Collection[str],
) -> None:
    require((directory / MANIFEST).exists(), "is missing: the folder isn't complete")
    if manifest is None:
        raise Differs("isn't what was written there, by its digest")
    unknown = manifest.keys() - _STATED - wanted.keys() - set(may_state)
    require(not unknown, f"states what no manifest does: {', '.join(sorted(unknown))}")
    for name, value in wanted.items():
        require(manifest.get(name) == value, f"{name} isn't {value}")
    stops = [0, *(part.stop for part in parts)]
    require(
        [part.start for part in parts] == stops[:-1] and stops[-1] == manifest["num_rows"],
        "its parts don't cover the rows",
    )


def _check_part(directory: Location, part: Part, look: Callable[[Part, pa.Table], None]) -> None:
    table = pq.read_table(pa.BufferReader(read_part(directory, part)), partitioning=None)
    require(len(table) == part.stop - part.start, "has another number of rows than its name says")
    look(part, table)


def require_columns(schema: pa.Schema, names: Collection[str], metadata: set[bytes]) -> None:
    """Raise Differs unless a table has these columns and no other metadata."""
    extra = sorted(set(schema.names) - set(names))
    require(not extra, f"has a column that should not be there: {', '.join(extra)}")
    missing = sorted(set(names) - set(schema.names))
    require(not missing, f"lacks a column: {', '.join(missing)}")
    require(len(schema.names) == len(names), "has a column twice")
    require(set(schema.metadata or {}) <= metadata, "has metadata that should not be there")


def require_rows(table: pa.Table, layout: LabelLayout, start: int) -> None:
    """Raise Differs unless ids and labels are those of the rows from `start` on."""
    ids = np.arange(start, start + len(table))
    require(np.array_equal(table["id"], ids), "its column id isn't the rows' numbers")
    require_labels(table, layout.labels(start, start + len(table)))


def require_labels(table: pa.Table, labels: NDArray[np.int32]) -> None:
    """Raise Differs unless the column label holds `labels`."""
    require(
        np.array_equal(table["label"], labels),
        "its column label isn't what the configuration, or released label counts, give",
    )


def decode_images(table: pa.Table, names: Sequence[str]) -> Iterator[Image.Image]:
    """Yield the images of a part of a final set; Differs where its schema isn't that of one.

    names: of the labels.
    """
    require_columns(table.schema, {"image", "label"}, {b"huggingface"})
    field = table.schema.field("image")
    require(field.type in _IMAGE_TYPES, "its column image is of another type")
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    require(features["label"].get("names") == list(names), "names other labels")
    for cell in table["image"].to_pylist():
        if isinstance(cell, dict):
            require(cell["path"] is None, "its images have paths")
            cell = cell["bytes"]
        yield Image.open(io.BytesIO(cell))


def digest_pixels(images: Sequence[Any]) -> Digests:
    """Return digests of images: anything whose bytes are rows of pixels."""
    digests = (hashlib.blake2b(image, digest_size=16).digest() for image in images)
    return np.frombuffer(b"".join(digests), dtype=np.uint64).reshape(-1, 2)
