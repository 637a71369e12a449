"""Files of released values: atomic parts, a manifest that makes a stage complete, a closed schema.

A part appears under its final name only when it is whole (see pe_ray.files.storage); a stage
counts as done only when its manifest exists and every part has the size that it states.
Content isn't compared: what we write can't be torn at its full size, as it is synced before it
gets its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from pe_ray.files import storage
from pe_ray.files.storage import Location, atomic_write

MANIFEST = ".manifest.json"  # hidden: readers of folders pass over it
MAX_PART_BYTES = 32 << 20
_PART = re.compile(r"part-(\d{10,})-(\d{10,})\.\w+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file, holding rows start..stop-1 of its stage."""

    file: str
    start: int
    stop: int
    num_bytes: int


def divide_rows(num_rows: int, row_bytes: int, rows_per_part: int | None) -> list[tuple[int, int]]:
    """Return the row ranges of a stage's parts: enough to share out, none too large for memory."""
    rows = part_rows(num_rows, row_bytes, rows_per_part)
    return [(start, min(start + rows, num_rows)) for start in range(0, num_rows, rows)]


def part_rows(num_rows: int, row_bytes: int, rows_per_part: int | None) -> int:
    """Return the number of rows of every part but the last."""
    return rows_per_part or min(4096, max(1, -(-num_rows // 32)), MAX_PART_BYTES // row_bytes or 1)


def part_name(start: int, stop: int, suffix: str) -> str:
    return f"part-{start:010d}-{stop:010d}.{suffix}"


def write_part(directory: Location, start: int, stop: int, suffix: str, content: bytes) -> Part:
    """Write one whole part."""
    name = part_name(start, stop, suffix)
    atomic_write(directory / name, content)
    return Part(file=name, start=start, stop=stop, num_bytes=len(content))


def find_parts(
    directory: Location, ranges: Sequence[tuple[int, int]], suffix: str
) -> list[Part | None]:
    """Return the part of each range that an earlier start wrote.

    None where there is none, or where its size differs from what a manifest of that start states.
    """
    sizes, stated = storage.list_sizes(directory), {}
    if MANIFEST in sizes:
        with suppress(ValueError, KeyError, TypeError):  # torn: then it states nothing
            listed = json.loads((directory / MANIFEST).read_bytes())["parts"]
            stated = {part["file"]: part["num_bytes"] for part in listed}
    found: list[Part | None] = []
    for start, stop in ranges:
        name = part_name(start, stop, suffix)
        if name in sizes and stated.get(name, sizes[name]) == sizes[name]:
            found.append(Part(file=name, start=start, stop=stop, num_bytes=sizes[name]))
        else:
            found.append(None)
    return found


def count_rows_found(directory: Location) -> int:
    """Count the rows in a stage's parts so far, complete or not, by their names."""
    spans = [_PART.fullmatch(name) for name in storage.list_sizes(directory)]
    return sum(int(span[2]) - int(span[1]) for span in spans if span)


def commit(directory: Location, parts: Sequence[Part], extra: Mapping[str, Any]) -> None:
    """Declare a stage complete; remove parts that are not its own first."""
    parts = sorted(parts, key=lambda part: part.start)
    expected = 0
    for part in parts:
        assert part.start == expected, "parts must cover the stage without gap or overlap"
        expected = part.stop
    ours = {part.file for part in parts}
    for name in storage.list_sizes(directory).keys() - ours:
        if _PART.fullmatch(storage.name_left_aside(name) or name):
            (directory / name).unlink(missing_ok=True)  # of a worker that outlived its driver
    manifest = {"num_rows": expected, "parts": [asdict(part) for part in parts], **extra}
    atomic_write(directory / MANIFEST, json.dumps(manifest, indent=1).encode())


def read_manifest(directory: Location) -> dict[str, Any] | None:
    """Return the manifest of a complete stage, None where it or any part is missing or torn."""
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
        sizes = storage.list_sizes(directory)
        whole = all(sizes.get(part["file"]) == Part(**part).num_bytes for part in manifest["parts"])
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return manifest if whole else None


def list_parts(directory: Location) -> list[Part]:
    """Return the parts of a complete stage, in row order."""
    manifest = read_manifest(directory)
    if manifest is None:
        raise FileNotFoundError(f"{directory}: stage is not complete")
    return [Part(**part) for part in manifest["parts"]]
