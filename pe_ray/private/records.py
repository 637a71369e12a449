"""Private records: list them in slices, and read and validate one slice."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from pe_ray.config.blocks import PrivateConfig
from pe_ray.errors import InputError
from pe_ray.files.image_batches import ImageBatch, read_batches
from pe_ray.files.image_shards import FoundShards, find_shards
from pe_ray.files.image_tables import ImageTable, TableSlice
from pe_ray.values import Framing


def private_table(config: PrivateConfig) -> ImageTable:
    """Return where the private records are, with errors that carry no content."""
    return config.table("private", private=True)


def find_records(config: PrivateConfig) -> FoundShards:
    """Find the files of the records, from names and metadata alone.

    Guarantee: reads no record. Raises InputError naming the field if the data can't be there.
    """
    return find_shards(private_table(config))


def refuse_shared(found: FoundShards, config: PrivateConfig, shown: Sequence[ImageTable]) -> None:
    """Raise InputError where public images are files of the records, reached by a link or a list.

    shown: tables of public images. Rows that a common `where` column keeps apart are others. What
    can't be listed here is left to whoever reads it.

    Guarantee: depends on names and links only.
    """
    own = _list_real_paths(found)
    for table in shown:
        common = table.where.keys() & config.where.keys()
        if any(str(table.where[key]) != str(config.where[key]) for key in common):
            continue
        try:
            reached = _list_real_paths(find_shards(table))
        except InputError:
            continue
        if not own.isdisjoint(reached):
            raise InputError(
                f"{table.name_field('data')}: holds files of private.data, by a link or a list; "
                "give other images"
            )


def _list_real_paths(found: FoundShards) -> set[str]:
    tables = [str(part.source) for part in found.shards if part.source and not part.files]
    return {os.path.realpath(path) for path in (*tables, *(path for path, _ in found.files))}


def read_records(part: TableSlice, config: PrivateConfig, framing: Framing) -> Iterator[ImageBatch]:
    """Decode and validate the records of a slice, at most 64 at a time.

    Users are digests, bytes, so that files hold equal ones.

    Guarantee: stays inside zone 1. RecordError names shard and row, never content.
    """
    table = private_table(config)
    for batch in read_batches(table, part, framing):
        if config.user_column is not None:
            for row, user in zip(batch.rows.tolist(), batch.users, strict=True):
                reason = explain_user(user)
                if reason is not None:
                    raise table.row_error(part, row, reason)
            batch = replace(batch, users=[digest_user(user) for user in batch.users])
        yield batch


def explain_user(user: Any) -> str | None:
    """Say why a stored user can't be one; None if it can.

    7 and 7.0 would be two users. Columns are checked by their type, members of tars are not.
    """
    if user in (None, ""):
        return "user is null"
    return None if type(user) in (int, str) else "user is neither an integer nor text"


def digest_user(user: Any) -> bytes:
    """Return a 128-bit digest (BLAKE2b, hexadecimal), which is the same in every file.

    Guarantee: stays inside zone 1.
    """
    return hashlib.blake2b(str(user).encode(), digest_size=16).hexdigest().encode()
