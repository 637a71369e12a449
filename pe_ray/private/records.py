"""Private records: read, validate, shard, embed once.

The driver holds references and, of a bad record, its shard and row; never an image, a label, a
user, or a count.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pe_ray import plugins
from pe_ray.config import PrivateConfig
from pe_ray.errors import InputError, RecordError

DIGITS = "sklearn:digits"
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
EMBED_BATCH = 1024
_FORMAT = 1


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
        metadata = pq.read_metadata(file)
        columns = pq.read_schema(file).names
    except (OSError, pa.ArrowException):
        raise InputError(f"private.data: {file} is not a readable parquet file") from None
    wanted = {
        "image_column": config.image_column,
        "label_column": config.label_column,
        "user_column": config.user_column,
        **{f"where.{name}": name for name in config.where},
    }
    for field, name in wanted.items():
        if name is not None and name not in columns:
            raise InputError(
                f"private.{field}: {name!r} is not in the data; columns are {', '.join(columns)}"
            )
    return int(metadata.num_rows)


def _image_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)


def read_slice(part: PrivateSlice, config: PrivateConfig, channels: int) -> RawRecords:
    """Decode and validate the records of one slice; images get `channels` (1 luma, 3 RGB).

    Guarantee: stays inside zone 1; RecordError names shard and row, never content.
    """
    try:
        return _read(part, config, channels)
    except _BadRecordError as bad:
        raise RecordError(shard=part.shard, row=bad.row, reason=bad.reason) from None


def _read(part: PrivateSlice, config: PrivateConfig, channels: int) -> RawRecords:
    if part.source == DIGITS:
        from sklearn.datasets import load_digits

        digits = load_digits()
        span = slice(part.start, part.stop)
        pixels = np.round(digits.images[span] * (255.0 / 16.0)).astype(np.uint8)
        values, raw, users = pa.array(digits.target[span]), list(pixels), None
        rows = np.arange(part.start, part.stop, dtype=np.int64)
    elif part.source.lower().endswith(".parquet") or Path(part.source).is_file():
        table, rows = _parquet_slice(part, config)
        raw = _cells(table.column(config.image_column))
        values = table.column(config.label_column) if config.label_column else None
        users = _users(table, rows, config)
    else:
        folder = Path(part.source)
        raw = list(_image_files(folder)[part.start : part.stop])
        rows = np.arange(part.start, part.stop, dtype=np.int64)
        values, users = pa.array([folder.name] * len(raw)), None
    labels = _labels(values, rows, config)
    images = [_decode(cell, int(row), channels) for cell, row in zip(raw, rows, strict=True)]
    return RawRecords(images=images, labels=labels, users=users, rows=rows)


def _parquet_slice(part: PrivateSlice, config: PrivateConfig) -> tuple[pa.Table, NDArray[np.int64]]:
    """The slice's rows that pass `where`, and their row numbers in the file."""
    names = {config.image_column, config.label_column, config.user_column, *config.where}
    columns = sorted(name for name in names if name is not None)
    tables, rows, first = [], [], 0
    with pq.ParquetFile(part.source) as file:
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            low, high = max(part.start, first), min(part.stop, first + batch.num_rows)
            if low < high:
                table = pa.Table.from_batches([batch.slice(low - first, high - low)])
                keep = np.ones(table.num_rows, dtype=bool)
                for name, value in config.where.items():
                    keep &= np.array([cell == value for cell in table.column(name).to_pylist()])
                tables.append(table.filter(pa.array(keep)))
                rows.append(np.arange(low, high, dtype=np.int64)[keep])
            first += batch.num_rows
            if first >= part.stop:
                break
    return pa.concat_tables(tables), np.concatenate(rows)


def _cells(column: pa.ChunkedArray) -> list[Any]:
    """One encoded image (bytes), path or array per row."""
    kind = column.type
    if isinstance(kind, pa.FixedShapeTensorType):
        chunks = [chunk.to_numpy_ndarray() for chunk in column.chunks if len(chunk)]
        return [image for chunk in chunks for image in chunk]
    if pa.types.is_struct(kind):
        cells = column.to_pylist()
        return [
            cell if cell is None else cell.get("bytes") or Path(cell.get("path") or "")
            for cell in cells
        ]
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind):
        leaf = kind
        while pa.types.is_fixed_size_list(leaf) or pa.types.is_list(leaf):
            leaf = leaf.value_type
        dtype = leaf.to_pandas_dtype()
        return [cell if cell is None else _nested(cell, dtype) for cell in column.to_pylist()]
    return list(column.to_pylist())


def _nested(cell: Any, dtype: Any) -> Any:
    try:
        return np.array(cell, dtype=dtype)
    except (ValueError, TypeError):
        return None


def _labels(values: Any, rows: NDArray[np.int64], config: PrivateConfig) -> NDArray[np.int32]:
    """Positions in config.labels; integers match names if all names are numbers."""
    if values is None:
        return np.zeros(len(rows), dtype=np.int32)
    numbered = all(name.isdecimal() for name in config.labels)
    by_name = not pa.types.is_integer(values.type) or numbered
    names = {name: position for position, name in enumerate(config.labels)}
    labels = np.empty(len(rows), dtype=np.int32)
    for position, value in enumerate(values.to_pylist()):
        if by_name:
            label = names.get(str(value))
        else:
            label = value if value is not None and 0 <= value < len(names) else None
        if value is None or label is None:
            raise _BadRecordError(int(rows[position]), "label is not one of private.labels")
        labels[position] = label
    return labels


def _users(
    table: pa.Table, rows: NDArray[np.int64], config: PrivateConfig
) -> NDArray[np.bytes_] | None:
    """128-bit digests of the user column (BLAKE2b), so that users match across files."""
    if config.user_column is None:
        return None
    users = table.column(config.user_column).to_pylist()
    for position, user in enumerate(users):
        if user is None:
            raise _BadRecordError(int(rows[position]), "user is null")
    digests = [hashlib.blake2b(str(user).encode(), digest_size=16).hexdigest() for user in users]
    return np.array(digests, dtype="S32")


def _decode(cell: Any, row: int, channels: int) -> NDArray[np.uint8]:
    """uint8 [h, w, channels] of one image cell."""
    try:
        if isinstance(cell, np.ndarray):
            picture = _from_array(cell, row)
        elif isinstance(cell, bytes | Path):
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                source = io.BytesIO(cell) if isinstance(cell, bytes) else cell
                with Image.open(source) as opened:
                    picture = ImageOps.exif_transpose(opened)
                    picture.load()
        else:
            raise _BadRecordError(row, "image is missing")
        picture = picture.convert("RGB" if channels == 3 else "L")
        image = np.asarray(picture, dtype=np.uint8)
        return image.reshape(image.shape[0], image.shape[1], channels)
    except _BadRecordError:
        raise
    except Exception:
        raise _BadRecordError(row, "image can't be decoded") from None


def _from_array(cell: NDArray[Any], row: int) -> Image.Image:
    if cell.dtype.kind == "f":
        if not np.isfinite(cell).all() or cell.min() < 0 or cell.max() > 1:
            raise _BadRecordError(row, "image has values outside [0, 1] or not finite")
        cell = np.round(cell * 255.0)
    elif cell.dtype != np.uint8 and (cell.min() < 0 or cell.max() > 255):
        raise _BadRecordError(row, "image has values outside 0..255")
    pixels = cell.astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        raise _BadRecordError(row, "image is not [h, w] or [h, w, channels]")
    return Image.fromarray(pixels)


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
    raw = read_slice(part, config, channels)
    embedder: plugins.Embedder = plugins.load("embedder", embedder_kind)(embedder_options)
    features: list[NDArray[np.float32] | None] = [None] * len(raw.images)
    shapes: dict[tuple[int, ...], list[int]] = {}
    for position, image in enumerate(raw.images):
        shapes.setdefault(image.shape, []).append(position)
    for positions in shapes.values():
        for start in range(0, len(positions), EMBED_BATCH):
            chosen = positions[start : start + EMBED_BATCH]
            made = embedder.embed(np.stack([raw.images[position] for position in chosen]))
            for position, feature in zip(chosen, made, strict=True):
                if not np.isfinite(feature).all():
                    reason = "embedding is not finite"
                    raise RecordError(shard=part.shard, row=int(raw.rows[position]), reason=reason)
                features[position] = feature
    dim = embedder.embed(np.zeros((1, 8, 8, channels), np.uint8)).shape[1]
    stacked = np.array(features, dtype=np.float32).reshape(len(features), dim)
    embedded = EmbeddedRecords(features=stacked, labels=raw.labels, users=raw.users)
    if cached is not None:
        _store(cached, embedded)
    return embedded


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
    num_pieces = len(slices) if config.user_column else 1
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
        np.savez(sink, **arrays)
    aside.replace(file)
