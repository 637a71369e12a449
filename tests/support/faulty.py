"""What dies, hangs or dawdles in a worker when a test says so; importable by Ray's workers.

A fault is a file `kill-...` or `hang-...` in a folder. Whoever takes it (only one can) suffers it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pe_ray.components.embedders.pixels import Pixels, PixelsOptions
from pe_ray.components.generators.rendered_text import RenderedText, RenderedTextOptions
from pe_ray.plugins import EmbedderOptions, GeneratorOptions, Images, Rows
from pe_ray.plugins.seeds import Seeds
from pe_ray.release.aggregator import Aggregator
from pe_ray.release.ledger import Ledger


def arm(folder: Path, *faults: str) -> None:
    """Put faults into `folder`, e.g. kill-1."""
    folder.mkdir(parents=True, exist_ok=True)
    for fault in faults:
        (folder / fault).touch()


def suffer(folder: Path) -> None:
    """Take one of the faults in `folder`, if any, and suffer it."""
    for file in sorted(folder.glob("*-*")) if folder.is_dir() else ():
        try:
            file.rename(folder / f"took.{file.name.replace('-', '.')}")
        except FileNotFoundError:  # somebody else was faster
            continue
        if file.name.startswith("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        while True:  # as native code may: without ever looking at a signal
            time.sleep(1)


def taken(folder: Path) -> int:
    """How many faults were suffered."""
    return len(list(folder.glob("took.*")))


class FaultyTextOptions(RenderedTextOptions):
    unbound: ClassVar[frozenset[str]] = frozenset({"faults"})

    faults: str
    pause: float = 0.0
    """Seconds of every call, so that a stage lasts."""


class FaultyText(RenderedText):
    """Rendered text that may die or hang."""

    Options: ClassVar[type[GeneratorOptions]] = FaultyTextOptions

    def __init__(self, options: FaultyTextOptions, label_names: Sequence[str]) -> None:
        super().__init__(options, label_names)
        self._own = options

    def random(self, labels: NDArray[np.int32], seeds: Seeds) -> Rows:
        self._suffer()
        return super().random(labels, seeds)

    def vary(self, rows: Rows, degree: float, seeds: Seeds) -> Rows:
        self._suffer()
        return super().vary(rows, degree, seeds)

    def _suffer(self) -> None:
        time.sleep(self._own.pause)
        suffer(Path(self._own.faults))


class FaultyPixelsOptions(PixelsOptions):
    unbound: ClassVar[frozenset[str]] = frozenset({"faults"})

    faults: str


class FaultyPixels(Pixels):
    """Pixels that may die or hang."""

    Options: ClassVar[type[EmbedderOptions]] = FaultyPixelsOptions

    def embed(self, images: Images) -> NDArray[np.float32]:
        assert isinstance(self._options, FaultyPixelsOptions)
        suffer(Path(self._options.faults))
        return super().embed(images)


def faulty_task(task: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """A task on private records that may die or hang, guarded as the task itself is."""

    def faulty(*arguments: Any) -> Any:
        known = task.__globals__
        guarded = known["hide_private_errors"]

        @contextmanager
        def suffering(*given: Any) -> Iterator[None]:
            with guarded(*given):
                suffer(folder)
                yield

        known["hide_private_errors"] = suffering
        try:
            return task(*arguments)
        finally:
            known["hide_private_errors"] = guarded

    return faulty


class _MortalLedger:
    """Dies at each of the places of a release, once each."""

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self._ledger, self._folder = ledger, folder

    def __getattr__(self, name: str) -> Any:
        step = getattr(self._ledger, name)

        def call(*arguments: Any) -> Any:
            suffer(self._folder / f"before {name}")
            result = step(*arguments)
            suffer(self._folder / f"after {name}")
            return result

        return call


class MortalAggregator(Aggregator):
    """An aggregator that may die before and after it charges, draws and commits."""

    def __init__(self, ledger_path: Path, folder: Path) -> None:
        def entropy(size: int) -> bytes:
            drawn = os.urandom(size)
            suffer(folder / "while drawing")
            return drawn

        super().__init__(ledger_path, entropy=entropy)
        self._ledger = _MortalLedger(self._ledger, folder)  # type: ignore[assignment]
