"""The run directory: its paths, the configuration it belongs to, and the lock of its one writer.

Everything in it is safe to publish: configuration, releases and their post-processing. The ledger
of a run in a store is on the driver's disk (`output.ledger`). A copy of it lies in the store, and
holds a release before anything that was made from that release is written.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pe_ray.config import Config
from pe_ray.config.places import lies_in
from pe_ray.config.yaml_tree import differences, dump_tree
from pe_ray.errors import InputError
from pe_ray.files.array_files import encode_arrays
from pe_ray.files.digests import write_with_digest
from pe_ray.files.locks import find_holder, is_locked, locked
from pe_ray.files.storage import (
    PROBE,
    GivenPath,
    Location,
    ObjectPath,
    atomic_write,
    fetch_copy,
    find_existing,
    io_errors_as_input_errors,
    list_names,
    name_left_aside,
    require_creatable,
    require_writable,
    resolve_place,
)
from pe_ray.runtime.named_files import FEATURES, FILES, bind_files, require_same_files
from pe_ray.values import LabelLayout, NoisyHistogram, NoisySums

LEDGER = "ledger.sqlite"
_LOCK = ".lock"
_LOCK_SECONDS = 0.5  # outlasts a look by `in_use`
WEIGHTS_FILE = "weights.npz"
"""Of the teacher, in its folder."""


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Paths of a run (docs/operations.md lists them). ledger: always on a local disk."""

    path: Location
    ledger: Path

    @property
    def ledger_copy(self) -> ObjectPath | None:
        """Where a run in a store keeps a copy of its ledger."""
        return self.path / LEDGER if isinstance(self.path, ObjectPath) else None

    @property
    def ledger_field(self) -> str:
        """The key of the configuration that says where the ledger is."""
        return "output.path" if self.ledger.parent == self.path else "output.ledger"

    @property
    def has_ledger(self) -> bool:
        """Whether its ledger exists. An empty file is none, though SQLite would start one."""
        return self.ledger.exists() and self.ledger.stat().st_size > 0

    @property
    def is_bare(self) -> bool:
        """Whether nothing was made in it yet: it holds a configuration and a ledger at most.

        Then a mistake in the configuration may be corrected in place.
        """
        return not made_in(self.path) - {"config.yaml", LEDGER, FILES, FEATURES}

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

    @property
    def final_ids(self) -> Location:
        """Which samples of S_T the teacher keeps."""
        return self.teacher / "kept.npz"

    @property
    def generator_sums(self) -> Location:
        """Released sums that a generator draws from."""
        return self.path / "generator" / "sums.npz"

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

    @property
    def scores_folder(self) -> Location:
        return self.path / "scores"

    @property
    def score_source(self) -> Location:
        """What the scores were made with: `metrics.public` and digests of its files."""
        return self.scores_folder / "source.json"

    @property
    def teacher_scores(self) -> Location:
        return self.scores_folder / "teacher.json"

    def scores(self, iteration: int) -> Location:
        return self.scores_folder / f"iter={iteration:04d}.json"

    def embedding_time(self, iteration: int) -> Location:
        return self.path / "stages" / f"embedding-{iteration:04d}.json"

    def write_histogram(self, histogram: NoisyHistogram, layout: LabelLayout) -> None:
        """Write a released histogram for readers; the ledger keeps the original.

        A file that holds anything else is replaced.
        """
        file = self.histogram(histogram.release.iteration)
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
        _write_changed(file, sink.getvalue())

    def write_sums(self, sums: NoisySums) -> None:
        """Write released sums for the generator's workers; the ledger keeps the original.

        A file that holds anything else is replaced.
        """
        arrays = {"sums": sums.sums, "sigma": np.array(sums.release.sigma)}
        _write_changed(self.generator_sums, encode_arrays(arrays))


def _write_changed(file: Location, content: bytes) -> None:
    if not file.exists() or file.read_bytes() != content:
        write_with_digest(file, content)


def on_disk(path: str | Path) -> RunDirectory:
    """Return the run directory in a local folder, with its ledger inside."""
    folder = Path(path).resolve()
    return RunDirectory(folder, folder / LEDGER)


@contextmanager
def claim_directory(config: Config) -> Iterator[RunDirectory]:
    """Create or continue the run directory of `config`; lock it against a second process."""
    run = _find_directory(config)
    with lock_directory(run):
        bare = _bind(run, config)
        require_writable(run.path, "output.path")
        bind_files(run.path, config, config.bound(), bare=bare)
        yield run


def check_directory(config: Config) -> RunDirectory:
    """Raise InputError where `claim_directory` would; create nothing."""
    run = _find_directory(config)
    require_free(run)
    if not _bind(run, config):
        require_same_files(run.path, config, config.bound())
    return run


def _find_directory(config: Config) -> RunDirectory:
    place = resolve_place(config.output.path, "output.path")
    return RunDirectory(place, ledger_folder(config) / LEDGER)


def _bind(run: RunDirectory, config: Config) -> bool:
    """Refuse a run of another configuration; return whether nothing was made in it yet."""
    with io_errors_as_input_errors("output.path", run.path):
        bare = run.is_bare
        bind_directory(run, run.config, _read_bound, config.bound(), bare=bare)
    return bare


def require_free(run: RunDirectory) -> None:
    """Raise InputError where `lock_directory` would or nothing can be written; create nothing."""
    folder, field = run.ledger.parent, run.ledger_field
    with io_errors_as_input_errors(field, folder):
        if folder.exists():
            _refuse_shared(folder, field)
        if is_locked(folder / _LOCK):
            raise _in_use(run)
    require_creatable(folder, field)
    require_creatable(run.path, "output.path")


@contextmanager
def lock_directory(run: RunDirectory, *, wait: bool = False) -> Iterator[None]:
    """Hold the run directory against a second process; create it if there is none.

    wait: for the other one to end, instead of InputError.
    """
    folder, field = run.ledger.parent, run.ledger_field
    with others_cant_write(), ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _refuse_shared(folder, field)
            held.enter_context(locked(folder / _LOCK, None if wait else _LOCK_SECONDS))
        except TimeoutError:
            raise _in_use(run) from None
        except OSError as error:
            raise InputError(f"{field}: {folder} can't be written ({error.strerror})") from None
        yield


def _refuse_shared(folder: Path, field: str) -> None:
    if folder.stat().st_mode & stat.S_IWOTH:
        raise InputError(f"{field}: anyone can write to {folder}; chmod o-w it")


def _in_use(run: RunDirectory) -> InputError:
    holder = find_holder(run.ledger.parent / _LOCK) or "on another machine"
    return InputError(
        f"output.path: {run.path} is in use by another pe-ray, {holder}; wait for it or stop it"
    )


@contextmanager
def others_cant_write() -> Iterator[None]:
    """Set a umask under which nobody else can change a run or its ledger."""
    own = os.umask(0o022)
    os.umask(own | 0o022)
    try:
        yield
    finally:
        os.umask(own)


def in_use(run: RunDirectory) -> bool | None:
    """Tell whether a process holds the run directory now.

    None where it lies in a store, as the lock is on the driver's disk then.
    """
    return is_locked(run.path / _LOCK) if isinstance(run.path, Path) else None


def _read_bound(file: Location) -> dict[str, Any]:
    return Config.from_run(file).bound()


def bind_directory(
    run: RunDirectory,
    file: Location,
    read_bound: Callable[[Location], dict[str, Any]],
    bound: dict[str, Any],
    *,
    bare: bool,
) -> None:
    """Bind the directory to the values `bound`; refuse values other than those in `file`.

    read_bound: reads such values from the file. bare: whether nothing was made yet.
    """
    if file.exists():
        try:
            stored = read_bound(file)
        except InputError as error:
            raise InputError(f"{file}: can't be read ({error}); restore it from a copy") from None
        changed = differences(stored, bound)
        if changed and not bare:  # else the ledger refuses, if it was charged
            raise InputError(
                f"{', '.join(changed)}: differs from what {run.path} was made for; restore it, or "
                "give another output.path (a new run spends its own budget)"
            )
        if not run.has_ledger:
            raise InputError(
                f"{run.ledger_field}: {run.ledger.parent} has no ledger.sqlite, but {run.path} "
                "holds a run; restore its ledger (docs/storage.md), since without it what was "
                "spent is unknown, or give another output.path"
            )
    elif not run.has_ledger and made_in(run.path) - {LEDGER, FILES, FEATURES}:
        raise InputError(f"output.path: {run.path} holds other files; give an empty or new folder")


def made_in(folder: Location) -> set[str]:
    """Return names in `folder` that are files or contain some, without hidden ones."""

    names = {name for name in list_names(folder) if not name.startswith(".")}
    if not isinstance(folder, Path):
        return names
    files = (path for name in names for path in (folder / name, *(folder / name).rglob("*")))
    return {path.relative_to(folder).parts[0] for path in files if path.is_file()}


def ledger_folder(config: Config) -> Path:
    """Return the local folder of a run's ledger and lock."""
    path = resolve_place(config.output.path, "output.path")
    if isinstance(path, Path):
        return path
    if config.output.ledger is None:
        raise InputError(
            "output.ledger: needed for an output.path in a store; give a local folder, on a disk "
            "that outlives the machine, for ledger.sqlite"
        )
    return Path(config.output.ledger).resolve()


def write_config(run: RunDirectory, config: Config) -> None:
    """Write config.yaml; call it once the ledger exists."""
    header = f"# fingerprint: {config.fingerprint}\n"
    content = (header + dump_tree(config.tree())).encode()
    if not run.config.exists() or run.config.read_bytes() != content:
        atomic_write(run.config, content)


def require_disk(directory: Location, num_bytes: int, field: str) -> None:
    """Raise InputError unless `num_bytes` fit on the disk of `directory`, its own files included.

    A store always has room.
    """
    if not isinstance(directory, Path):
        return
    held = 512 * sum(file.lstat().st_blocks for file in directory.rglob("*"))
    free = shutil.disk_usage(find_existing(directory)).free
    if held + free < num_bytes:
        raise InputError(
            f"{field}: {directory} needs about {num_bytes / 2**30:.3g} GiB and has "
            f"{free / 2**30:.3g} GiB free; free some, or give a folder on a larger disk"
        )


def check_output(
    directory: Location, config: Config, note: str, request: dict[str, Any]
) -> dict[str, Any]:
    """Return what the folder of `--output` is tied to: what its note holds, or the request if new.

    config: of the run that it is made from. note: the hidden file for the request, which the caller
    writes, with what it adds. Refuses a folder that is unusable, or holds something else. What a
    killed start left behind is removed.
    """
    if lies_in(str(directory), config.private.data):
        raise InputError(
            f"--output: {directory} lies in private.data, so a later run would read it as records; "
            "give a folder elsewhere"
        )
    require_writable(directory, "--output")
    held, file = list_names(directory), directory / note
    left = {name for name in held if name_left_aside(name) in (note, PROBE)}
    stored: dict[str, Any] = json.loads(file.read_bytes()) if note in held else request
    if note in held:
        if {name: stored.get(name) for name in request} != request:
            raise InputError(f"--output: {directory} is of something else; give a new folder")
    elif held - left:
        raise InputError(f"--output: {directory} is not empty; give a new folder")
    for name in left:
        (directory / name).unlink(missing_ok=True)
    return stored


def find_ledger(path: GivenPath) -> Path:
    """Return the ledger of an existing run, or of a search that has no final run yet."""
    place = resolve_place(path, "run")
    with io_errors_as_input_errors("run", place):
        if LEDGER not in list_names(place):
            raise InputError(
                f"run {path}: not a run directory (no ledger.sqlite); give the folder that was its "
                "output.path"
            )
        ledger = place / LEDGER
        return ledger if isinstance(ledger, Path) else fetch_copy(ledger)
