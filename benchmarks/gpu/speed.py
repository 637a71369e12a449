"""How fast the card is, and how much of it is used."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.diffusion import FULL, SMALL, bare, configuration, in_pipeline, network_options
from benchmarks.gpu.tasks import Row, Task, seconds, wait
from pe_ray.components.generators.ddim import DdimSampler
from pe_ray.components.generators.improved_diffusion import (
    ImprovedDiffusion,
    ImprovedDiffusionOptions,
    make_unet,
)
from pe_ray.components.inference import DTYPES, infer_in, pick_device
from pe_ray.components.nearest import NearestSearch

BF16_PEAKS = {  # dense TFLOP/s, as NVIDIA's data sheets have them
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "H100 PCIe": 756,
    "H100": 989,
    "H200": 989,
    "B200": 2250,
}
PASSES = 4  # of the network that one figure is timed over


def matmul_rate(dtype: torch.dtype, size: int, precision: Any) -> float:
    """Return TFLOP/s of a square matrix product."""
    left = torch.randn(size, size, device=pick_device()).to(dtype)
    with infer_in(precision):
        return 2 * size**3 / seconds(lambda: left @ left) / 1e12


def peak_of(name: str) -> float | None:
    """Return the card's dense bf16 peak in FLOP/s, from its name; longer names first."""
    known = sorted(BF16_PEAKS, key=len, reverse=True)
    words = name.replace("NVIDIA ", "")
    found = next((card for card in known if all(word in words for word in card.split())), None)
    return BF16_PEAKS[found] * 1e12 if found else None


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no card"


def card(task: Task) -> Iterator[Row]:
    """What the card is and how fast it multiplies."""
    size = 256 if task.rehearse else 8192
    peak = peak_of(device_name())
    on_card = torch.cuda.is_available()
    yield {
        "card": device_name(),
        "memory GiB": torch.cuda.mem_get_info()[1] / 2**30 if on_card else 0,
        "torch": torch.__version__,
        "bf16 peak TFLOP/s": peak / 1e12 if peak else "unknown card",
        **{
            f"{name} product TFLOP/s": matmul_rate(DTYPES[name], size, name)
            for name in ("fp32", "tf32", "bf16")
        },
        "ok": on_card or task.rehearse,
    }


def votes(task: Task) -> Iterator[Row]:
    """The same neighbours with and without the card, bit for bit."""
    import faiss

    if not task.rehearse and faiss.get_num_gpus() == 0:
        raise SystemExit("this faiss finds no GPU: install faiss-gpu in place of faiss-cpu")
    num, dims = (300, (16,)) if task.rehearse else (20_000, (64, 512, 2048))
    peak = matmul_rate(torch.float32, 256 if task.rehearse else 8192, "fp32")
    faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
    rng = np.random.default_rng(0)
    for dim, metric, k in product(dims, ("l2", "cosine", "inner_product"), (1, 12)):
        if not task.in_time:
            return
        queries, samples = rng.standard_normal((2, num, dim)).astype(np.float32)
        samples[-num // 10 :] = samples[: num // 10]  # ties
        search = partial(find_nearest, queries, samples, k, metric)
        on_card = seconds(lambda s=search: s(on_gpu=True), turns=1)
        on_cpu = seconds(lambda s=search: s(on_gpu=False), turns=1)
        rate = 2 * num**2 * dim / on_card / 1e12
        yield {
            "dims": dim,
            "metric": metric,
            "nearest": k,
            "card s": on_card,
            "CPU s": on_cpu,
            "TFLOP/s": rate,
            "share of fp32 products": rate / peak,
            "ok": search(on_gpu=True) == search(on_gpu=False),
        }


def find_nearest(
    queries: Any, samples: Any, k: int, metric: Any, *, on_gpu: bool
) -> tuple[bytes, bytes]:
    """Return ids and distances of the nearest samples, to the last bit."""
    search = NearestSearch(queries, k, metric, on_gpu=on_gpu)
    search.add(samples, 0)
    return search.ids.tobytes(), search.distances.tobytes()


def count_flops(options: ImprovedDiffusionOptions) -> int:
    """Return the operations of one pass for one image, counted without computing."""
    from torch.utils.flop_counter import FlopCounterMode

    side = options.image_size
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        step, classes = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
        make_unet(options)(torch.zeros(1, 3, side, side), step, classes)
    return counter.get_total_flops()


def network_of(task: Task, folder: Path, **changes: Any) -> ImprovedDiffusionOptions:
    """Return the options of the large network with random weights; of a small one in rehearsals."""
    options = ImprovedDiffusionOptions(
        checkpoint=str(folder / "model.pt"),
        **{**network_options(SMALL if task.rehearse else FULL), **changes},
    )
    if not Path(options.checkpoint).exists():
        torch.manual_seed(0)
        torch.save(make_unet(options).state_dict(), options.checkpoint)
    return options


def diffusers_rate(task: Task, options: ImprovedDiffusionOptions, batch: int) -> float:
    """Return images/s of diffusers' own network of this size in its own loop, in bf16."""
    import diffusers

    width, side, steps = options.num_channels, options.image_size, options.num_steps
    factors = {32: (1, 2, 2, 2), 64: (1, 2, 3, 4)}[side]
    attends = [side >> level in options.attention_resolutions for level in range(len(factors))]
    unet = diffusers.UNet2DModel(
        sample_size=side,
        out_channels=6,
        block_out_channels=[width * factor for factor in factors],
        layers_per_block=options.num_res_blocks,
        down_block_types=[f"{'Attn' * on}DownBlock2D" for on in attends],
        up_block_types=[f"{'Attn' * on}UpBlock2D" for on in reversed(attends)],
        attention_head_dim=width // options.num_heads,
        num_class_embeds=1000,
        resnet_time_scale_shift="scale_shift",
    )
    device = pick_device()
    unet = unet.to(device, torch.bfloat16, memory_format=torch.channels_last).eval()
    scheduler = diffusers.DDIMScheduler(clip_sample=True)
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps.tolist()[-PASSES:]
    labels = torch.zeros(batch, dtype=torch.int64, device=device)

    def loop() -> None:
        x = torch.randn(batch, 3, side, side, device=device)
        for t in times:
            made = unet(x.to(torch.bfloat16), t, class_labels=labels).sample[:, :3].float()
            x = scheduler.step(made, t, x).prev_sample
        x.cpu()

    with infer_in("bf16"):
        return batch / (seconds(loop) / len(times) * steps)


def time_network(
    task: Task, folder: Path, batch: int, precision: Any, layout: str, flops: int, **changes: Any
) -> Row:
    """Return the speed of the package's sampler with one setting, for all steps of an image."""
    options = network_of(task, folder, precision=precision, **changes)
    sampler: DdimSampler = options.load()
    if layout == "contiguous":
        sampler._layout = torch.contiguous_format  # the other is the package's own
        sampler._network.to(memory_format=torch.contiguous_format)
    side, steps = options.image_size, options.num_steps
    first = steps - min(PASSES, steps - 1)
    noise = np.random.default_rng(0).standard_normal((batch, 3, side, side), dtype=np.float32)
    images = np.zeros((batch, side, side, 3), dtype=np.uint8)
    classes = np.zeros(batch, dtype=np.int32)
    row: Row = {"precision": precision, "layout": layout, "batch": batch}
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    try:
        sampler.denoise(noise, classes, first, images)
        wait()
        row["first call s"] = time.perf_counter() - start
        took = seconds(lambda: sampler.denoise(noise, classes, first, images), turns=2)
    except torch.OutOfMemoryError:
        return row | {"images/s": "out of memory"}
    rate = batch / (took / (steps - first) * steps)
    row |= {"images/s": rate, "TFLOP/s": rate * flops * steps / 1e12}
    if peak := peak_of(device_name()):
        row["share of bf16 peak"] = rate * flops * steps / peak
    if torch.cuda.is_available():
        row["memory GiB"] = torch.cuda.max_memory_allocated() / 2**30
    return row


def network(task: Task) -> Iterator[Row]:
    """Precisions, layouts and batches, with diffusers' own network and loop to compare with."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flops = count_flops(network_of(task, folder))
        middle, batches = (2, ()) if task.rehearse else (256, (64, 128, 512, 1024))
        theirs = diffusers_rate(task, network_of(task, folder), middle)
        settings = [("bf16", "channels last", middle)]
        others = ("tf32", "fp32") if task.rehearse else ("tf32", "fp16", "fp32")
        settings += [(precision, "channels last", middle) for precision in others]
        settings += [("bf16", "contiguous", middle)]
        settings += [("bf16", "channels last", batch) for batch in batches]
        yield {"precision": "bf16", "layout": "diffusers' own", "batch": middle, "images/s": theirs}
        for precision, layout, batch in settings:
            if not task.in_time:
                return
            row = time_network(task, folder, batch, precision, layout, flops)
            if isinstance(row["images/s"], float) and batch == middle:
                row["of diffusers' own"] = row["images/s"] / theirs
            yield row
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def compiled(task: Task) -> Iterator[Row]:
    """The same with a compiled network; the first call says what compiling takes."""
    if task.rehearse:  # machine code takes minutes and a compiler
        torch.compile = partial(torch.compile, backend="aot_eager")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flops = count_flops(network_of(task, folder))
        for batch, layout in ((256, "channels last"), (256, "contiguous"), (64, "channels last")):
            if not task.in_time:
                return
            torch.compiler.reset()
            size = 2 if task.rehearse else batch
            yield time_network(task, folder, size, "bf16", layout, flops, compile=True)
            if task.rehearse:
                return


def pipeline(task: Task) -> Iterator[Row]:
    """What is lost between batches: noise, rounding, reading parents and writing parts."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps = {} if task.rehearse else {"timestep_respacing": "ddim10"}
        options = network_of(task, folder, precision="bf16", **steps)
        model, side = ImprovedDiffusion(**options.model_dump()), options.image_size
        batch, num = (2, 2) if task.rehearse else (256, 2)
        rows, config = (
            num * batch,
            configuration(options.model_dump(), batch, options.num_steps // 2, folder),
        )
        for iteration, call, skipped in ((0, "random", None), (1, "vary", options.num_steps // 2)):
            if not task.in_time:
                return
            alone = seconds(partial(bare, model, rows, batch, skipped, side), turns=1)
            ours = seconds(partial(in_pipeline, config, folder, iteration, rows, 2 * batch), 1)
            yield {
                "call": call,
                "steps": options.num_steps - (skipped or 0),
                "batch": batch,
                "bare images/s": rows / alone,
                "worker images/s": rows / ours,
                "lost a batch, ms": 1000 * (ours - alone) / num,
                "share of bare": alone / ours,
            }
