"""Expand a small run to 200,000 digits; print samples per second and peak memory per process.

python -m benchmarks.digits.expansion
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from pathlib import Path

from benchmarks.digits.pipeline import config
from benchmarks.watch import Watch
from pe_ray import evolve, expand
from pe_ray.config import Config

SAMPLES = 200_000


def main() -> None:

    print(f"machine: {platform.processor() or platform.machine()}, {os.cpu_count()} CPUs")
    with tempfile.TemporaryDirectory() as folder:
        tree = config(Path(folder)).model_dump(mode="json")
        tree["schedule"]["iterations"] = 1
        run = evolve(Config.from_dict(tree))
        watch = Watch()
        started = time.perf_counter()
        output = expand(run, SAMPLES, Path(folder) / "more")
        seconds = time.perf_counter() - started
        watch.stop()
        size = sum(file.stat().st_size for file in output.path.iterdir())
        print(
            f"{SAMPLES:,} samples in {seconds:.1f} s: {SAMPLES / seconds:,.0f} a second, ", end=""
        )
        print(f"{size / 2**20:.0f} MiB of parquet")
        watch.print_peaks()


if __name__ == "__main__":
    main()
