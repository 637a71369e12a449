"""The run directory: its paths, the configuration it belongs to, and the lock of its one writer.

Everything in it is safe to publish: configuration, releases and their post-processing. The ledger
of a run in a store is on the driver's disk (`output.ledger`). A copy of it lies in the store, and
holds a release before anything that was made from that release is written.
"""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pe_ray.config import Config
from pe_ray.config.yaml_tree import differences
from pe_ray.errors import InputError
from pe_ray.files.storage import (
    Location,
    ObjectPath,
    at_home,
    atomic_write,
    fetched,
    given,
    names,
    reported,
    require_writable,
)
from pe_ray.values import LabelLayout, NoisyHistogram

LEDGER = "ledger.sqlite"
FEATURES = "features"
"""Folder of the learnt embedder; its files' names stand for all that they are made from."""


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Paths of a run (DESIGN: README, "The run directory"). ledger: always on a local disk."""

    path: Location
    ledger: Path

    @property
    def ledger_copy(self) -> ObjectPath | None:
        """Where a run in a store keeps a copy of its ledger."""
        return self.path / LEDGER if isinstance(self.path, ObjectPath) else None

    @property
    def has_ledger(self) -> bool:
        """Whether its ledger is there; an empty file is none, though SQLite would begin one."""
        return self.ledger.exists() and self.ledger.stat().st_size > 0

    @property
    def is_bare(self) -> bool:
        """Whether nothing was made in it yet, so that a mistake in the configuration may be mended:
        it holds a configuration and a ledger at most.
        """
        return not made_in(self.path) - {"config.yaml", LEDGER, FEATURES}

    @property
    def config(self) -> Location:
        return self.path / "config.yaml"

    @property
    def synthetic(self) -> Location:
        return self.path / "synthetic"

    @property
    def report(self) -> Location:
        return self.path / "report.html"

    @property
    def teacher(self) -> Location:
        """Feature network and weights, both from released values."""
        return self.path / "teacher"

    def population(self, iteration: int) -> Location:
        return self.path / "populations" / f"iter={iteration:04d}"

    def embedding(self, iteration: int) -> Location:
        return self.path / "embeddings" / f"iter={iteration:04d}"

    def lookahead(self, iteration: int) -> Location:
        return self.path / "lookahead" / f"iter={iteration:04d}"

    def histogram(self, iteration: int) -> Location:
        return self.path / "histograms" / f"iter={iteration:04d}.parquet"

    def smoothed(self, iteration: int) -> Location:
        """Votes that `selection.smooth` averaged."""
        return self.path / "smoothed" / f"iter={iteration:04d}.parquet"

    def scores(self, iteration: int) -> Location:
        return self.path / "scores" / f"iter={iteration:04d}.json"

    def embedding_time(self, iteration: int) -> Location:
        return self.path / "stages" / f"embedding-{iteration:04d}.json"

    def write_histogram(self, histogram: NoisyHistogram, layout: LabelLayout) -> None:
        """Export a released histogram for readers; the ledger keeps the original."""
        file = self.histogram(histogram.release.iteration)
        if file.exists():
            return
        count = layout.num_samples
        table = pa.table(
            {
                "id": pa.array(np.arange(count), type=pa.int64()),
                "label": pa.array(layout.labels(0, count), type=pa.int32()),
                "noisy_votes": pa.array(histogram.noisy_votes, type=pa.int64()),
            }
        )
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        atomic_write(file, sink.getvalue())


def on_disk(path: str | Path) -> RunDirectory:
    """The run directory in a local folder, whose ledger is in it."""
    folder = Path(path).resolve()
    return RunDirectory(folder, folder / LEDGER)


@contextmanager
def claim_directory(config: Config) -> Iterator[RunDirectory]:
    """The run directory of `config`, created or continued, locked against a second process."""
    run = RunDirectory(given(config.output.path, "output.path"), ledger_folder(config) / LEDGER)
    with locked(run):
        with reported("output.path", run.path):
            _bind(run, config)
        require_writable(run.path, "output.path")
        yield run


@contextmanager
def locked(run: RunDirectory, *, wait: bool = False) -> Iterator[None]:
    """Hold the run directory, made if there is none, against a second process.

    wait: for the other one to be done, instead of InputError.
    """
    with others_cant_write(), _lock_of(run) as lock:
        if wait:
            fcntl.flock(lock, fcntl.LOCK_EX)
        elif not _locked(lock, fcntl.LOCK_EX, tries=10):
            raise InputError(
                f"output.path: {run.path} is in use by another pe-ray; wait for it or stop it"
            )
        yield


@contextmanager
def others_cant_write() -> Iterator[None]:
    """A umask under which nobody else can change a run: a ledger that others can edit is none."""
    own = os.umask(0o022)
    os.umask(own | 0o022)
    try:
        yield
    finally:
        os.umask(own)


@contextmanager
def _lock_of(run: RunDirectory) -> Iterator[int]:
    """The open lock file beside the run's ledger, both made where they are missing."""
    folder = run.ledger.parent
    field = "output.path" if folder == run.path else "output.ledger"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        anyone = folder.stat().st_mode & stat.S_IWOTH
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(f"{field}: {folder} can't be written ({error.strerror})") from None
    try:
        if anyone:
            raise InputError(f"{field}: anyone can write to {folder}; chmod o-w it")
        yield lock
    finally:
        os.close(lock)


def in_use(run: RunDirectory) -> bool | None:
    """Whether a process has claimed the run directory at this moment; None where it lies in a
    store, as the lock is on the driver's disk then.
    """
    if not isinstance(run.path, Path):
        return None
    try:
        lock = os.open(run.path / ".lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _locked(lock, fcntl.LOCK_SH)
    finally:
        os.close(lock)


def _locked(lock: int, kind: int, tries: int = 1) -> bool:
    """Take the lock; `tries` (20 a second) outlast a look at it by `in_use`."""
    for again in reversed(range(tries)):
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if again:
                time.sleep(0.05)
        else:
            return True
    return False


def _bind(run: RunDirectory, config: Config) -> None:
    """Tie the directory to the configuration, or refuse a configuration it isn't tied to."""
    if run.config.exists():
        try:
            stored = yaml.safe_load(run.config.read_text("utf-8"))
            changed = differences(config.bound(stored), config.bound(config.tree()))
        except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
            raise InputError(f"{run.config}: is damaged; restore it from a copy") from None
        if changed and not run.is_bare:  # else the ledger refuses, if it was charged
            raise InputError(
                f"{', '.join(changed)}: differs from the run in {run.path}; restore it, or give "
                "another output.path (a new run spends anew)"
            )
        if not run.has_ledger:
            if isinstance(run.path, ObjectPath):
                raise InputError(
                    f"output.ledger: {run.ledger.parent} has no ledger.sqlite, but {run.path} "
                    "holds a run; give the folder with that run's ledger, or see docs/storage.md "
                    "if its disk is lost"
                )
            raise InputError(
                f"output.path: {run.path} has a configuration but no ledger.sqlite; restore the "
                "ledger, since without it what was spent is unknown, or give another output.path"
            )
    elif not run.has_ledger and made_in(run.path) - {LEDGER, FEATURES}:
        raise InputError(f"output.path: {run.path} holds other files; give an empty or new folder")


def made_in(folder: Location) -> set[str]:
    """Names in `folder` that are files or hold some; without dotted ones."""

    def holds_files(name: str) -> bool:
        below = folder / name
        return not isinstance(below, Path) or any(
            path.is_file() for path in (below, *below.rglob("*"))
        )

    return {name for name in names(folder) if name[0] != "." and holds_files(name)}


def ledger_folder(config: Config) -> Path:
    """Where the ledger and the lock of a run are: a local folder."""
    path = given(config.output.path, "output.path")
    if isinstance(path, Path):
        return path
    if config.output.ledger is None:
        raise InputError(
            "output.ledger: needed for an output.path in a store; give a local folder, on a disk "
            "that outlives the machine, for ledger.sqlite"
        )
    return at_home(config.output.ledger).resolve()


def write_config(run: RunDirectory, config: Config) -> None:
    """Record the configuration, once the ledger exists; again where what isn't bound changed."""
    header = f"# fingerprint: {config.fingerprint}\n"
    text = yaml.safe_dump(config.tree(), sort_keys=False, allow_unicode=True)
    content = (header + text).encode()
    if not run.config.exists() or run.config.read_bytes() != content:
        atomic_write(run.config, content)


def require_disk(directory: Location, num_bytes: int, field: str) -> None:
    """Raise InputError unless `directory` has room for `num_bytes` of disk, counting those that its
    files take; a store has.
    """
    if not isinstance(directory, Path):
        return
    held = 512 * sum(file.lstat().st_blocks for file in directory.rglob("*"))
    free = shutil.disk_usage(directory).free
    if held + free < num_bytes:
        raise InputError(
            f"{field}: {directory} needs up to {num_bytes / 2**30:.3g} GiB and has "
            f"{free / 2**30:.3g} GiB free; free some, or give a folder on a larger disk"
        )


def find_ledger(path: str | Location) -> Path:
    """The ledger of an existing run, or of a search that has made no final run yet."""
    place = given(path, "run")
    with reported("run", place):
        if LEDGER not in names(place):
            raise InputError(
                f"run {path}: not a run directory (no ledger.sqlite); give the folder that was its "
                "output.path"
            )
        ledger = place / LEDGER
        return ledger if isinstance(ledger, Path) else fetched(ledger)
