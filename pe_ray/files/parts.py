"""Files of released values: atomic parts, a manifest that makes a stage complete, a closed schema.

A part appears under its final name only when it is whole (see pe_ray.files.storage); a stage
counts as done only when its manifest exists and every part has the size that it states. What we
write can't be torn at its full size, as it is synced before it gets its name. But it may be damaged
later, so the manifest states a digest of each part and one of itself. A part's digest is compared
where its content is read, never where parts are only listed.

Until there is a manifest, the digest of a part is in the name of an empty file, its mark. It is
written before the part, so one listing of the folder tells the digests of all parts.
"""

from __future__ import annotations

import json
import logging
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pe_ray.errors import DamagedFileError
from pe_ray.files import storage
from pe_ray.files.digests import compute_digest
from pe_ray.files.storage import Location, atomic_write

logger = logging.getLogger(__name__)

MANIFEST = ".manifest.json"  # hidden: readers of folders pass over it
MAX_PART_BYTES = 32 << 20
_PART = re.compile(r"part-(?:(\d{10,})-(\d{10,})|\d{6,9})\.\w+")
_MARK = re.compile(r"\.digest-([0-9a-f]{32})-(part-.+)")
_READS_AT_ONCE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file, holding rows start..stop-1 of its stage.

    digest: of its content; empty where a version without digests wrote it.
    """

    file: str
    start: int
    stop: int
    num_bytes: int
    digest: str = ""


def divide_rows(
    num_rows: int, row_bytes: int, rows_per_part: int | None, least: int = 1
) -> list[tuple[int, int]]:
    """Return the row ranges of a stage's parts: enough to share out, none too large for memory.

    least: rows that a part should have, as with fewer its file costs more than what it holds.
    """
    rows = part_rows(num_rows, row_bytes, rows_per_part, least)
    return [(start, min(start + rows, num_rows)) for start in range(0, num_rows, rows)]


def part_rows(num_rows: int, row_bytes: int, rows_per_part: int | None, least: int = 1) -> int:
    """Return the number of rows of every part but the last."""
    most = min(4096, MAX_PART_BYTES // row_bytes or 1)
    return rows_per_part or min(most, max(least, -(-num_rows // 32)))


def part_name(start: int, stop: int, suffix: str, number: int | None = None) -> str:
    """Return the name of a part: by its rows, or by its number, so that names have no gaps."""
    which = f"{start:010d}-{stop:010d}" if number is None else f"{number:06d}"
    return f"part-{which}.{suffix}"


def write_part(
    directory: Location,
    start: int,
    stop: int,
    suffix: str,
    content: bytes,
    number: int | None = None,
) -> Part:
    """Write one whole part."""
    name, digest = part_name(start, stop, suffix, number), compute_digest(content)
    storage.write_many(directory, [(f".digest-{digest}-{name}", b"")])
    atomic_write(directory / name, content)
    return Part(file=name, start=start, stop=stop, num_bytes=len(content), digest=digest)


def read_part(directory: Location, part: Part) -> bytes:
    """Return the content of a part; DamagedFileError where it isn't what was written."""
    content = (directory / part.file).read_bytes()
    if part.digest and compute_digest(content) != part.digest:
        raise DamagedFileError(str(directory / part.file))
    return content


def read_table(directory: Location, part: Part, **options: Any) -> pa.Table:
    """Read a part in parquet, as `pyarrow.parquet.read_table` does with these options.

    DamagedFileError where it isn't what was written.
    """
    content = pa.BufferReader(read_part(directory, part))
    try:
        return pq.read_table(content, partitioning=None, **options)
    except (pa.ArrowException, OSError):  # of a version without digests
        raise DamagedFileError(str(directory / part.file)) from None


def find_parts(
    directory: Location,
    ranges: Sequence[tuple[int, int]],
    suffix: str,
    *,
    numbered: bool = False,
) -> list[Part | None]:
    """Return the part of each range that an earlier start wrote. numbered: named by numbers.

    None where there is none, where its size differs from what a manifest of that start states, or
    where nothing tells what was written: two different ones were, or the manifest is damaged.
    """
    sizes, manifest = storage.list_sizes(directory), load_manifest(directory)
    unknown = set() if MANIFEST in sizes and manifest is None else {""}
    stated = {part["file"]: part["num_bytes"] for part in manifest["parts"]} if manifest else {}
    digests = _collect_digests(sizes, manifest)
    found: list[Part | None] = []
    for number, (start, stop) in enumerate(ranges):
        name = part_name(start, stop, suffix, number if numbered else None)
        own = digests.get(name, unknown)
        if name in sizes and stated.get(name, sizes[name]) == sizes[name] and len(own) == 1:
            size, digest = sizes[name], next(iter(own))
            found.append(Part(file=name, start=start, stop=stop, num_bytes=size, digest=digest))
        else:
            found.append(None)
    return found


def remove_damaged(directory: Location) -> None:
    """Delete the parts of a stage, complete or not, that hold something else than was written.

    Reads all of them.
    """

    def remove(name: str, digests: set[str]) -> None:
        file = directory / name
        if compute_digest(file.read_bytes()) not in digests:
            logger.warning("%s: is damaged; making it again", file)
            file.unlink(missing_ok=True)

    sizes = storage.list_sizes(directory)
    digests = _collect_digests(sizes, load_manifest(directory))
    known = [name for name in sorted(sizes) if name in digests]
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        list(pool.map(remove, known, [digests[name] for name in known]))


def _collect_digests(names: Iterable[str], manifest: dict[str, Any] | None) -> dict[str, set[str]]:
    """Return the digests that a stage's manifest and the marks among `names` state, by part."""
    digests: dict[str, set[str]] = {}
    for part in manifest["parts"] if manifest else []:
        if part.get("digest"):
            digests[part["file"]] = {part["digest"]}
    for mark in filter(None, map(_MARK.fullmatch, names)):
        digests.setdefault(mark[2], set()).add(mark[1])
    return digests


def count_rows_found(directory: Location) -> int:
    """Count the rows in a stage's parts so far, complete or not, by names that state rows."""
    spans = [_PART.fullmatch(name) for name in storage.list_sizes(directory)]
    return sum(int(span[2]) - int(span[1]) for span in spans if span and span[1])


def commit(directory: Location, parts: Sequence[Part], extra: Mapping[str, Any]) -> None:
    """Declare a stage complete; remove parts that are not its own first."""
    parts = sorted(parts, key=lambda part: part.start)
    expected = 0
    for part in parts:
        assert part.start == expected, "parts must cover the stage without gap or overlap"
        expected = part.stop
    parts = [part if part.digest else _add_digest(directory, part) for part in parts]
    ours, names = {part.file for part in parts}, storage.list_sizes(directory)
    for name in names.keys() - ours:
        if _PART.fullmatch(storage.name_left_aside(name) or name):
            (directory / name).unlink(missing_ok=True)  # of a worker that outlived its driver
    manifest = {"num_rows": expected, "parts": [asdict(part) for part in parts], **extra}
    atomic_write(directory / MANIFEST, _encode(manifest))
    storage.delete_many([directory / name for name in names if _MARK.fullmatch(name)])


def _add_digest(directory: Location, part: Part) -> Part:
    """Return a part that a version without digests wrote with the digest of what is there."""
    return replace(part, digest=compute_digest((directory / part.file).read_bytes()))


def _encode(manifest: Mapping[str, Any]) -> bytes:
    """Return a manifest as bytes, with the digest of all else that it states."""
    stated = {name: value for name, value in manifest.items() if name != "digest"}
    digest = compute_digest(json.dumps(stated, indent=1).encode())
    return json.dumps(stated | {"digest": digest}, indent=1).encode()


def load_manifest(directory: Location) -> dict[str, Any] | None:
    """Return what a manifest says, None where it is missing, torn or damaged."""
    try:
        content = (directory / MANIFEST).read_bytes()
        manifest: dict[str, Any] = json.loads(content)
        parts = [Part(**part) for part in manifest["parts"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return None
    with_digests = "digest" in manifest or any(part.digest for part in parts)
    return None if with_digests and content != _encode(manifest) else manifest


def read_manifest(directory: Location) -> dict[str, Any] | None:
    """Return the manifest of a complete stage, None where it or any part is missing or torn."""
    manifest = load_manifest(directory)
    if manifest is None:
        return None
    sizes = storage.list_sizes(directory)
    whole = all(sizes.get(part["file"]) == part["num_bytes"] for part in manifest["parts"])
    return manifest if whole else None


def require_whole(directory: Location) -> None:
    """Raise DamagedFileError for the first part of a stage that isn't what was written.

    Reads all parts of a complete stage; of another one, none.
    """
    manifest = read_manifest(directory)
    parts = [Part(**part) for part in manifest["parts"]] if manifest else []
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        deque(pool.map(lambda part: read_part(directory, part), parts), maxlen=0)


def list_parts(directory: Location) -> list[Part]:
    """Return the parts of a complete stage, in row order."""
    manifest = read_manifest(directory)
    if manifest is None:
        raise FileNotFoundError(f"{directory}: stage is not complete")
    return [Part(**part) for part in manifest["parts"]]
