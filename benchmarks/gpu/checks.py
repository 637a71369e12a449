"""Whether what runs on the card makes what the CPU makes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.diffusion import SMALL, configuration, network_options
from benchmarks.gpu.tasks import Row, Task, wait
from pe_ray import plugins
from pe_ray.components.generators import tiny_pipelines
from pe_ray.components.generators.improved_diffusion import ImprovedDiffusionOptions, make_unet
from pe_ray.config.kinds import Plugin
from pe_ray.plugins.seeds import row_seeds
from pe_ray.plugins.stand_ins import Rehearsal
from pe_ray.synthetic.batching import BatchedGenerator

ROUNDING = {"fp32": 0.5, "bf16": 8.0}
"""Levels of 255, the mean over all pixels, by which images on the card may differ from the CPU's: a
guess, as none was made on a card yet."""


def draw_families(file: Path, deadline: float) -> None:
    """Write a few images of each family as an archive of arrays, on this process's device."""
    rehearsal = Rehearsal(
        folder=Path(tempfile.mkdtemp(dir=file.parent)),
        labels=("cat", "dog"),
        iterations=(1,),
        num_samples=2,
    )
    labels = np.array([0, 1], dtype=np.int32)
    seeds = row_seeds(0, "random", 0, np.arange(2, dtype=np.int64))
    made: dict[str, Any] = {}
    options = network_options(SMALL)
    kinds = {"improved": ("improved_diffusion", {**options, "checkpoint": "none"}, 5)}
    for name in tiny_pipelines.PIPELINES:
        if name not in ("SanaPipeline", "QwenImageEditPipeline"):  # one of two calls alone
            edits = name in ("FluxKontextPipeline", "Flux2KleinPipeline")
            vary = {"steps": 4, "method": "edit" if edits else "strength"}
            own = {"checkpoint": "none", "pipeline_class": name, "max_tokens": 256}
            kinds[name] = ("diffusers", {**own, "random": {"steps": 2}, "vary": vary}, 0.5)
    for name, (kind, given, degree) in kinds.items():
        if time.monotonic() > deadline:
            break
        for precision in ("fp32", "bf16"):
            plugin = plugins.load("generator", kind)
            tiny = plugin.Options(**given, precision=precision).rehearsal(rehearsal)
            generator = plugin(tiny, rehearsal.labels)
            rows = {**generator.random(labels, seeds), "label": labels}
            made[f"{name} {precision} random"] = rows["image"]
            made[f"{name} {precision} vary"] = generator.vary(rows, degree, seeds)["image"]
    with file.open("wb") as output:
        np.savez(output, **made)


def families(task: Task) -> Iterator[Row]:
    """Compare images with those of a process that sees no card; a seed gives both their weights."""
    with tempfile.TemporaryDirectory() as name:
        files = [Path(name) / f"{where}.npz" for where in ("cpu", "card")]
        hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        deadline = str(task.deadline - 10)
        command = [sys.executable, "-m", "benchmarks.gpu.section", "draw"]
        other = subprocess.Popen([*command, str(files[0]), deadline], env=hidden)
        draw_families(files[1], float(deadline))
        if other.wait():
            raise SystemExit("the process without a card failed")
        here, there = (np.load(file, allow_pickle=False) for file in files)
        for key in here.files:
            if key not in there.files:
                continue
            family, precision, call = key.split()
            apart = np.abs(here[key].astype(int) - there[key])
            yield {
                "family": family,
                "call": call,
                "precision": precision,
                "largest difference": int(apart.max()),
                "mean difference": float(apart.mean()),
                "allowed": ROUNDING[precision],
                "ok": bool(apart.mean() <= ROUNDING[precision]),
            }


class _Small:
    """A generator for which batches above 8 are too large."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator

    def random(self, labels: Any, seeds: Any) -> Any:
        if len(labels) > 8:
            raise torch.OutOfMemoryError
        return self._generator.random(labels, seeds)


def memory(task: Task) -> Iterator[Row]:
    """A batch that doesn't fit is halved until it does, and gives the same images."""
    num = 12 if task.rehearse else 512
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = ImprovedDiffusionOptions(
            checkpoint=str(folder / "model.pt"),
            **{**network_options(SMALL), "timestep_respacing": "ddim2"},
        )
        torch.save(make_unet(options).state_dict(), options.checkpoint)
        plugin = Plugin(plugin_type="generator", kind="improved_diffusion", options=options)
        config = configuration(options.model_dump(), num, 1, folder)
        labels = np.zeros(num, dtype=np.int32)
        seeds = row_seeds(0, "random", 0, np.arange(num, dtype=np.int64))
        small = config.resources.model_copy(update={"batch_size": 8})
        few = BatchedGenerator(plugin, config.model_copy(update={"resources": small}))
        expected = few.random(labels, seeds)["image"]
        wait()
        made = BatchedGenerator(plugin, config)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            total = torch.cuda.mem_get_info()[1]
            room = torch.cuda.memory_allocated() + (256 << 20)  # for less than 512 of its rows
            torch.cuda.set_per_process_memory_fraction(room / total)
        else:
            made._generator = _Small(made._generator)  # type: ignore[assignment]
        found = made.random(labels, seeds)["image"]
        apart = float(np.abs(found.astype(int) - expected).mean())
        yield {
            "batch asked for": num,
            "batch that fitted": made._batch_size,
            "mean difference": apart,
            "ok": made._batch_size < num and apart <= ROUNDING["fp32"],
        }


def sharing(task: Task) -> Iterator[Row]:
    """Two workers with half of a card each make what one makes."""
    from pe_ray import Config, evolve
    from pe_ray.synthetic.population_files import read_population

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = {**network_options(SMALL), "timestep_respacing": "ddim4"}
        flags = ImprovedDiffusionOptions(checkpoint=str(folder / "model.pt"), **options)
        torch.save(make_unet(flags).state_dict(), flags.checkpoint)
        num = 16 if task.rehearse else 512
        images, times = [], []
        for workers in (1, 2):
            tree = configuration(flags.model_dump(), num // 4, 1, folder).model_dump(mode="json")
            share = 0 if task.rehearse else 1 / workers
            tree["private"] |= {"labels": [str(digit) for digit in range(10)]}
            tree["privacy"] |= {"epsilon": math.inf}  # noise would choose other parents
            tree["schedule"] |= {"num_samples": num}
            tree["resources"] |= {"workers": workers, "gpus_per_worker": share}
            path = folder / f"run{workers}"
            tree["output"] |= {"path": str(path), "rows_per_part": num // 4}
            start = time.perf_counter()
            evolve(Config.from_dict(tree))
            times.append(time.perf_counter() - start)
            made = path / "populations" / "iter=0001"
            images.append(read_population(made, np.arange(num), flags)["image"])
        apart = int(np.abs(images[0].astype(int) - images[1]).max())
        yield {
            "samples": num,
            "one worker s": times[0],
            "two workers s": times[1],
            "largest difference": apart,
            "ok": apart == 0,
        }
