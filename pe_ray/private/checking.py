"""Read all that a run would read, and report what is there and what can't be used.

Guarantee: none. A report on private records holds their number, sizes and files, without noise. It
is for whoever holds the data. The command line prints it and writes it nowhere.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from pe_ray import plugins
from pe_ray.config import Config
from pe_ray.config.blocks import PrivateConfig
from pe_ray.errors import InputError
from pe_ray.files.image_batches import StoredBatch, explain_label, find_labels, read_stored_rows
from pe_ray.files.image_shards import (
    FoundShards,
    count_passed_over,
    find_shards,
    split_shards,
    summarize,
)
from pe_ray.files.image_tables import Faults, ImageTable, TableSlice
from pe_ray.files.images import Unusable, inspect_image
from pe_ray.files.storage import ObjectPath
from pe_ray.private.duplicates import find_duplicates
from pe_ray.private.record_embeddings import check_cache_folder
from pe_ray.private.records import digest_user, explain_user, private_table
from pe_ray.private.tasks import INLINE_LIMIT, RETRIES, look_at_private_data, private_task
from pe_ray.runtime.watchdog import exit_on_stall, note_progress
from pe_ray.runtime.workers import fetch
from pe_ray.values import Framing

logger = logging.getLogger(__name__)

MOST_LISTED = 1000
"""Faults, groups of equal files and sizes that a report lists; it counts all."""
_FIX = "correct or remove it"  # of a row


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What can't be used. place: a file, a folder, or a file and a row of it."""

    place: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TableReport:
    """What a table of images holds.

    labels: name -> records that can be used, of each declared label. users: distinct ones, None
    without a column. sizes: (height, width, images) as stored, the most frequent first. modes: kind
    of pixels as stored -> images. duplicates: files with the same content. A file that is damaged
    counts as one fault, and nothing in it counts otherwise.
    """

    field: str
    files: int
    passed_over: Mapping[str, int]
    summary: str
    records: int
    labels: Mapping[str, int]
    users: int | None
    sizes: Sequence[tuple[int, int, int]]
    num_sizes: int
    modes: Mapping[str, int]
    faults: Sequence[Fault]
    num_faults: int
    duplicates: Sequence[Sequence[str]] = ()
    num_duplicates: int = 0


@dataclass(slots=True, kw_only=True)
class _Tally:
    """What some rows hold; see TableReport. damage: why no more can be read.

    users: digests. padding: keeps the object above Ray's limit, so it stays where it was made.
    """

    records: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    users: NDArray[np.bytes_] = field(default_factory=lambda: np.zeros(0, dtype="S32"))
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    num_faults: int = 0
    damage: str | None = None
    padding: bytes = b""

    def note(self, *faults: Fault) -> None:
        """Count faults, and list them while there is room."""
        self.num_faults += len(faults)
        self.faults += faults[: MOST_LISTED - len(self.faults)]


def check_records(config: PrivateConfig, framing: Framing, stall_seconds: float) -> TableReport:
    """Read all private records as a run would, and report on them.

    Raises InputError where there is nothing to read. With private.node_label, only nodes with that
    label read records; the report comes here.

    Guarantee: none; the report is not private (see the module).
    """
    table = private_table(config)
    report, files = _check(table, framing, config.node_label, stall_seconds)
    groups, number = find_duplicates(files, config, stall_seconds, MOST_LISTED)
    return replace(report, duplicates=groups, num_duplicates=number)


def check_table(table: ImageTable, framing: Framing, stall_seconds: float) -> TableReport:
    """Read all images of a public table and report on them; see `check_records`.

    Guarantee: reads public images only.
    """
    return _check(table, framing, None, stall_seconds)[0]


def check_cache(config: PrivateConfig) -> None:
    """Raise InputError where the private cache can't be used; create nothing.

    Guarantee: reads no record.
    """
    look_at_private_data("private.cache: looking", check_cache_folder, config.node_label, config)


def try_embedder(config: Config) -> None:
    """Embed a blank image where private records will be embedded; InputError if that fails.

    Guarantee: reads no record.
    """
    private, resources = config.private, config.resources
    task = private_task(_embed_blank, private.node_label, gpus=resources.gpus_per_worker)
    fetch(task.remote(config, resources.stall_seconds))


def _check(
    table: ImageTable, framing: Framing, node_label: str | None, stall_seconds: float
) -> tuple[TableReport, Sequence[tuple[str, int]]]:
    """Return the report on a table, and the sizes of its files."""
    name = table.name_field("data")
    found, listed = look_at_private_data(f"{name}: listing", _list_files, node_label, table)
    slices = split_shards(found.shards)
    rows = sum(part.stop - part.start for part in slices)
    logger.info("%s: reading %s rows in %d slices", name, f"{rows:,}", len(slices))
    task = private_task(_inspect_slice, node_label, num_returns=2)
    results = [task.remote(part, table, framing, node_label, stall_seconds) for part in slices]
    read, crashed = [], []
    for part, (ended, tally) in zip(slices, results, strict=True):
        try:
            ray.get(ended)
            read.append((part, tally))
        except ray.exceptions.WorkerCrashedError:
            place = f"{part.source}, rows {part.start} to {part.stop - 1}"
            reason = f"its worker died or hung {RETRIES + 1} times"
            crashed.append(Fault(place=place, reason=reason))
    shards = [(part.shard, str(part.source)) for part, _ in read]
    merge = private_task(_merge, node_label)
    total, users = ray.get(merge.remote(shards, *(tally for _, tally in read)))
    sizes = [(height, width, count) for (height, width), count in total.sizes.items()]
    sizes.sort(key=lambda size: (-size[2], size))
    faults = [*listed, *crashed, *total.faults]
    if not total.records and not faults:
        raise table.refuse(f"keeps no row of {table.data}; correct it", "where")
    report = TableReport(
        field=name,
        files=found.num_files,
        passed_over=count_passed_over(found),
        summary=summarize(found),
        records=total.records,
        labels={label: total.labels[label] for label in table.labels or sorted(total.labels)},
        users=users if table.user_column is not None else None,
        sizes=sizes[:MOST_LISTED],
        num_sizes=len(sizes),
        modes=dict(sorted(total.modes.items())),
        faults=faults[:MOST_LISTED],
        num_faults=len(listed) + len(crashed) + total.num_faults,
    )
    return report, found.files


def _list_files(table: ImageTable) -> tuple[FoundShards, list[Fault]]:
    faults: Faults = []
    found = find_shards(table, faults)
    return found, [Fault(place=place, reason=_explain(table, error)) for place, error in faults]


def _explain(table: ImageTable, error: InputError) -> str:
    """Return an error's text without the field that every fault of the table has."""
    return str(error).removeprefix(f"{table.name_field('data')}: ")


def _inspect_slice(
    part: TableSlice,
    table: ImageTable,
    framing: Framing,
    node_label: str | None,
    stall_seconds: float,
) -> tuple[None, _Tally]:
    """Read the rows of a slice as `read_batches` does, but go on after a bad one."""
    tally = _Tally()
    users = [tally.users]
    try:
        with exit_on_stall(stall_seconds):
            for stored in read_stored_rows(table, part):
                _inspect_rows(part, table, framing, stored, tally)
                found = [digest_user(user) for user in stored.users if explain_user(user) is None]
                users.append(np.unique(np.array(found, dtype="S32")))
                note_progress()
    except InputError as error:
        tally.damage = _explain(table, error)
    except Exception as error:
        tally.damage = f"reading failed: {type(error).__name__}"
    tally.users = np.unique(np.concatenate(users))
    tally.padding = bytes(INLINE_LIMIT if node_label is not None else 0)
    return None, tally


def _inspect_rows(
    part: TableSlice, table: ImageTable, framing: Framing, stored: StoredBatch, tally: _Tally
) -> None:
    """Add rows to `tally`, each with all of its faults."""
    labels = find_labels(table, stored.names).tolist()
    for position, row in enumerate(stored.rows.tolist()):
        cell, name, reasons = stored.cells[position], stored.names[position], []
        try:
            image = inspect_image(cell, framing)
        except Unusable as error:
            reasons.append(error.reason)
        else:
            tally.sizes[image.height, image.width] += 1
            tally.modes[image.mode] += 1
        unknown = table.labels is not None and labels[position] < 0
        if unknown and not part.files:  # the listing has named a class folder
            reasons.append(explain_label(table, name, stored.labels[position]))
        if table.user_column is not None:
            reasons += filter(None, [explain_user(stored.users[position])])
        place = _describe_place(part, row, cell)
        tally.note(*(Fault(place=place, reason=f"{reason}; {_FIX}") for reason in reasons))
        if not reasons and not unknown:
            tally.records += 1
            if table.label_column is not None or table.labels is not None:
                known = table.labels[labels[position]] if table.labels else name
                tally.labels[known or ""] += 1


def _describe_place(part: TableSlice, row: int, cell: Any) -> str:
    """Say where a row is, and where its image is if that is another file."""
    place = part.place(row)
    if isinstance(cell, Path | ObjectPath) and str(cell) != place:
        return f"{cell} ({place})"
    return place


def _merge(shards: Sequence[tuple[int, str]], *tallies: _Tally) -> tuple[_Tally, int]:
    """Add up tallies in order, each of a (shard, file); return the number of users, too.

    Of a damaged file nothing counts: how much of it can be read depends on the slices.
    """
    total, seen = _Tally(), set()
    damaged = {shard for (shard, _), tally in zip(shards, tallies, strict=True) if tally.damage}
    users = [total.users]
    for (shard, file), tally in zip(shards, tallies, strict=True):
        if tally.damage and shard not in seen:
            seen.add(shard)
            total.note(Fault(place=file, reason=tally.damage))
        if shard in damaged:
            continue
        total.note(*tally.faults)
        total.num_faults += tally.num_faults - len(tally.faults)
        total.records += tally.records
        total.labels += tally.labels
        total.sizes += tally.sizes
        total.modes += tally.modes
        users.append(tally.users)
    return total, len(np.unique(np.concatenate(users)))


def _embed_blank(config: Config, stall_seconds: float) -> None:
    plugin, shape = config.embedder, config.image_shape
    blank = np.zeros((1, shape.height, shape.width, shape.channels), np.uint8)
    with exit_on_stall(stall_seconds):
        plugins.build("embedder", plugin.kind, plugin.options).embed(blank)
