"""Private records: read, validate, shard, embed once.

The driver holds references and, of a bad record, its shard and row; never an image, a label, a
user, or a count.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from pe_ray import plugins
from pe_ray.config import PrivateConfig
from pe_ray.errors import InputError, RecordError
from pe_ray.private import images

DIGITS = "sklearn:digits"
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"})
_READ_ROWS = 64  # decoded at a time: photographs of 12 megapixels take 36 MB each
_MOST_PARTITIONS = 64  # of users: each slice has as many pieces
_FORMAT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateSlice:
    """What one task reads: rows start..stop-1 of shard `shard` (a file, or a class folder)."""

    shard: int
    source: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRecords:
    """Decoded records: images uint8 [h, w, c] each, labels int32 [n], users (digests) or None."""

    images: list[NDArray[np.uint8]]
    labels: NDArray[np.int32]
    users: NDArray[np.bytes_] | None
    rows: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedRecords:
    """Embeddings float32 [n, d], labels int32 [n], users (digests, [n]) or None."""

    features: NDArray[np.float32]
    labels: NDArray[np.int32]
    users: NDArray[np.bytes_] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateRecords:
    """References to EmbeddedRecords: partition -> pieces; a user is in one partition only."""

    partitions: list[list[ray.ObjectRef]]


class _BadRecordError(Exception):
    """Carries row and reason inside a task; never a value of the record."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(reason)
        self.row = row
        self.reason = reason


def list_slices(config: PrivateConfig) -> list[PrivateSlice]:
    """How the data are shared out to tasks, from metadata alone.

    Guarantee: reads no record; raises InputError naming the field where the data can't be there.
    """
    shards = list(_shards(config))
    total = sum(rows for _, rows in shards)
    if total == 0:
        raise InputError(f"private.data: {config.data} holds no records")
    step = min(8192, max(256, -(-total // 8)))
    return [
        PrivateSlice(shard=shard, source=source, start=start, stop=min(start + step, rows))
        for shard, (source, rows) in enumerate(shards)
        for start in range(0, rows, step)
    ]


def _shards(config: PrivateConfig) -> Iterator[tuple[str, int]]:
    """(source, number of rows) of each shard, in a fixed order."""
    if config.data == DIGITS:
        if config.user_column or config.where:
            raise InputError(f"private: {DIGITS} has no columns for user_column or where")
        from sklearn.datasets import load_digits

        yield DIGITS, len(load_digits().target)
        return
    path = Path(config.data)
    if not path.exists():
        raise InputError(f"private.data: {config.data} does not exist")
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    if files:
        for file in files:
            yield str(file), _parquet_rows(file, config)
        return
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir())
    if not folders:
        raise InputError(
            f"private.data: {config.data} holds neither .parquet files nor a folder per class"
        )
    if config.user_column or config.where:
        raise InputError("private: image folders have no columns for user_column or where")
    for folder in folders:
        if folder.name not in config.labels:
            raise InputError("private.labels: a class folder of private.data is not among them")
        yield str(folder), len(_image_files(folder))


def _parquet_rows(file: Path, config: PrivateConfig) -> int:
    try:
        with pq.ParquetFile(file) as parquet:
            num_rows, schema = parquet.metadata.num_rows, parquet.schema_arrow
    except (OSError, pa.ArrowException):
        raise InputError(f"private.data: {file} is not a readable parquet file") from None
    columns = schema.names
    wanted = {
        "image_column": config.image_column,
        "label_column": config.label_column,
        "user_column": config.user_column,
        **{f"where.{name}": name for name in config.where},
    }
    for field, name in wanted.items():
        if name is not None and columns.count(name) != 1:
            raise InputError(
                f"private.{field}: {name!r} is not in the data; columns are {', '.join(columns)}"
            )
    _check_types(schema, config)
    return int(num_rows)


def _check_types(schema: pa.Schema, config: PrivateConfig) -> None:
    reason = images.unsupported(schema.field(config.image_column).type)
    if reason is not None:
        raise InputError(f"private.image_column: {config.image_column!r} {reason}")
    if config.label_column is not None:
        kind = _plain(schema.field(config.label_column).type)
        if not (pa.types.is_integer(kind) or _is_string(kind)):
            raise InputError(f"private.label_column: holds {kind}; use integers or strings")
    if config.user_column is not None:
        kind = _plain(schema.field(config.user_column).type)
        if pa.types.is_nested(kind) or pa.types.is_null(kind):
            raise InputError(f"private.user_column: holds {kind}; use integers or strings")
    tests = {bool: pa.types.is_boolean, int: pa.types.is_integer, str: _is_string}
    for name, value in config.where.items():
        kind = _plain(schema.field(name).type)
        if not tests[type(value)](kind):
            raise InputError(f"private.where.{name}: {value!r} is not of the column's type, {kind}")


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _image_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)


def read_slice(part: PrivateSlice, config: PrivateConfig, channels: int) -> RawRecords:
    """Decode and validate the records of one slice; images get `channels` (1 luma, 3 RGB).

    Guarantee: stays inside zone 1; RecordError names shard and row, never content.
    """
    read = list(_batches(part, config, channels))
    return RawRecords(
        images=[image for batch in read for image in batch.images],
        labels=np.concatenate([batch.labels for batch in read]),
        users=_joined([batch.users for batch in read]),
        rows=np.concatenate([batch.rows for batch in read]),
    )


def _batches(part: PrivateSlice, config: PrivateConfig, channels: int) -> Iterator[RawRecords]:
    """The slice's records in order, _READ_ROWS at a time, so that images needn't all fit; the
    rows before a bad one come first."""
    for table, cells, rows in _cells(part, config):
        labels = table if isinstance(table, list) else _column(table, config.label_column)
        users = None if isinstance(table, list) else _column(table, config.user_column)
        good: list[NDArray[np.uint8]] = []
        numbers: list[int] = []
        digests: list[bytes] = []
        bad = None
        for position, (cell, row) in enumerate(zip(cells, rows, strict=True)):
            try:
                number = 0 if labels is None else _label(labels[position], config)
                digest = b"" if users is None else _digest(users[position])
                good.append(images.pixels(cell, channels))
            except images.Unusable as error:
                bad = RecordError(shard=part.shard, row=int(row), reason=error.reason)
                break
            numbers.append(number)
            digests.append(digest)
        yield RawRecords(
            images=good,
            labels=np.array(numbers, dtype=np.int32),
            users=None if config.user_column is None else np.array(digests, dtype="S32"),
            rows=np.asarray(rows[: len(good)], dtype=np.int64),
        )
        if bad is not None:
            raise bad


def _cells(
    part: PrivateSlice, config: PrivateConfig
) -> Iterator[tuple[pa.Table | list[Any], Sequence[Any], NDArray[np.int64]]]:
    """(table, or labels where there is none; images as they are stored; row numbers)."""
    if part.source != DIGITS and Path(part.source).is_file():
        for table, rows in _parquet_batches(part, config):
            column = table.column(config.image_column).combine_chunks()
            yield table, images.values_of(column), rows
        return
    if part.source == DIGITS:
        from sklearn.datasets import load_digits

        digits = load_digits()
        stored: Sequence[Any] = np.round(digits.images * (255.0 / 16.0)).astype(np.uint8)
        names: list[Any] = digits.target.tolist()
    else:
        folder = Path(part.source)
        stored = _image_files(folder)
        names = [folder.name] * len(stored)
    for start in range(part.start, part.stop, _READ_ROWS):
        span = slice(start, min(part.stop, start + _READ_ROWS))
        cells = [_content(cell) if isinstance(cell, Path) else cell for cell in stored[span]]
        rows = np.arange(span.start, span.stop, dtype=np.int64)
        yield names[span] if config.label_column else [None] * len(cells), cells, rows


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None


def _parquet_batches(
    part: PrivateSlice, config: PrivateConfig
) -> Iterator[tuple[pa.Table, NDArray[np.int64]]]:
    """The slice's rows that pass `where`, and their row numbers in the file."""
    names = {config.image_column, config.label_column, config.user_column, *config.where}
    columns = sorted(name for name in names if name is not None)
    with pq.ParquetFile(part.source) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        edges = np.concatenate([[0], np.cumsum(sizes)])
        groups = np.flatnonzero((edges[:-1] < part.stop) & (edges[1:] > part.start))
        first = int(edges[groups[0]])
        for batch in file.iter_batches(_READ_ROWS, row_groups=groups.tolist(), columns=columns):
            low, high = max(part.start, first), min(part.stop, first + batch.num_rows)
            if low < high:
                table = pa.Table.from_batches([batch.slice(low - first, high - low)])
                keep = np.ones(table.num_rows, dtype=bool)
                for name, value in config.where.items():
                    keep &= np.array([cell == value for cell in table.column(name).to_pylist()])
                yield table.take(pa.array(np.flatnonzero(keep))), np.arange(low, high)[keep]
            first += batch.num_rows
            if first >= part.stop:
                break


def _column(table: pa.Table, name: str | None) -> list[Any] | None:
    return None if name is None else table.column(name).to_pylist()


def _joined(users: Sequence[NDArray[np.bytes_] | None]) -> NDArray[np.bytes_] | None:
    present = [part for part in users if part is not None]
    return np.concatenate(present) if present else None


def _label(value: Any, config: PrivateConfig) -> int:
    """Position in config.labels; integers match names if all names are numbers."""
    names = config.labels
    if config.label_column is None:
        return 0
    if isinstance(value, int) and not all(name.isdecimal() for name in names):
        if 0 <= value < len(names):
            return value
    elif value is not None and str(value) in names:
        return names.index(str(value))
    raise images.Unusable("label is not one of private.labels")


def _digest(user: Any) -> bytes:
    """128-bit digest (BLAKE2b, hexadecimal) of a user, so that users match across files."""
    if user is None:
        raise images.Unusable("user is null")
    return hashlib.blake2b(str(user).encode(), digest_size=16).hexdigest().encode()


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
    for batch in _batches(part, config, channels):
        made = _embed(embedder, batch.images, dim)
        finite = np.isfinite(made).all(axis=1)
        if not finite.all():
            row = int(batch.rows[np.argmin(finite)])
            raise RecordError(shard=part.shard, row=row, reason="embedding is not finite")
        features.append(made)
        labels.append(batch.labels)
        users.append(batch.users)
    embedded = EmbeddedRecords(
        features=np.concatenate(features), labels=np.concatenate(labels), users=_joined(users)
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
        _loaded = (kind, options, plugins.load("embedder", kind)(options))
    return _loaded[2]


def open_records(
    config: PrivateConfig,
    *,
    channels: int,
    embedder_kind: str,
    embedder_options: plugins.EmbedderOptions,
) -> PrivateRecords:
    """Read, validate and embed all records in Ray tasks; raises the first bad one's RecordError.

    Guarantee: nothing private reaches the driver: it gets references and, for a bad record, its
    shard, row and a fixed reason. Spends nothing. All records of a user are in one partition.
    """
    config = config.model_copy(update={"cache": _checked_cache(config)})
    slices = list_slices(config)
    num_pieces = min(len(slices), _MOST_PARTITIONS) if config.user_column else 1
    task = ray.remote(num_cpus=1, num_returns=num_pieces + 1)(_embed_task)
    results = [
        task.remote(part, config, channels, embedder_kind, embedder_options, num_pieces)
        for part in slices
    ]
    for part, (report, *_) in zip(slices, results, strict=True):
        bad = ray.get(report)
        if bad is not None:
            raise RecordError(shard=part.shard, row=bad[0], reason=bad[1])
    if not config.user_column:
        return PrivateRecords(partitions=[[pieces[0]] for _, *pieces in results])
    by_partition = zip(*(pieces for _, *pieces in results), strict=True)
    return PrivateRecords(partitions=[list(pieces) for pieces in by_partition])


def _embed_task(
    part: PrivateSlice,
    config: PrivateConfig,
    channels: int,
    embedder_kind: str,
    embedder_options: plugins.EmbedderOptions,
    num_pieces: int,
) -> tuple[Any, ...]:
    """(None or (row, reason), piece 0, ...): pieces split by user, or one piece."""
    try:
        embedded = embed_slice(part, config, channels, embedder_kind, embedder_options)
    except RecordError as error:
        return ((error.row, error.reason), *[None] * num_pieces)
    except Exception as error:
        where = f"private.data: shard {part.shard}"
        raise RuntimeError(f"{where}: reading failed: {type(error).__name__}") from None
    if embedded.users is None:
        return (None, embedded)
    home = np.array([int(user[:15], 16) % num_pieces for user in embedded.users], dtype=np.int64)
    return (
        None,
        *(
            EmbeddedRecords(
                features=embedded.features[home == piece],
                labels=embedded.labels[home == piece],
                users=embedded.users[home == piece],
            )
            for piece in range(num_pieces)
        ),
    )


def _cache_folder(config: PrivateConfig) -> Path | None:
    if config.cache == "none":
        return None
    if config.cache:
        return Path(config.cache)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "pe_ray" / "private"


def _checked_cache(config: PrivateConfig) -> str:
    """The cache folder, made with mode 0700, or `none`; refuses one that others can read.

    Resolved once, on the driver: workers may have another environment.
    """
    folder = _cache_folder(config)
    if folder is None:
        return "none"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        mode = folder.stat().st_mode
    except OSError as error:
        raise InputError(f"private.cache: {folder} can't be made ({error.strerror})") from None
    if mode & 0o077:
        raise InputError(f"private.cache: others can read {folder}; chmod 700 it")
    return str(folder.resolve())


def _cache_file(
    part: PrivateSlice,
    config: PrivateConfig,
    channels: int,
    embedder_kind: str,
    embedder_options: plugins.EmbedderOptions,
) -> Path | None:
    folder = _cache_folder(config)
    source = Path(part.source)
    if folder is None or not source.is_file():
        return None
    state = source.stat()
    key = {
        "format": _FORMAT,
        "slice": asdict(part) | {"source": str(source.resolve())},
        "file": [state.st_size, state.st_mtime_ns],
        "config": config.model_dump(mode="json", exclude={"data", "cache"}),
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
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    aside = file.with_name(f"{file.name}.{os.getpid()}")
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as sink:
        np.savez(sink, allow_pickle=False, **arrays)
    aside.replace(file)
