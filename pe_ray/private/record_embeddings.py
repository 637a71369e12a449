"""Embeddings of private records: made once, cached, and partitioned by user.

The driver holds references, names and sizes of the data's files and, of a bad record, its shard and
row. It never holds an image, a record's label, a user, or a count of records that are kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from pe_ray import plugins
from pe_ray.config.blocks import STALL_SECONDS, PrivateConfig
from pe_ray.config.kinds import Plugin
from pe_ray.errors import FaultError, InputError, RecordError
from pe_ray.files.image_shards import FoundShards, split_shards, summarize
from pe_ray.files.image_tables import ImageTable, TableSlice
from pe_ray.files.layouts import file_lists
from pe_ray.files.storage import file_version, find_cache, require_creatable
from pe_ray.private.duplicates import refuse_duplicates
from pe_ray.private.records import find_records, private_table, read_records, refuse_shared
from pe_ray.private.tasks import INLINE_LIMIT, RETRIES, look_at_private_data, private_task
from pe_ray.runtime.events import announce
from pe_ray.runtime.watchdog import exit_on_stall, note_progress
from pe_ray.values import Framing

logger = logging.getLogger(__name__)

_MAX_PARTITIONS = 64  # of users: each slice has as many pieces
_FORMAT = 4  # of cached embeddings; 3 knew the embedder's files by their paths only


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedRecords:
    """Embeddings float32 [n, d], labels int32 [n], users (digests, [n]) or None.

    padding: Keeps the object above Ray's 100 KiB inline limit, so it never reaches the driver.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int32]
    users: NDArray[np.bytes_] | None
    padding: bytes = b""

    def select(self, rows: NDArray[Any]) -> EmbeddedRecords:
        """Return the records of some rows, which are numbers or a mask."""
        users = None if self.users is None else self.users[rows]
        return replace(self, features=self.features[rows], labels=self.labels[rows], users=users)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateRecords:
    """References to EmbeddedRecords: partition -> pieces; a user is in one partition only.

    node_label: label of the nodes that may hold them; None for all. stall_seconds: a task on them
    that makes no progress for so long is killed and repeated.
    """

    partitions: list[list[ray.ObjectRef]]
    node_label: str | None
    stall_seconds: float


def open_records(
    config: PrivateConfig,
    *,
    framing: Framing,
    embedder: Plugin,
    gpus: float = 0.0,
    stall_seconds: float = STALL_SECONDS,
    shown: Sequence[ImageTable] = (),
) -> PrivateRecords:
    """Read, validate and embed all records in Ray tasks; raise the first bad one's RecordError.

    gpus: of each task. stall_seconds: see PrivateRecords. shown: public images that the run shows
    or scores, which must be other files.

    Guarantee: nothing private reaches the driver. It gets references and, for a bad record, its
    shard, row and a fixed reason. All records of a user are in one partition. Spends nothing. With
    private.node_label, only nodes with that label read the data and hold the embeddings. Raises
    InputError if the embedder can't be made, before a record is read, if two files have the same
    content, or if `where` keeps no record. Warns of labels without a record. These errors and this
    warning, like a bad record's, depend on private data: they are for whoever holds the data, and
    nothing publishes them.
    """
    config, found = look_at_private_data(
        "private.data: listing", _prepare, config.node_label, config, shown
    )
    logger.info("private.data: files: %s", summarize(found))
    announce("reading and embedding private records")
    refuse_duplicates(found.files, config, stall_seconds)
    slices = split_shards(found.shards)
    num_pieces = min(len(slices), _MAX_PARTITIONS) if config.user_column else 1
    task = private_task(_embed_task, config.node_label, gpus=gpus, num_returns=num_pieces + 2)
    results = [
        task.remote(part, config, framing, embedder, num_pieces, stall_seconds) for part in slices
    ]
    for part, (fault, *_) in zip(slices, results, strict=True):
        try:
            error = ray.get(fault)
        except ray.exceptions.WorkerCrashedError:
            raise FaultError(
                f"private.data: shard {part.shard}: its worker died or hung {RETRIES + 1} times"
            ) from None
        if error is not None:
            raise error
    missing = private_task(_find_missing, config.node_label)
    unseen = ray.get(missing.remote(config.labels, *(seen for _, seen, *_ in results)))
    if len(unseen) == len(config.labels):
        raise InputError("private.where: keeps no record; correct its values")
    if unseen:
        logger.warning(
            "private.labels: no record has the label %s (not for publishing)", ", ".join(unseen)
        )
    partitions = [list(pieces) for _, _, *pieces in results]
    if config.user_column:
        partitions = [list(pieces) for pieces in zip(*partitions, strict=True)]
    return PrivateRecords(
        partitions=partitions, node_label=config.node_label, stall_seconds=stall_seconds
    )


class _SetupError(InputError):
    """The embedder or the cache can't be used; the text is made from the configuration alone."""


def _prepare(
    config: PrivateConfig, shown: Sequence[ImageTable]
) -> tuple[PrivateConfig, FoundShards]:
    """Return the configuration with its cache folder resolved, and the files."""
    found = find_records(config)
    refuse_shared(found, config, shown)
    return config.model_copy(update={"cache": make_cache_folder(config)}), found


def _find_missing(names: Sequence[str], *seen: tuple[NDArray[np.int32], bytes]) -> list[str]:
    """Return the names of labels that no slice has seen."""
    present = set(np.concatenate([labels for labels, _ in seen]).tolist())
    return [name for label, name in enumerate(names) if label not in present]


def _embed_task(
    part: TableSlice,
    config: PrivateConfig,
    framing: Framing,
    embedder: Plugin,
    num_pieces: int,
    stall_seconds: float,
) -> tuple[Any, ...]:
    """Return (error or None, labels that are kept and padding, piece 0, ...), split by user.

    Guarantee: only errors whose text carries no content are returned. Others are reduced to their
    type.
    """
    try:
        with exit_on_stall(stall_seconds):
            embedded = embed_slice(part, config, framing, embedder)
    except (RecordError, _SetupError) as error:
        return (error, None, *[None] * num_pieces)
    except Exception as error:
        where = f"private.data: shard {part.shard}"
        raise RuntimeError(f"{where}: reading failed: {type(error).__name__}") from None
    padding = bytes(INLINE_LIMIT if config.node_label is not None else 0)
    embedded = replace(embedded, padding=padding)
    seen = (np.unique(embedded.labels), padding)
    return (None, seen, *_split_by_user(embedded, num_pieces))


def _split_by_user(embedded: EmbeddedRecords, num_pieces: int) -> list[EmbeddedRecords]:
    if embedded.users is None:
        return [embedded]
    home = np.array([int(user[:15], 16) % num_pieces for user in embedded.users], dtype=np.int64)
    return [embedded.select(home == piece) for piece in range(num_pieces)]


def embed_slice(
    part: TableSlice, config: PrivateConfig, framing: Framing, embedder: Plugin
) -> EmbeddedRecords:
    """Return the embeddings of one slice, from the private cache if they are in it.

    Guarantee: stays inside zone 1; writes only to the private cache (mode 0700).
    """
    try:
        cached = _cache_file(part, config, framing, embedder)
        loaded = None if cached is None else _load(cached)
        if loaded is not None:
            return loaded
        built = plugins.build("embedder", embedder.kind, embedder.options)
    except InputError as error:
        raise _SetupError(f"embedder: {error}") from None
    shape = framing.shape
    blank = np.zeros((1, shape.height, shape.width, shape.channels), np.uint8)
    dim = built.embed(blank).shape[1]
    features = [np.zeros((0, dim), dtype=np.float32)]
    labels = [np.zeros(0, dtype=np.int32)]
    users: list[bytes] = []
    for batch in read_records(part, config, framing):
        made = np.asarray(built.embed(batch.images), dtype=np.float32)
        finite = np.isfinite(made).all(axis=1)
        if not finite.all():
            row = int(batch.rows[np.argmin(finite)])
            raise private_table(config).row_error(part, row, "embedding is not finite")
        features.append(made)
        labels.append(batch.labels)
        users += batch.users
        note_progress()
    embedded = EmbeddedRecords(
        features=np.concatenate(features),
        labels=np.concatenate(labels),
        users=None if config.user_column is None else np.array(users, dtype="S32"),
    )
    # Loading may have fetched a newer revision, and files may have changed meanwhile.
    if cached is not None and cached == _cache_file(part, config, framing, embedder):
        _store(cached, embedded)
    return embedded


def join_users(pieces: Sequence[EmbeddedRecords]) -> NDArray[np.bytes_] | None:
    """Return the users of all pieces in one array; None if they have none.

    Guarantee: stays inside zone 1.
    """
    present = [piece.users for piece in pieces if piece.users is not None]
    return np.concatenate(present) if present else None


def locate_cache(config: PrivateConfig) -> Path | None:
    """Return where this process keeps private embeddings; None if it keeps none.

    Guarantee: depends on configuration and environment only.
    """
    if config.cache == "none":
        return None
    if config.cache:
        return Path(config.cache)
    return find_cache() / "pe_ray" / "private"


def make_cache_folder(config: PrivateConfig) -> str:
    """Create the cache folder with mode 0700 and return its path, or `none`.

    The path is resolved once, because workers may have another environment.

    Guarantee: refuses a folder that others can read.
    """
    folder = locate_cache(config)
    if folder is None:
        return "none"
    _make_private(folder)
    return str(folder.resolve())


def check_cache_folder(config: PrivateConfig) -> None:
    """Raise InputError where `make_cache_folder` would, on this node; create nothing.

    Guarantee: depends on configuration, environment and the folder only.
    """
    folder = locate_cache(config)
    if folder is not None:
        require_creatable(folder.resolve(), "private.cache")
        if folder.exists():
            _refuse_readable(folder, folder.stat().st_mode)


def _make_private(folder: Path) -> None:
    """Create the folder with mode 0700 on this node; refuse one that others can read."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        mode = folder.stat().st_mode
    except OSError as error:
        raise _SetupError(f"private.cache: {folder} can't be made ({error.strerror})") from None
    _refuse_readable(folder, mode)


def _refuse_readable(folder: Path, mode: int) -> None:
    if mode & 0o077:
        raise _SetupError(f"private.cache: others can read {folder}; chmod 700 it")


def _cache_file(
    part: TableSlice, config: PrivateConfig, framing: Framing, embedder: Plugin
) -> Path | None:
    folder, source = locate_cache(config), part.source
    if folder is None or source is None or not source.is_file():
        return None
    if part.layout == file_lists.NAME:  # the images that it names may have changed
        return None
    key = {
        "format": _FORMAT,
        "slice": {
            "shard": part.shard,
            "source": str(source.resolve()),
            "start": part.start,
            "stop": part.stop,
            "class_names": part.class_names,  # they may lie in a file of their own
            "folder_values": dict(part.folder_values),
        },
        "file": file_version(source),
        "config": config.model_dump(mode="json", exclude={"data", "cache", "node_label"}),
        "framing": asdict(framing),
        "embedder": plugins.digest_plugin("embedder", embedder.kind, embedder.options),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return folder / f"{digest}.npz"


def _load(file: Path) -> EmbeddedRecords | None:
    """Return what the cache holds; None if that is absent, torn or not ours."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            users = stored.get("users", None)
            return EmbeddedRecords(
                features=stored["features"], labels=stored["labels"], users=users
            )
    except Exception:  # the caller makes it again
        return None


def _store(file: Path, embedded: EmbeddedRecords) -> None:
    arrays: dict[str, Any] = {"features": embedded.features, "labels": embedded.labels}
    if embedded.users is not None:
        arrays["users"] = embedded.users
    _make_private(file.parent)  # this node may differ from the one that prepared
    aside = file.with_name(f"{file.name}.{os.getpid()}")
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(handle, "wb") as sink:
            np.savez(sink, allow_pickle=False, **arrays)
        aside.replace(file)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise _SetupError(
            f"private.cache: {file.parent} can't be written ({error.strerror}); free space, or "
            "set private.cache to another folder or to none"
        ) from None
