"""Private files with the same content: each would vote as a record of its own."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import ray

from pe_ray.config.blocks import PrivateConfig
from pe_ray.errors import InputError
from pe_ray.files.storage import Location, parse_location
from pe_ray.private.tasks import INLINE_LIMIT, hide_private_errors, private_task
from pe_ray.runtime.watchdog import note_progress

_FILES_PER_TASK = 2000
_CHUNK = 1 << 20


def refuse_duplicates(
    files: Sequence[tuple[str, int]], config: PrivateConfig, stall_seconds: float
) -> None:
    """Raise InputError, naming two files, where some have the same content.

    files: path and bytes of each. Only files of equal size are read.

    Guarantee: nothing reaches the driver but the names of such files and how many groups of them
    there are. The error is for whoever holds the data, and nothing publishes it. Spends nothing.
    """
    groups, _ = find_duplicates(files, config, stall_seconds, at_most=1)
    for first, second, *_ in groups:
        raise InputError(
            f"private.data: {first} and {second} have the same content, and each would count; "
            "remove one, or set private.duplicates: allow if both are records"
        )


def find_duplicates(
    files: Sequence[tuple[str, int]], config: PrivateConfig, stall_seconds: float, at_most: int
) -> tuple[list[list[str]], int]:
    """Find groups of files with the same content; none where private.duplicates allows them.

    Files that can't be opened are left to whoever reads them. Returns the first groups, at most
    `at_most` in the order of their first two names, and how many there are.

    Guarantee: nothing but these names and their number reaches the driver.
    """
    suspects = [] if config.duplicates == "allow" else list_suspects(files)
    if not suspects:
        return [], 0
    task = private_task(digest_files, config.node_label)
    padding = INLINE_LIMIT if config.node_label is not None else 0
    parts = [
        task.remote(suspects[start : start + _FILES_PER_TASK], stall_seconds, padding)
        for start in range(0, len(suspects), _FILES_PER_TASK)
    ]
    group = private_task(_group_files, config.node_label)
    found: tuple[list[list[str]], int] = ray.get(group.remote(at_most, *parts))
    return found


def list_suspects(files: Sequence[tuple[str, int]]) -> list[str]:
    """List the files that have the size of another one.

    Guarantee: depends on sizes only.
    """
    of_size: dict[int, list[str]] = defaultdict(list)
    for path, size in files:
        of_size[size].append(path)
    return [path for paths in of_size.values() if len(paths) > 1 for path in paths]


def digest_files(
    paths: Sequence[str], stall_seconds: float, padding: int
) -> tuple[list[tuple[bytes, str]], bytes]:
    """Return (digest, path) of each file, and bytes that keep them on the node that read them."""
    with hide_private_errors("private.data: reading", stall_seconds):
        digests = []
        for path in paths:
            with suppress(OSError):
                digests.append((digest_file(parse_location(path)), path))
        return digests, bytes(padding)


def digest_file(file: Location) -> bytes:
    """Return a digest (BLAKE2b) of a file's content.

    Guarantee: stays inside zone 1.
    """
    digest = hashlib.blake2b(digest_size=20)
    source: BinaryIO = (
        file.open("rb") if isinstance(file, Path) else file.store.open_input_stream(file.key)
    )
    with source:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            note_progress()
    return digest.digest()


def _group_files(
    at_most: int, *parts: tuple[Sequence[tuple[bytes, str]], bytes]
) -> tuple[list[list[str]], int]:
    """Return the names of files with the same digest, sorted, and how many groups there are."""
    of_digest: dict[bytes, list[str]] = defaultdict(list)
    for part, _ in parts:
        for digest, path in part:
            of_digest[digest].append(path)
    groups = [sorted(paths) for paths in of_digest.values() if len(paths) > 1]
    return sorted(groups, key=lambda group: group[1])[:at_most], len(groups)
