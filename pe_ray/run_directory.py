"""The run directory: where each thing is, whose it is, and that one process at a time writes it.

Everything in it is safe to publish: configuration, releases and their post-processing.
"""

from __future__ import annotations

import fcntl
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pe_ray.config import Config, differences
from pe_ray.errors import InputError
from pe_ray.synthetic.writer import atomic_write
from pe_ray.values import LabelLayout, NoisyHistogram


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Paths of a run (DESIGN: README, "The run directory")."""

    path: Path

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.sqlite"

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def synthetic(self) -> Path:
        return self.path / "synthetic"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def teacher(self) -> Path:
        """Feature network and weights, both from released values."""
        return self.path / "teacher"

    def population(self, iteration: int) -> Path:
        return self.path / "populations" / f"iter={iteration:04d}"

    def embedding(self, iteration: int) -> Path:
        return self.path / "embeddings" / f"iter={iteration:04d}"

    def lookahead(self, iteration: int) -> Path:
        return self.path / "lookahead" / f"iter={iteration:04d}"

    def histogram(self, iteration: int) -> Path:
        return self.path / "histograms" / f"iter={iteration:04d}.parquet"

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


@contextmanager
def claimed(config: Config) -> Iterator[RunDirectory]:
    """The run directory of `config`, created or continued, locked against a second process."""
    run = RunDirectory(Path(config.output.path).resolve())
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        lock = os.open(run.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(f"output.path: {run.path} can't be written ({error.strerror})") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"output.path: {run.path} is in use by another pe-ray; wait for it or stop it"
            ) from None
        _bind(run, config)
        yield run
    finally:
        os.close(lock)


def _bind(run: RunDirectory, config: Config) -> None:
    """Tie the directory to the configuration, or refuse a configuration it isn't tied to."""
    if run.config.exists():
        stored = yaml.safe_load(run.config.read_text(encoding="utf-8"))
        changed = differences(stored, config.tree())
        if changed:
            raise InputError(
                f"{', '.join(changed)}: differs from the run in {run.path}; restore it, or give "
                "another output.path (a new run spends anew)"
            )
        if not run.ledger.exists():
            raise InputError(
                f"output.path: {run.path} has a configuration but no ledger.sqlite; restore the "
                "ledger, since without it what was spent is unknown, or give another output.path"
            )
    elif not run.ledger.exists() and any(run.path.glob("[!.]*")):
        raise InputError(f"output.path: {run.path} holds other files; give an empty or new folder")


def write_config(run: RunDirectory, config: Config) -> None:
    """Record the configuration, once the ledger exists."""
    if not run.config.exists():
        header = f"# fingerprint: {config.fingerprint}\n"
        text = yaml.safe_dump(config.tree(), sort_keys=False, allow_unicode=True)
        atomic_write(run.config, (header + text).encode())


def require_disk(directory: Path, num_bytes: int, field: str) -> None:
    """Raise InputError unless `directory` has room for `num_bytes`, counting what it holds."""
    held = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    free = shutil.disk_usage(directory).free
    if held + free < num_bytes:
        raise InputError(
            f"{field}: {directory} needs up to {num_bytes / 2**30:.3g} GiB and has "
            f"{free / 2**30:.3g} GiB free; free some, or give a folder on a larger disk"
        )


def opened(path: str | Path) -> tuple[RunDirectory, Config]:
    """An existing run and its configuration (resources at their defaults)."""
    run = RunDirectory(Path(path).resolve())
    if not run.config.exists() or not run.ledger.exists():
        raise InputError(f"run {path}: not a run directory (no config.yaml and ledger.sqlite)")
    return run, Config.from_yaml(run.config)
