"""Private records, embedded once: read, validated and shared out to partitions.

The driver holds references, names and sizes of the data's files and, of a bad record, its shard and
row; never an image, a record's label, a user, or a count of records that are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from pe_ray import plugins
from pe_ray.config.blocks import STALL_SECONDS, PrivateConfig
from pe_ray.errors import FaultError, InputError, RecordError
from pe_ray.files.storage import at_home, location, version
from pe_ray.private.record_sources import (
    PrivateSlice,
    SourceError,
    joined,
    list_slices,
    read_batches,
)
from pe_ray.private.tasks import RETRIES, private_task
from pe_ray.runtime.cluster import on_nodes
from pe_ray.runtime.watchdog import headway, limited

_MOST_PARTITIONS = 64  # of users: each slice has as many pieces
_FORMAT = 3  # of cached embeddings; 2: of tensors misread beyond the first slice of a file
_SENT_ALONG = 100 << 10  # bytes: smaller results go to the caller (max_direct_call_object_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedRecords:
    """Embeddings float32 [n, d], labels int32 [n], users (digests, [n]) or None.

    ballast: what makes it too large for Ray to send along with the answer to the driver.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int32]
    users: NDArray[np.bytes_] | None
    ballast: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateRecords:
    """References to EmbeddedRecords: partition -> pieces; a user is in one partition only.

    node_label: of the nodes that may hold them; None for all. stall_seconds: without headway, after
    which a task on them is killed and repeated.
    """

    partitions: list[list[ray.ObjectRef]]
    node_label: str | None
    stall_seconds: float


def embed_slice(
    part: PrivateSlice,
    config: PrivateConfig,
    channels: int,
    embedder_kind: str,
    embedder_options: plugins.EmbedderOptions,
) -> EmbeddedRecords:
    """Embeddings of one slice, from the private cache where it has them.

    Guarantee: stays inside zone 1; writes only to the private cache (mode 0700).
    """
    cached = _cache_file(part, config, channels, embedder_kind, embedder_options)
    if cached is not None:
        loaded = _load(cached)
        if loaded is not None:
            return loaded
    embedder = _embedder(embedder_kind, embedder_options)
    dim = embedder.embed(np.zeros((1, 8, 8, channels), np.uint8)).shape[1]
    features = [np.zeros((0, dim), dtype=np.float32)]
    labels = [np.zeros(0, dtype=np.int32)]
    users: list[NDArray[np.bytes_] | None] = [None]
    for batch in read_batches(part, config, channels):
        made = _embed(embedder, batch.images, dim)
        finite = np.isfinite(made).all(axis=1)
        if not finite.all():
            row = int(batch.rows[np.argmin(finite)])
            raise RecordError(shard=part.shard, row=row, reason="embedding is not finite")
        features.append(made)
        labels.append(batch.labels)
        users.append(batch.users)
        headway()
    embedded = EmbeddedRecords(
        features=np.concatenate(features), labels=np.concatenate(labels), users=joined(users)
    )
    if cached is not None:
        _store(cached, embedded)
    return embedded


def _embed(
    embedder: plugins.Embedder, batch: Sequence[NDArray[np.uint8]], dim: int
) -> NDArray[np.float32]:
    """Embeddings [n, dim] of images that may differ in shape."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    for position, image in enumerate(batch):
        shapes.setdefault(image.shape, []).append(position)
    features = np.empty((len(batch), dim), dtype=np.float32)
    for chosen in shapes.values():
        features[chosen] = embedder.embed(np.stack([batch[position] for position in chosen]))
    return features


_loaded: tuple[str, plugins.EmbedderOptions, plugins.Embedder] | None = None


def _embedder(kind: str, options: plugins.EmbedderOptions) -> plugins.Embedder:
    """The embedder, kept from slice to slice: a network takes seconds to load."""
    global _loaded
    if _loaded is None or _loaded[:2] != (kind, options):
        try:
            _loaded = (kind, options, plugins.load("embedder", kind)(options))
        except InputError as error:
            raise _EmbedderError(str(error)) from None
    return _loaded[2]


class _EmbedderError(InputError):
    """The embedder can't be made; says so from its options alone, so anyone may read it."""


class _CacheError(InputError):
    """The private cache can't be used; names its folder only."""


def open_records(
    config: PrivateConfig,
    *,
    channels: int,
    embedder_kind: str,
    embedder_options: plugins.EmbedderOptions,
    gpus: float = 0.0,
    stall_seconds: float = STALL_SECONDS,
) -> PrivateRecords:
    """Read, validate and embed all records in Ray tasks; raises the first bad one's RecordError.

    gpus: of each task; stall_seconds: without headway, after which a task is killed and repeated.

    Guarantee: nothing private reaches the driver: it gets references and, for a bad record, its
    shard, row and a fixed reason. Spends nothing. All records of a user are in one partition.
    With private.node_label the data are looked at on nodes with that label only, and the embedded
    records stay in the object stores there. Raises InputError where the embedder can't be made
    (missing weights), before any record is read, and where `where` keeps no record. These
    errors, like a bad record's, depend on private data: they are for whoever holds them, and
    publish nothing.
    """
    placement = on_nodes(config.node_label)
    if placement:
        prepared = ray.get(ray.remote(num_cpus=1, **placement)(_prepare_task).remote(config))
        if isinstance(prepared, str):
            raise InputError(prepared)
    else:
        prepared = _prepare(config)
    config, slices = prepared
    num_pieces = min(len(slices), _MOST_PARTITIONS) if config.user_column else 1
    task = private_task(_embed_task, config.node_label, gpus=gpus, num_returns=num_pieces + 2)
    results = [
        task.remote(
            part, config, channels, embedder_kind, embedder_options, num_pieces, stall_seconds
        )
        for part in slices
    ]
    for part, (report, *_) in zip(slices, results, strict=True):
        try:
            bad = ray.get(report)
        except ray.exceptions.WorkerCrashedError:
            raise FaultError(
                f"private.data: shard {part.shard}: its worker died or hung {RETRIES + 1} times"
            ) from None
        if isinstance(bad, str):
            raise InputError(bad)
        if bad is not None:
            raise RecordError(shard=part.shard, row=bad[0], reason=bad[1])
    if ray.get(
        ray.remote(num_cpus=0, **placement)(_all).remote(*(empty for _, empty, *_ in results))
    ):
        raise InputError("private.where: keeps no record; mend its values")
    partitions = [list(pieces) for _, _, *pieces in results]
    if config.user_column:
        partitions = [list(pieces) for pieces in zip(*partitions, strict=True)]
    return PrivateRecords(
        partitions=partitions, node_label=config.node_label, stall_seconds=stall_seconds
    )


def _prepare(config: PrivateConfig) -> tuple[PrivateConfig, list[PrivateSlice]]:
    """The configuration with its cache folder resolved, and the slices to read."""
    return config.model_copy(update={"cache": checked_cache(config)}), list_slices(config)


def _prepare_task(config: PrivateConfig) -> tuple[PrivateConfig, list[PrivateSlice]] | str:
    """`_prepare` on a node that may see the data, or its InputError's text."""
    try:
        return _prepare(config)
    except InputError as error:
        return str(error)
    except Exception as error:
        raise RuntimeError(f"private.data: listing failed: {type(error).__name__}") from None


def _all(*flags: bool) -> bool:
    return all(flags)


def _embed_task(
    part: PrivateSlice,
    config: PrivateConfig,
    channels: int,
    embedder_kind: str,
    embedder_options: plugins.EmbedderOptions,
    num_pieces: int,
    stall_seconds: float,
) -> tuple[Any, ...]:
    """(report, empty, piece 0, ...): pieces split by user, or one piece; the report is None, a bad
    record's (row, reason), or why the embedder, the cache or the file can't be used; empty:
    whether no record was kept.
    """
    try:
        with limited(stall_seconds):
            embedded = embed_slice(part, config, channels, embedder_kind, embedder_options)
    except RecordError as error:
        return ((error.row, error.reason), None, *[None] * num_pieces)
    except _EmbedderError as error:
        return (f"embedder: {error}", None, *[None] * num_pieces)
    except (_CacheError, SourceError) as error:
        return (str(error), None, *[None] * num_pieces)
    except Exception as error:
        where = f"private.data: shard {part.shard}"
        raise RuntimeError(f"{where}: reading failed: {type(error).__name__}") from None
    if config.node_label is not None:  # what is smaller, Ray would send to the driver's memory
        embedded = replace(embedded, ballast=bytes(_SENT_ALONG))
    if embedded.users is None:
        return (None, not len(embedded.labels), embedded)
    home = np.array([int(user[:15], 16) % num_pieces for user in embedded.users], dtype=np.int64)
    return (
        None,
        not len(embedded.labels),
        *(
            EmbeddedRecords(
                features=embedded.features[home == piece],
                labels=embedded.labels[home == piece],
                users=embedded.users[home == piece],
                ballast=embedded.ballast,
            )
            for piece in range(num_pieces)
        ),
    )


def cache_folder(config: PrivateConfig) -> Path | None:
    """Where this process keeps private embeddings; None for nowhere."""
    if config.cache == "none":
        return None
    if config.cache:
        return at_home(config.cache)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "pe_ray" / "private"


def checked_cache(config: PrivateConfig) -> str:
    """The cache folder, made with mode 0700, or `none`; refuses one that others can read.

    Resolved once: workers may have another environment.
    """
    folder = cache_folder(config)
    if folder is None:
        return "none"
    _make_private(folder)
    return str(folder.resolve())


def _make_private(folder: Path) -> None:
    """Make the folder with mode 0700 on this node; raises _CacheError where others can read it."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        mode = folder.stat().st_mode
    except OSError as error:
        raise _CacheError(f"private.cache: {folder} can't be made ({error.strerror})") from None
    if mode & 0o077:
        raise _CacheError(f"private.cache: others can read {folder}; chmod 700 it")


def _cache_file(
    part: PrivateSlice,
    config: PrivateConfig,
    channels: int,
    embedder_kind: str,
    embedder_options: plugins.EmbedderOptions,
) -> Path | None:
    folder = cache_folder(config)
    source = location(part.source)
    if folder is None or not source.is_file():
        return None
    key = {
        "format": _FORMAT,
        "slice": {
            "shard": part.shard,
            "source": str(source.resolve()),
            "start": part.start,
            "stop": part.stop,
        },
        "file": version(source),
        "config": config.model_dump(mode="json", exclude={"data", "cache", "node_label"}),
        "channels": channels,
        "embedder": [embedder_kind, embedder_options.model_dump(mode="json")],
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return folder / f"{digest}.npz"


def _load(file: Path) -> EmbeddedRecords | None:
    """What the cache holds, None if it is absent or torn."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            users = stored.get("users", None)
            return EmbeddedRecords(
                features=stored["features"], labels=stored["labels"], users=users
            )
    except Exception:  # absent, torn, or not ours: made again
        return None


def _store(file: Path, embedded: EmbeddedRecords) -> None:
    arrays: dict[str, Any] = {"features": embedded.features, "labels": embedded.labels}
    if embedded.users is not None:
        arrays["users"] = embedded.users
    _make_private(file.parent)  # this node's may be another than the one checked at first
    aside = file.with_name(f"{file.name}.{os.getpid()}")
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(handle, "wb") as sink:
            np.savez(sink, allow_pickle=False, **arrays)
        aside.replace(file)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise _CacheError(
            f"private.cache: {file.parent} can't be written ({error.strerror}); free space, or "
            "set private.cache to another folder or to none"
        ) from None
