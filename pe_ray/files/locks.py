"""Lock files between processes.

A lock belongs to an open file (`flock`): the system releases it when its process ends, even by a
kill. The file itself stays. On a shared disk the file system must support locks (NFS 4 does).
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_RETRY_SECONDS = 0.05


@contextmanager
def locked(file: Path, timeout: float | None = None) -> Iterator[None]:
    """Hold the lock on `file`, which is created if it is missing.

    Waits for other holders, at most `timeout` seconds (None: no limit). Raises TimeoutError if one
    still holds it then, and OSError if the file can't be opened or locked.
    """
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if timeout is None:
            fcntl.flock(handle, fcntl.LOCK_EX)
        else:
            deadline = time.monotonic() + timeout
            while not _try_lock(handle, fcntl.LOCK_EX):
                if time.monotonic() >= deadline:
                    raise TimeoutError(f"{file} is locked by another process")
                time.sleep(_RETRY_SECONDS)
        yield
    finally:
        os.close(handle)


def is_locked(file: Path) -> bool:
    """Return whether some process holds the lock on `file`; False if there is no such file.

    Takes a shared lock for an instant. A holder that starts with a timeout above 0 outlasts it.
    """
    try:
        handle = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(handle, fcntl.LOCK_SH)
    finally:
        os.close(handle)


def find_holder(file: Path) -> str | None:
    """Name another process of this machine that holds a lock on `file`, a part of it included."""
    try:
        inode, rows = file.stat().st_ino, Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    for fields in map(str.split, rows):
        # 7: POSIX ADVISORY WRITE 4711 08:01:123 0 EOF; a row with -> waits for the lock.
        if "->" not in fields and fields[5].endswith(f":{inode}"):
            holder = int(fields[4])
            if holder > 0 and holder != os.getpid():
                return f"process {holder}"
    return None


def _try_lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
