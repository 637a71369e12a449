"""Compare one worker with two, of one thread each, and measure what a part costs.

    python -m benchmarks.scaling [samples]

Expands a small run of rendered digits with resources.workers = 1 and 2, and makes 256 empty parts.
Ray's start is not counted.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.digits.pipeline import config
from pe_ray import Config, evolve, expand
from pe_ray.config.blocks import ResourcesConfig
from pe_ray.files.parts import Part, write_part
from pe_ray.runtime.cluster import connect_to_ray
from pe_ray.runtime.stages import Stage, run_stage
from pe_ray.runtime.workers import PartWorker


class EmptyWorker(PartWorker):
    """Makes parts without content."""

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)

    def make(self, request: Mapping[str, Any]) -> Part:
        return write_part(self._directory, request["start"], request["stop"], "empty", b"")


def expansion_seconds(run: Path, samples: int, folder: Path, workers: int) -> float:
    started = time.perf_counter()
    expand(run, samples, folder / f"with-{workers}", ResourcesConfig(workers=workers))
    return time.perf_counter() - started


def stage_seconds(directory: Path) -> float:
    """Return the seconds of a stage of 256 empty parts."""
    requests = [{"start": i, "stop": i + 1} for i in range(256)]
    started = time.perf_counter()
    empty = Stage(
        name="empty",
        directory=directory,
        suffix="empty",
        requests=requests,
        worker=partial(EmptyWorker, str(directory)),
    )
    run_stage(empty, ResourcesConfig())
    return time.perf_counter() - started


def main(samples: int = 200_000) -> None:
    print(f"machine: {platform.processor() or platform.machine()}, {os.cpu_count()} CPUs")
    with tempfile.TemporaryDirectory() as name, connect_to_ray(ResourcesConfig()):
        folder = Path(name)
        tree = config(folder).model_dump(mode="json")
        tree["schedule"]["iterations"] = 1
        run = evolve(Config.from_dict(tree))
        expand(run, 20_000, folder / "warm")
        one, two = (expansion_seconds(run, samples, folder, workers) for workers in (1, 2))
        print(f"{samples:,} samples: 1 worker {one:.1f} s, 2 workers {two:.1f} s: {one / two:.2f}x")
        print(f"256 empty parts: {stage_seconds(folder / 'empty'):.2f} s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
