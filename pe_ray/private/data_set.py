"""What a data set is recognised by in its account: digests of its files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pe_ray.config.blocks import PrivateConfig
from pe_ray.errors import FaultError, InputError
from pe_ray.files.image_tables import DIGITS
from pe_ray.private.duplicates import digest_files
from pe_ray.private.records import find_records
from pe_ray.private.tasks import RETRIES, look_at_private_data, private_task
from pe_ray.runtime.cluster import use_ray
from pe_ray.values import Unit

_FILES_PER_TASK = 2000
_BYTES_PER_TASK = 1 << 30


def digest_data(config: PrivateConfig, unit: Unit, stall_seconds: float) -> set[str]:
    """Return a digest of each file that holds private records or their images.

    Rows that `private.where` leaves out, and labels, make no difference. For users it is another
    digest where `private.user_column` is another one.

    Guarantee: reads the files where private records may be read. The digests are for the account,
    which is as private as the data: nothing publishes them. Spends nothing.
    """
    if config.data == DIGITS:
        return {DIGITS}
    ray = use_ray()
    node_label = config.node_label
    listed = look_at_private_data("private.data: listing", _list_files, node_label, config)
    task = private_task(digest_files, node_label)
    found: set[str] = set()
    for paths, result in [(p, task.remote(p, stall_seconds, 0)) for p in _divide(listed)]:
        try:
            digests, _ = ray.get(result)
        except ray.exceptions.WorkerCrashedError:
            raise FaultError(
                f"private.data: a worker that read it died or hung {RETRIES + 1} times"
            ) from None
        if len(digests) < len(paths):
            raise InputError(
                "private.data: has files that can't be read; `pe-ray check` lists them"
            )
        found |= {digest.hex() for digest, _ in digests}
    if unit == "user":
        return {f"{digest} {config.user_column}" for digest in found}
    return found


def _list_files(config: PrivateConfig) -> list[tuple[str, int]]:
    """Return path and bytes of each file."""
    found = find_records(config)
    return [*found.files] or [(str(part.source), 0) for part in found.shards]


def _divide(files: Sequence[tuple[str, int]]) -> Iterator[list[str]]:
    """Yield the paths for one task each."""
    paths: list[str] = []
    size = 0
    for path, length in files:
        if paths and (len(paths) == _FILES_PER_TASK or size + length > _BYTES_PER_TASK):
            yield paths
            paths, size = [], 0
        paths.append(path)
        size += length
    if paths:
        yield paths
