"""Measure where seconds and memory go in the demo's pipeline at the reference's size.

2,000 samples of 28x28, 6 iterations, lookahead 4, scikit-learn's digits, epsilon 1. Prints the same
work done in one process without Ray (generation, embedding), then the run: seconds per phase,
CPU seconds and peak memory per process. Needs Linux (/proc).

    python -m benchmarks.digits.pipeline
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.watch import Watch
from pe_ray import plugins
from pe_ray.config import Config
from pe_ray.plugins.seeds import row_seeds

SAMPLES, ITERATIONS, LOOKAHEAD, IMAGE = 2000, 6, 4, 28
DIGITS = [str(digit) for digit in range(10)]


def config(folder: Path) -> Config:
    return Config.from_dict(
        {
            "private": {"data": "sklearn:digits", "labels": DIGITS, "cache": "none"},
            "generator": {"kind": "rendered_text", "image_size": IMAGE},
            "embedder": {"kind": "pixels", "size": 8},
            "votes": {"lookahead": LOOKAHEAD},
            "schedule": {"iterations": ITERATIONS, "num_samples": SAMPLES, "degrees": 0.4},
            "privacy": {
                "epsilon": 1.0,
                "delta": 1e-4,
                "unit": "record",
                "label_fractions": "uniform",
            },
            "output": {"path": str(folder / "run")},
        }
    )


def in_one_process(settings: Config) -> dict[str, float]:
    """Return the seconds of the same generator and embedder calls in a plain loop on one core."""
    seconds: dict[str, float] = defaultdict(float)

    def timed(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        started = time.perf_counter()
        result = call(*arguments)
        seconds[name] += time.perf_counter() - started
        return result

    generator_class = plugins.load("generator", settings.generator.kind)
    generator = timed("set-up", generator_class, settings.generator.options, DIGITS)
    embedder = plugins.load("embedder", settings.embedder.kind)(settings.embedder.options)
    ids = np.arange(SAMPLES)
    labels = (ids * 10 // SAMPLES).astype(np.int32)
    rows = timed("random", generator.random, labels, row_seeds(0, "random", 0, ids))
    for iteration in range(1, ITERATIONS + 1):
        rows["label"] = labels
        for copy in range(LOOKAHEAD):
            seeds = row_seeds(0, "lookahead", iteration, ids, copy)
            varied = timed("variation", generator.vary, rows, 0.4, seeds)
            timed("embedding", embedder.embed, varied["image"])
        seeds = row_seeds(0, "variation", iteration, ids)
        rows = timed("variation", generator.vary, rows, 0.4, seeds)
    return dict(seconds)


def through_ray(settings: Config) -> tuple[dict[str, float], float, Watch]:
    """Return the seconds per phase of a run, its wall seconds, and what was watched."""
    import ray

    from pe_ray import evolution
    from pe_ray.synthetic import embedding

    seconds: dict[str, float] = defaultdict(float)

    def phase(name: str, module: Any, attribute: str) -> None:
        step = getattr(module, attribute)

        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return step(*arguments, **named)
            finally:
                seconds[name] += time.perf_counter() - started

        setattr(module, attribute, timed)

    phase("variation, embedding with lookahead", evolution, "vary")
    phase("embedding of what was left", embedding.Embedding, "parts")
    phase("selection", evolution, "select_parents")
    phase("final set", evolution, "export")
    watch = Watch()
    started = time.perf_counter()
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    seconds["Ray's start"] = time.perf_counter() - started
    evolution.evolve(settings)
    wall = time.perf_counter() - started
    seconds["votes, release, reading"] = wall - sum(seconds.values())
    watch.stop()
    ray.shutdown()
    return dict(seconds), wall, watch


def main() -> None:
    print(f"machine: {platform.processor() or platform.machine()}, {os.cpu_count()} CPUs")
    with tempfile.TemporaryDirectory() as folder:
        settings = config(Path(folder))
        alone = in_one_process(settings)
        print(f"\none process, without Ray: {sum(alone.values()):.1f} s")
        for name, value in alone.items():
            print(f"  {name:<28}{value:8.2f} s")
        seconds, wall, watch = through_ray(settings)
        print(f"\nthrough Ray: {wall:.1f} s, {sum(watch.cpu.values()):.1f} CPU s in all")
        for name, value in seconds.items():
            print(f"  {name:<28}{value:8.2f} s")
        watch.print_peaks()


if __name__ == "__main__":
    main()
