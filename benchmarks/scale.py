"""Measure one iteration over large populations, or an expansion: speed, disk and memory by size.

    python -m benchmarks.scale [samples ...]     (default 10000 100000 1000000)
    python -m benchmarks.scale --expand 10000000 (12x12 grey samples to parquet)

Samples are rendered digits of 32x32x3, embedded to 64 dimensions, with 10 labels; 100,000 rendered
stand-ins for private records vote. For each size it prints seconds and cost per sample by stage,
disk, and the peak resident memory of each kind of process, with that of imports alone.

At the end it prints the cost per sample by size, in wall and in CPU seconds of all processes (which
a busy machine changes less). The cost of a further sample since the size before leaves out fixed
costs: Ray's start and reading the records. Needs Linux (/proc).
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.watch import Watch
from pe_ray import Config, evolution, evolve, expand, plugins
from pe_ray.plugins.seeds import row_seeds
from pe_ray.release import door
from pe_ray.synthetic import embedding

RECORDS = 100_000
DIGITS = [str(digit) for digit in range(10)]
IMPORTS = "import pe_ray.evolution, resource; print(resource.getrusage(0).ru_maxrss)"


def stand_ins(file: Path) -> None:
    """Write rendered 12x12 digits as parquet tensors."""
    made = plugins.load("generator", "rendered_text")
    generator = made(made.Options(image_size=12), DIGITS)
    labels = (np.arange(RECORDS) % 10).astype(np.int32)
    seeds = row_seeds(99, "random", 0, np.arange(RECORDS, dtype=np.int64))
    images = generator.random(labels, seeds)["image"][..., 0]
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(images))
    pq.write_table(pa.table({"image": column, "label": labels}), file)


def config(folder: Path, samples: int, generator: dict[str, Any]) -> Config:
    return Config.from_dict(
        {
            "private": {
                "data": str(folder / "records.parquet"),
                "labels": DIGITS,
                "cache": str(folder / "cache"),
            },
            "generator": {"kind": "rendered_text", **generator},
            "embedder": {"kind": "pixels", "size": 8},
            "schedule": {"iterations": 1, "num_samples": samples, "degrees": 0.4},
            "privacy": {
                "epsilon": 1.0,
                "delta": 1e-6,
                "unit": "record",
                "label_fractions": "uniform",
            },
            "output": {"path": str(folder / "run")},
        }
    )


class Stages:
    """Replace each step of the loop with a timed one; return the seconds by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        for name in ("draw_population", "select_parents", "vary", "export"):
            setattr(evolution, name, self._timed(name, getattr(evolution, name)))
        embedding.Embedding.parts = self._timed("embed", embedding.Embedding.parts)  # type: ignore[method-assign]
        for name in ("__init__", "ask"):
            timed = self._timed(
                {"__init__": "read records", "ask": "embed, vote, release"}[name],
                getattr(door.Door, name),
            )
            setattr(door.Door, name, timed)

    def _timed(self, name: str, step: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            result = step(*arguments, **named)
            spent = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
            return result

        return call


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def measure(folder: Path, samples: int, stages: Stages) -> tuple[int, float, float]:
    """Return samples, wall seconds and CPU seconds of all processes."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    stages.seconds.clear()
    watch, started = Watch(), time.perf_counter()
    evolve(config(folder, samples, {"image_size": 32, "channels": 3}))
    seconds = time.perf_counter() - started
    watch.stop()
    size = folder_bytes(folder / "run")
    print(f"\n{samples:,} samples: {seconds:.1f} s, {size / 2**20:,.0f} MiB of run directory")
    print("  step                     seconds   us/sample     rows/s   raw MB/s")
    for name, spent in stages.seconds.items():
        rows = samples
        print(
            f"  {name:22s}{spent:10.1f}{spent / rows * 1e6:12.1f}{rows / spent:11,.0f}"
            f"{rows * 3072 / spent / 1e6:11.1f}"
        )
    watch.print_peaks()
    return samples, seconds, watch.cpu_seconds()


def print_growth(found: list[tuple[int, float, float]]) -> None:
    print("\n                                    a sample           a further sample")
    print("   samples   seconds     CPU s      us  CPU us           us  CPU us")
    before = (0, 0.0, 0.0)
    for samples, wall, cpu in found:
        more = samples - before[0]
        further = f"{(wall - before[1]) / more * 1e6:13.0f}{(cpu - before[2]) / more * 1e6:8.0f}"
        print(
            f"{samples:10,}{wall:10.1f}{cpu:10.1f}{wall / samples * 1e6:8.0f}"
            f"{cpu / samples * 1e6:8.0f}{further if before[0] else ''}"
        )
        before = (samples, wall, cpu)


def measure_expansion(folder: Path, samples: int) -> None:
    evolve(config(folder, 20_000, {"image_size": 12}))
    watch, started = Watch(), time.perf_counter()
    expand(folder / "run", samples, folder / "more")
    seconds = time.perf_counter() - started
    watch.stop()
    size = folder_bytes(folder / "more")
    print(f"expansion to {samples:,}: {seconds:.1f} s, {samples / seconds:,.0f} samples/s")
    print(f"{size / 2**20:,.0f} MiB of parquet, {size / seconds / 1e6:.1f} MB/s")
    print(f"{watch.cpu_seconds() / samples * 1e6:.0f} CPU microseconds a sample")
    watch.print_peaks()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("samples", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--expand", type=int)
    options = parser.parse_args()
    print(f"machine: {platform.processor() or platform.machine()}, {os.cpu_count()} CPUs")
    imports = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True)
    print(f"resident after imports alone: {int(imports.stdout) / 1024:.0f} MiB")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stand_ins(folder / "records.parquet")
        if options.expand:
            measure_expansion(folder, options.expand)
            return
        stages = Stages()
        print_growth([measure(folder, samples, stages) for samples in options.samples])


if __name__ == "__main__":
    main()
