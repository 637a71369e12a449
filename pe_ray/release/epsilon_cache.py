"""Epsilons that this user computed before: to compute one takes a second of imports.

They are kept in the user's own cache folder, by a digest of all that they are computed from: the
ledger's entries, delta, and the code. So a ledger, whoever wrote it, brings no epsilon of its own.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from pe_ray.files.digests import compute_digest
from pe_ray.files.storage import atomic_write, find_cache
from pe_ray.values import Release

_CODE = ("accounting.py", "adaptive.py", "mechanism.py")
_LIBRARIES = ("dp-accounting", "numpy", "scipy")


def recall_epsilon(
    accounting: str, releases: Sequence[Release], delta: float, compute: Callable[[], float]
) -> float:
    """Return what `compute` returns, without calling it where that is known on this machine.

    compute: epsilon at `delta` of the releases by `accounting`. A folder that others may write to
    is not used.
    """
    file = _find_file(accounting, releases, delta)
    with suppress(OSError, ValueError):
        text, digest = file.read_text().split()
        if _is_ours(file.parent) and digest == compute_digest(text.encode()):
            return float.fromhex(text)
    epsilon = compute()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if _is_ours(file.parent):
            text = epsilon.hex()
            atomic_write(file, f"{text} {compute_digest(text.encode())}".encode())
    return epsilon


def _find_file(accounting: str, releases: Sequence[Release], delta: float) -> Path:
    inputs = [accounting, delta, *releases, *((name, version(name)) for name in _LIBRARIES)]
    code = b"".join((Path(__file__).parent / name).read_bytes() for name in _CODE)
    name = hashlib.sha256(repr(inputs).encode() + code).hexdigest()
    return find_cache() / "pe_ray" / "epsilon" / name


def _is_ours(folder: Path) -> bool:
    found = folder.stat()
    return found.st_uid == os.getuid() and not found.st_mode & 0o077
