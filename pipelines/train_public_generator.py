"""Train a small class-conditional diffusion model on public images, for the `unet` generator.

    python pipelines/train_public_generator.py --config pipelines/digits.yaml --output models/glyphs

The images are random draws of the configuration's own generator (rendered text, say): nothing
private, nothing downloaded. The result is a diffusers folder that `generator: {kind: unet,
checkpoint: ...}` loads, one class per label. The same command continues a training that was killed,
from its last 250 steps. benchmarks/notes/speed.md says how long it takes.

The model predicts noise (Ho et al. 2020) in the cosine schedule (Nichol and Dhariwal 2021); its
weights are an exponential moving average.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import torch.nn.functional as F

from pe_ray import Config, InputError, plugins
from pe_ray.config.kinds import Plugin
from pe_ray.files.storage import expand_home
from pe_ray.plugins.seeds import row_seeds

SAVE_EVERY = 250
AVERAGING = 0.999


def make_network(shape: Any, num_classes: int, width: int) -> diffusers.UNet2DModel:
    """Return a UNet of three resolutions with attention at the lowest; width 32: 1.1M weights."""
    if shape.height % 4 or shape.width % 4:
        raise InputError("generator: the image size must be a multiple of 4")
    return diffusers.UNet2DModel(
        sample_size=(shape.height, shape.width),
        in_channels=shape.channels,
        out_channels=shape.channels,
        block_out_channels=(width, 2 * width, 2 * width),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        num_class_embeds=num_classes,
    )


def draw_batch(
    generator: plugins.Generator, num_classes: int, step: int, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images [size, c, h, w] in [-1, 1] and classes [size], a function of `step` alone.

    Every image is used once.
    """
    ids = np.arange(step * size, (step + 1) * size, dtype=np.int64)
    labels = (ids % num_classes).astype(np.int32)
    images = generator.random(labels, row_seeds(0, "random", 0, ids))["image"]
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1.0)
    return pixels, torch.from_numpy(labels.astype(np.int64))


def compute_loss(
    model: torch.nn.Module,
    scheduler: diffusers.DDPMScheduler,
    images: torch.Tensor,
    classes: torch.Tensor,
    random: torch.Generator,
) -> torch.Tensor:
    """Return the squared error of the predicted noise (Ho et al. 2020, equation 14)."""
    noise = torch.randn(images.shape, generator=random)
    times = torch.randint(scheduler.config.num_train_timesteps, (len(images),), generator=random)
    noise, times, images = (x.to(classes.device) for x in (noise, times, images))
    noisy = scheduler.add_noise(images, noise, times)
    return F.mse_loss(model(noisy, times, class_labels=classes).sample, noise)


def move_average(averaged: Any, current: Any, num_averaged: Any) -> None:
    """Move `averaged` towards `current`, faster at first: a short training forgets its start."""
    decay = min(AVERAGING, (1 + int(num_averaged)) / (10 + int(num_averaged)))
    torch._foreach_lerp_(averaged, current, 1 - decay)


def train(
    plugin: Plugin, labels: tuple[str, ...], output: Path, *, steps: int, size: int, width: int
) -> None:
    """Train the model; save its state every 250 steps and the pipeline at the end."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    shape = plugin.options.image_shape
    model = make_network(shape, len(labels), width).to(device)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=move_average)
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator = plugins.load("generator", plugin.kind)(plugin.options, labels)
    state, first = output / "training.pt", 0
    if state.exists():
        saved = torch.load(state, weights_only=True, map_location=device)
        first = saved["step"]
        for part, name in ((model, "model"), (average, "average"), (optimizer, "optimizer")):
            part.load_state_dict(saved[name])
    output.mkdir(parents=True, exist_ok=True)
    started, total = time.monotonic(), 0.0
    for step in range(first, steps):
        for group in optimizer.param_groups:  # warm up, then a half cosine
            group["lr"] = 1e-3 * min(1.0, step / 100) * (1 + math.cos(math.pi * step / steps)) / 2
        images, classes = draw_batch(generator, len(labels), step, size)
        random = torch.Generator().manual_seed(step)
        loss = compute_loss(model, scheduler, images, classes.to(device), random)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        total += float(loss.detach())
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            done, spent = step + 1 - first, time.monotonic() - started
            left = (steps - step - 1) * spent / done
            print(
                f"step {step + 1} of {steps}: loss {total / done:.4f}, {left:.0f} s left",
                flush=True,
            )
            parts = {"model": model, "average": average, "optimizer": optimizer}
            aside = state.with_suffix(".part")
            torch.save({"step": step + 1, **{k: v.state_dict() for k, v in parts.items()}}, aside)
            aside.replace(state)
    diffusers.DDPMPipeline(average.module, scheduler).save_pretrained(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="pipeline whose generator draws the images")
    parser.add_argument("--output", type=expand_home, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--width", type=int, default=32)
    options = parser.parse_args()
    config = Config.from_yaml(options.config)
    plugin = config.generator_at(0)
    try:
        train(
            plugin,
            config.private.labels,
            options.output,
            steps=options.steps,
            size=options.batch_size,
            width=options.width,
        )
    except InputError as error:
        parser.error(str(error))
    print(f"saved       {options.output}")


if __name__ == "__main__":
    main()
