"""Where files are: a local path, or an object of a store that pyarrow reaches (s3://, gs://).

A local path is a plain `pathlib.Path`. A path in a store is an `ObjectPath`, which has the few
methods of it that runs use; functions here do what the two do differently. A file appears whole or
not at all: on a disk it is written aside, synced and renamed; a store shows an object once all of
it has arrived, and then to every reader.

Credentials come from where the store's own tools look for them (environment, profile, role of the
machine), never from a URI: the configuration, which a run publishes, holds it.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import io
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qsl

import pyarrow as pa

from pe_ray.errors import InputError

OPTIONS = {
    "s3": {"endpoint_override", "region", "scheme"},
    "gs": {"endpoint_override", "scheme"},
}
"""Store -> what the query of its URIs may set."""
PROBE = "probe"
_PUTS_AT_ONCE = 16  # small objects cost a round trip each and hardly any processor


@dataclass(frozen=True, slots=True)
class ObjectPath:
    """An object, or all objects below it, as in `s3://bucket/run?endpoint_override=host:9000`.

    key: bucket and name, taken literally; query: options of the store, kept by every path below.
    """

    scheme: str
    key: str
    query: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}" + (f"?{self.query}" if self.query else "")

    def __truediv__(self, below: str) -> ObjectPath:
        return replace(self, key=f"{self.key}/{below}")

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> ObjectPath:
        return replace(self, key=self.key.rpartition("/")[0])

    @property
    def parents(self) -> list[ObjectPath]:
        parts = self.key.split("/")
        depths = range(len(parts) - 1, 0, -1)
        return [replace(self, key="/".join(parts[:depth])) for depth in depths]

    @property
    def store(self) -> Any:
        """The pyarrow filesystem, connected to once per process."""
        return _store(self.scheme, self.key.partition("/")[0], self.query)

    def resolve(self) -> ObjectPath:
        return self

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a folder of a store is only a common prefix of its objects' names."""

    def exists(self) -> bool:
        """Tell whether there is an object, or one below it."""
        return bool(self.store.get_file_info(self.key).type.name != "NotFound")

    def is_file(self) -> bool:
        return bool(self.store.get_file_info(self.key).type.name == "File")

    def read_bytes(self) -> bytes:
        with self.store.open_input_file(self.key) as file:
            return bytes(file.read())

    def read_text(self, encoding: str) -> str:
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> None:
        """Put the object; no reader sees it before this has succeeded."""
        with self.store.open_output_stream(self.key) as file:
            file.write(content)

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self.store.delete_file(self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise


Location = Path | ObjectPath
GivenPath = str | os.PathLike[str] | ObjectPath
"""A path, or the URI of an object, as users give it."""


@lru_cache(maxsize=16)
def _store(scheme: str, bucket: str, query: str) -> Any:
    from pyarrow.fs import FileSystem

    # Small objects in one call instead of three.
    options = [query, "allow_delayed_open=true" if scheme == "s3" else ""]
    return FileSystem.from_uri(f"{scheme}://{bucket}?{'&'.join(filter(None, options))}")[0]


def parse_location(text: GivenPath) -> Location:
    """Parse `text` as a local path, or as the URI of one or of an object.

    Raises ValueError for a URI that can't be used; its text does not quote the URI, which may hold
    a secret. Touches neither disk nor network.
    """
    if isinstance(text, ObjectPath):
        return text
    path = os.fspath(text)
    scheme, separator, rest = path.partition("://")
    if not separator:
        return expand_home(path)
    if scheme == "file":
        return Path(rest)
    key, _, query = rest.partition("?")
    key = key.rstrip("/")
    bucket = key.partition("/")[0]
    if scheme not in OPTIONS:
        known = ", ".join(f"{name}://" for name in OPTIONS)
        raise ValueError(f"{scheme}:// is no store that is known here; give a folder or {known}")
    options = {name for name, _ in parse_qsl(query, keep_blank_values=True)}
    if "@" in bucket or not options <= OPTIONS[scheme] or "@" in query:
        raise ValueError(
            f"a URI may set only {', '.join(sorted(OPTIONS[scheme]))}; credentials in it would be "
            "published with the run: give them in the environment or by the machine's role"
        )
    if not re.fullmatch(r"[\w.-]+(/[^/]+)*", key) or {".", ".."} & set(key.split("/")):
        raise ValueError(f"a URI is written {scheme}://BUCKET/FOLDER, no name empty or only dots")
    return ObjectPath(scheme, key, query)


def expand_home(text: str | Path) -> Path:
    """Expand a leading ~ of a local path, as a shell does."""
    return Path(os.path.expanduser(text))


def find_home() -> Path:
    """Return the home folder; InputError where there is none."""
    try:
        return Path.home()
    except RuntimeError:
        raise InputError(
            "HOME: is not set, and this user has no home folder; set it to a folder that you can "
            "write to"
        ) from None


def find_cache() -> Path:
    """Return the folder for caches: XDG_CACHE_HOME, or else .cache in the home folder."""
    given = os.environ.get("XDG_CACHE_HOME")
    return Path(given) if given else find_home() / ".cache"


def resolve_place(text: GivenPath, field: str) -> Location:
    """Parse and resolve a place that the user gave; InputError names the field."""
    try:
        return parse_location(text).resolve()
    except ValueError as error:
        raise InputError(f"{field}: {error}") from None
    except TypeError:
        raise InputError(f"{field}: is a {type(text).__name__}; give a path") from None


@contextmanager
def io_errors_as_input_errors(field: str, path: Location) -> Iterator[None]:
    """Re-raise I/O errors on `path`, on a disk or in a store, as InputError naming `field`."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if isinstance(path, Path):
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise InputError(
                f"{field}: {path} can't be used ({reason}); give another path, or see to its "
                "permissions"
            ) from None
        reason = " ".join(str(error).split())
        raise InputError(
            f"{field}: {path} can't be used ({reason}); see to the bucket, the network and the "
            "credentials in the environment"
        ) from None


def require_writable(path: Location, field: str) -> None:
    """Raise InputError unless files can be put into the folder `path`, which is made."""
    with io_errors_as_input_errors(field, path), full_disk_as_input_error(path):
        path.mkdir(parents=True, exist_ok=True)
        probe = path / _aside(PROBE)
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)


def require_creatable(path: Location, field: str) -> None:
    """Raise InputError unless the folder `path` can be made, or written to; make nothing.

    In a store, only an object that is put and deleted tells.
    """
    if isinstance(path, ObjectPath):
        require_writable(path, field)
        return
    with io_errors_as_input_errors(field, path):
        folder = find_existing(path)
        if not folder.is_dir():
            raise InputError(f"{field}: {folder} is a file; give a folder")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(
                f"{field}: {folder} can't be written; give another folder, or see to its "
                "permissions"
            )


def find_existing(path: Path) -> Path:
    """Return `path`, or the nearest folder above it that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


@contextmanager
def full_disk_as_input_error(folder: Location) -> Iterator[None]:
    """Re-raise a full disk (or quota) as InputError; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"{folder}: no space left on its disk; free some, then the same command continues"
        ) from None


def atomic_write(path: Location, content: bytes, mode: int = 0o644) -> None:
    """Create or replace `path` so that no reader, and no crash, ever sees half of it.

    mode: of a file on a disk, whatever the umask of a worker's machine allows.
    """
    if isinstance(path, ObjectPath):
        path.write_bytes(content)
        return
    aside = path.with_name(_aside(path.name))
    with full_disk_as_input_error(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(aside, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _aside(name: str) -> str:
    return f".{name}.{uuid.uuid4().hex}"


def name_left_aside(name: str) -> str | None:
    """Return the name that a file of a killed `atomic_write` was to get.

    PROBE for a file of a killed `require_writable`; None for any other file.
    """
    found = re.fullmatch(r"\.(.+)\.[0-9a-f]{32}", name)
    return found[1] if found else None


def write_many(folder: Location, files: Sequence[tuple[str, bytes]]) -> None:
    """Write (name, content) each, on a disk neither synced nor atomic.

    Call `sync` before a marker says that they are all there.
    """
    if isinstance(folder, Path):
        with full_disk_as_input_error(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in files:
                (folder / name).write_bytes(content)
        return
    with ThreadPoolExecutor(_PUTS_AT_ONCE) as pool:
        list(pool.map(lambda file: (folder / file[0]).write_bytes(file[1]), files))


def delete_many(files: Sequence[Location]) -> None:
    """Delete files, of which some may be missing."""
    with ThreadPoolExecutor(_PUTS_AT_ONCE) as pool:
        list(pool.map(lambda file: file.unlink(missing_ok=True), files))


def sync(folder: Location) -> None:
    """Make all that was written below `folder` outlive a power cut.

    Syncs the whole disk: syncing small files one by one takes many times as long.
    """
    if isinstance(folder, ObjectPath):
        return
    # Of Linux; unlike os.sync it tells of errors and doesn't wait for other disks.
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:
        os.sync()
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with full_disk_as_input_error(folder):
            if syncfs(handle):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(handle)


def list_names(folder: Location) -> set[str]:
    """Return the names of files and folders in `folder`, hidden ones too; empty if it is none."""
    if isinstance(folder, ObjectPath):
        return {info.base_name for info in _listing(folder)}
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()


def list_sizes(folder: Location) -> dict[str, int]:
    """Return the bytes of each file in `folder`, from one listing; empty if it is missing."""
    if isinstance(folder, ObjectPath):
        return {info.base_name: info.size for info in _listing(folder) if info.is_file}
    found: dict[str, int] = {}
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # renamed meanwhile
                if entry.is_file():
                    found[entry.name] = entry.stat().st_size
    return found


def _listing(folder: ObjectPath) -> list[Any]:
    from pyarrow.fs import FileSelector

    selector = FileSelector(folder.key, allow_not_found=True)
    found: list[Any] = folder.store.get_file_info(selector)
    return found


def delete_tree(folder: Location) -> None:
    """Remove `folder` and all below it as far as that is possible; it may be missing."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with suppress(OSError):
        folder.store.delete_dir(folder.key)


def file_version(file: Location) -> tuple[Any, ...]:
    """Return what changes when the file does: size, time and inode, or what the store says of it.

    For S3 that is size, time and ETag.
    """
    if isinstance(file, Path):
        state = file.stat()
        return state.st_size, state.st_mtime_ns, state.st_ino
    with file.store.open_input_stream(file.key) as stream:
        tags = stream.metadata()
    return tuple(sorted(f"{name}: {value.decode()}" for name, value in tags.items()))


def open_fully(file: Location) -> Path | BinaryIO:
    """Open a file for readers that read all of it: a local path, or an in-memory buffer."""
    return file if isinstance(file, Path) else io.BytesIO(file.read_bytes())


def fetch_copy(file: ObjectPath) -> Path:
    """Copy an object to this disk, read-only, for as long as this process lives."""
    folder = Path(tempfile.mkdtemp(prefix="pe-ray-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    copy = folder / file.name
    copy.write_bytes(file.read_bytes())
    copy.chmod(0o400)
    return copy


def open_seekable(file: Location) -> Any:
    """Open a file for readers that read pieces of it: a local path, or the open object."""
    return file if isinstance(file, Path) else file.store.open_input_file(file.key)
