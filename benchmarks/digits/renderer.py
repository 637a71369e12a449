"""Measure the rendered-text generator in milliseconds per image and core.

    OMP_NUM_THREADS=1 python -m benchmarks.digits.renderer

One thread of a shared 2-core AMD EPYC virtual machine, Python 3.11, numpy 2.4, 28x28: 0.03 to
0.04 ms for random and for vary (0.021 when idle; 0.05 to 0.07 with the option `stretch`); 0.6 s
to open 21 fonts, 1.5 to 2.3 s for the 420 masters of ten digits, once per process.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from pe_ray.components.generators.rendered_text import RenderedText, RenderedTextOptions
from pe_ray.plugins.seeds import row_seeds


def milliseconds(call: Callable[[], object], num_rows: int, repeats: int) -> list[float]:
    """Return the milliseconds per row of each repeat, fastest first."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) / num_rows * 1e3)
    return sorted(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-samples", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--image-size", type=int, default=28)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    names = [str(digit) for digit in range(10)]
    ids = np.arange(options.num_samples, dtype=np.int64)
    labels = (ids % 10).astype(np.int32)
    seeds = row_seeds(0, "random", 0, ids)
    steps = row_seeds(0, "variation", 1, ids)
    batches = [slice(i, i + options.batch_size) for i in ids[:: options.batch_size]]

    start = time.perf_counter()
    generator = RenderedText(RenderedTextOptions(image_size=options.image_size), names)
    print(f"opening the fonts           {time.perf_counter() - start:8.3f} s")
    start = time.perf_counter()
    drawn = [generator.random(labels[s], seeds[s]) for s in batches]
    print(f"first pass (makes masters)  {time.perf_counter() - start:8.3f} s")
    rows = [{**made, "label": labels[s]} for made, s in zip(drawn, batches, strict=True)]

    def random() -> None:
        for s in batches:
            generator.random(labels[s], seeds[s])

    def vary() -> None:
        for made, s in zip(rows, batches, strict=True):
            generator.vary(made, 0.5, steps[s])

    for call in (random, vary):
        times = milliseconds(call, options.num_samples, options.repeats)
        print(
            f"{call.__name__:<27} {times[len(times) // 2]:8.4f} ms per image "
            f"(fastest {times[0]:.4f}, slowest {times[-1]:.4f})"
        )


if __name__ == "__main__":
    main()
