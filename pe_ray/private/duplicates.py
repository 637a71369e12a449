"""Private files with the same content: each would vote as a record of its own."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import ray

from pe_ray.config.blocks import PrivateConfig
from pe_ray.errors import InputError
from pe_ray.files.storage import Location, parse_location
from pe_ray.private.tasks import hide_private_errors, private_task
from pe_ray.runtime.watchdog import note_progress

_FILES_PER_TASK = 2000
_CHUNK = 1 << 20


def refuse_duplicates(
    files: Sequence[tuple[str, int]], config: PrivateConfig, stall_seconds: float
) -> None:
    """Raise InputError, naming both, where two files have the same content.

    files: path and bytes of each. Only files of equal size are read.

    Guarantee: nothing but the names of two files reaches the driver. The error is for whoever
    holds the data, and nothing publishes it. Spends nothing.
    """
    if config.duplicates == "allow":
        return
    suspects = list_suspects(files)
    task = private_task(_digest_files, config.node_label)
    parts = [
        task.remote(suspects[start : start + _FILES_PER_TASK], stall_seconds)
        for start in range(0, len(suspects), _FILES_PER_TASK)
    ]
    pair = ray.get(private_task(_find_pair, config.node_label).remote(*parts))
    if pair is not None:
        raise InputError(
            f"private.data: {pair[0]} and {pair[1]} have the same content, and each would count; "
            "remove one, or set private.duplicates: allow if both are records"
        )


def list_suspects(files: Sequence[tuple[str, int]]) -> list[str]:
    """List the files that have the size of another one.

    Guarantee: depends on sizes only.
    """
    of_size: dict[int, list[str]] = defaultdict(list)
    for path, size in files:
        of_size[size].append(path)
    return [path for paths in of_size.values() if len(paths) > 1 for path in paths]


def _digest_files(paths: Sequence[str], stall_seconds: float) -> list[tuple[bytes, str]]:
    with hide_private_errors("private.data: reading", stall_seconds):
        return [(digest_file(parse_location(path)), path) for path in paths]


def digest_file(file: Location) -> bytes:
    """Return a digest (BLAKE2b) of a file's content.

    Guarantee: stays inside zone 1.
    """
    digest = hashlib.blake2b(digest_size=20)
    if isinstance(file, Path):
        with file.open("rb") as source:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
    else:
        digest.update(file.read_bytes())
    note_progress()
    return digest.digest()


def _find_pair(*parts: Sequence[tuple[bytes, str]]) -> tuple[str, str] | None:
    """Return the first two files with the same digest, by name."""
    first: dict[bytes, str] = {}
    for digest, path in sorted((found for part in parts for found in part), key=lambda f: f[1]):
        if digest in first:
            return first[digest], path
        first[digest] = path
    return None
