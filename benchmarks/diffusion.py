"""Compare images per second of diffusion in the pipeline with those of its bare sampling loop.

    OMP_NUM_THREADS=1 python -m benchmarks.diffusion
    python -m benchmarks.diffusion --full --precision bf16   # needs a GPU
    python -m benchmarks.diffusion --profile                 # and where the time goes

Bare: `ImprovedDiffusion.denoise` on tensors that are on the device already, in whole batches: the
peak to compare with. Pipeline: a population's worker, which also draws the noise, reads parents,
rounds to uint8 and writes the parts to disk. Both have the same weights (random), precision and
batches. They take turns in one process; the result is the median of the turns' ratios. --full takes
the architecture, steps and images of ImageNet-64 270M. Results are in benchmarks/diffusion.md.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import platform
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pe_ray import Config
from pe_ray.components.generators.improved_diffusion import (
    ImprovedDiffusion,
    ImprovedDiffusionOptions,
    make_unet,
)
from pe_ray.files.parts import commit
from pe_ray.run_context import RunContext
from pe_ray.runtime.run_directory import on_disk
from pe_ray.synthetic.variation import PopulationWorker

SMALL = {
    "image_size": 32,
    "num_channels": 32,
    "num_res_blocks": 1,
    "timestep_respacing": "ddim10",
}
FULL = {
    "image_size": 64,
    "num_channels": 192,
    "num_res_blocks": 3,
    "timestep_respacing": "100",
}


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def network_options(size: dict[str, Any]) -> dict[str, Any]:
    """Return the options of an ImageNet network of this size, but for its checkpoint."""
    return {
        **size,
        "attention_resolutions": "16,8",
        "num_heads": 4,
        "class_cond": True,
        "learn_sigma": True,
        "diffusion_steps": 4000,
        "noise_schedule": "cosine",
    }


def save_weights(options: dict[str, Any]) -> int:
    """Write random weights and return their number."""
    torch.manual_seed(0)
    unet = make_unet(ImprovedDiffusionOptions(**options))
    torch.save(unet.state_dict(), options["checkpoint"])
    return sum(weight.numel() for weight in unet.parameters())


def configuration(options: dict[str, Any], batch_size: int, degree: int, folder: Path) -> Config:
    return Config.from_dict(
        {
            "private": {"data": "sklearn:digits", "labels": ["0"], "cache": "none"},
            "generator": {"kind": "improved_diffusion", **options},
            "embedder": {"kind": "pixels"},
            "schedule": {"iterations": 1, "num_samples": 1, "degrees": degree},
            "privacy": {
                "epsilon": 1,
                "delta": 1e-5,
                "unit": "record",
                "label_fractions": "uniform",
            },
            "resources": {"batch_size": batch_size},
            "output": {"path": str(folder / "run")},
        }
    )


def bare(
    model: ImprovedDiffusion, rows: int, batch_size: int, degree: int | None, side: int
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    noise = torch.zeros(batch_size, 3, side, side, device=device)
    classes = torch.zeros(batch_size, dtype=torch.int64, device=device)
    for _ in range(rows // batch_size):
        if degree is None:
            model.denoise(noise, classes)
        else:
            model.denoise(noise, classes, start_step=degree, start_images=noise)


def in_pipeline(config: Config, folder: Path, iteration: int, rows: int, part: int) -> None:
    """Make and write a population: random draws for iteration 0, variations of those for 1."""
    run = RunContext(config=config, directory=on_disk(folder / "run"), embedder=config.embedder)
    directory = run.directory.population(iteration)
    directory.mkdir(parents=True, exist_ok=True)
    worker = PopulationWorker(run, iteration)
    parts = [
        worker.make(
            {
                "start": start,
                "stop": start + part,
                "parents": np.arange(start, start + part),
                "copies": np.full(part, iteration),
                "draws": np.full(part, -1),
                "labels": np.zeros(part, dtype=np.int64),
            }
        )
        for start in range(0, rows, part)
    ]
    commit(directory, parts, {})


def print_profile(work: Callable[[], None]) -> None:
    """Print operations by their own time, and the functions around the network."""
    from torch.profiler import ProfilerActivity, profile

    activities, order = [ProfilerActivity.CPU], "self_cpu_time_total"
    if torch.cuda.is_available():
        activities, order = [*activities, ProfilerActivity.CUDA], "self_device_time_total"
    with profile(activities=activities) as operations:
        work()
    print(operations.key_averages().table(sort_by=order, row_limit=15, max_name_column_width=40))
    calls = cProfile.Profile()
    calls.runcall(work)
    pstats.Stats(calls).sort_stats("cumulative").print_stats("pe_ray", 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="where the pipeline's time goes")
    given = parser.parse_args()

    options = network_options(FULL if given.full else SMALL)
    options |= {"precision": given.precision, "compile": given.compile}
    batch_size = given.batch_size or (256 if given.full else 32)
    rows, side = given.batches * batch_size, options["image_size"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options["checkpoint"] = str(folder / "model.pt")
        weights = save_weights(options)
        model = ImprovedDiffusion(**options)
        num_steps = ImprovedDiffusionOptions(**options).num_steps
        degree = num_steps // 5
        config = configuration(options, batch_size, degree, folder)
        where = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
        print(f"{where or platform.machine()}, {len(os.sched_getaffinity(0))} cores, ", end="")
        print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
        print(f"{weights / 1e6:.1f}M weights, {given.precision}, {side}x{side}, ", end="")
        print(f"{num_steps} steps, batches of {batch_size}")
        print("call      bare images/s  pipeline images/s  ratio (median of turns)")
        for iteration, call, skipped in ((0, "random", None), (1, "vary", degree)):
            turns = []
            for turn in range(given.turns + 1):
                peak = seconds(lambda s=skipped: bare(model, rows, batch_size, s, side))
                ours = seconds(
                    lambda i=iteration: in_pipeline(config, folder, i, rows, 2 * batch_size)
                )
                if turn:  # the first warms up, and loads the pipeline's weights
                    turns.append((rows / peak, rows / ours, peak / ours))
            peak, ours, ratio = (statistics.median(values) for values in zip(*turns, strict=True))
            print(f"{call:<8}  {peak:13.2f}  {ours:17.2f}  {ratio:5.3f}", flush=True)
        if given.profile:
            print_profile(lambda: in_pipeline(config, folder, 1, rows, 2 * batch_size))


if __name__ == "__main__":
    main()
