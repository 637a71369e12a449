"""Digests: a file that is read back holds what was written, or is known to be damaged.

A file of its own has its digest beside it, in a hidden file. Parts have theirs in the manifest of
their stage (see pe_ray.files.parts). Files of a version without digests are taken as they are.
"""

from __future__ import annotations

import hashlib

from pe_ray.errors import DamagedFileError
from pe_ray.files.storage import Location, atomic_write


def compute_digest(content: bytes) -> str:
    """Return half of the SHA-256 of `content`, 32 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()[:32]


def locate_digest(file: Location) -> Location:
    """Return the file that holds the digest of `file`."""
    name = f".{file.name}.sha256"
    return file.parent / name


def write_with_digest(file: Location, content: bytes) -> None:
    """Write a file and its digest, which a crash may leave without the file."""
    atomic_write(locate_digest(file), compute_digest(content).encode())
    atomic_write(file, content)


def read_with_digest(file: Location) -> bytes:
    """Return the content of a file; DamagedFileError where its digest is that of another."""
    content, beside = file.read_bytes(), locate_digest(file)
    if beside.exists() and beside.read_bytes() != compute_digest(content).encode():
        raise DamagedFileError(str(file))
    return content
