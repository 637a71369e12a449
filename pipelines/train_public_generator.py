"""Train a pixel diffusion model on public images, for the `unet` generator.

    python pipelines/train_public_generator.py --config pipelines/digits.yaml --output models/glyphs
    python pipelines/train_public_generator.py --data PUBLIC --output models/natural32 \\
        --image-size 32 --classes --flip --width 128 --layers 2 --batch-size 512 --steps 10000

With --config the images are random draws of a configuration's own generator (rendered text, say),
one class per label. With --data they are PUBLIC images, in any layout that `generator.data` of
nearest_image takes, decoded once into its cache; --classes makes the model class-conditional, and
classes.json in the output folder has their names in the order of their numbers. Nothing private is
read, and nothing is downloaded. The result is a diffusers folder that `generator: {kind: unet,
checkpoint: ...}` loads.

The same command continues a training that was killed, from the last --save-every steps. On CUDA
the network computes in bfloat16. benchmarks/notes/speed.md says how long it takes on a CPU; the
second command is meant for ten minutes of one large GPU, where it has not run yet.

The model predicts noise (Ho et al. 2020) in the cosine schedule (Nichol and Dhariwal 2021); its
weights are an exponential moving average.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import torch.nn.functional as F

from pe_ray import Config, InputError, plugins
from pe_ray.components.generators.cached_images import CachedImages
from pe_ray.components.generators.nearest_image import NearestImageOptions
from pe_ray.files.storage import expand_home
from pe_ray.plugins.seeds import row_seeds

AVERAGING = 0.999
Draw = Callable[[int], tuple[np.ndarray, np.ndarray]]
"""Returns the images, uint8 [n, h, w, c], and the classes of a step; a function of it alone."""


def make_network(
    shape: tuple[int, int, int], num_classes: int | None, width: int, layers: int
) -> diffusers.UNet2DModel:
    """Return a UNet of three resolutions with attention at the lowest.

    shape: height, width, channels. Width 32 with one layer: 1.1M weights; 128 with two: 26M.
    """
    if shape[0] % 4 or shape[1] % 4:
        raise InputError("generator: the image size must be a multiple of 4")
    return diffusers.UNet2DModel(
        sample_size=shape[:2],
        in_channels=shape[2],
        out_channels=shape[2],
        block_out_channels=(width, 2 * width, 2 * width),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=layers,
        norm_num_groups=8,
        num_class_embeds=num_classes,
    )


def draw_from_generator(config: Config, size: int) -> tuple[Draw, tuple[int, int, int], list[str]]:
    """Return a draw of `size` new images of the run's generator, their shape and classes.

    Every image is used once.
    """
    plugin, labels = config.generator_at(0), config.private.labels
    generator: plugins.Generator = plugins.load("generator", plugin.kind)(plugin.options, labels)
    shape = plugin.options.image_shape

    def draw(step: int) -> tuple[np.ndarray, np.ndarray]:
        ids = np.arange(step * size, (step + 1) * size, dtype=np.int64)
        classes = (ids % len(labels)).astype(np.int32)
        return generator.random(classes, row_seeds(0, "random", 0, ids))["image"], classes

    return draw, (shape.height, shape.width, shape.channels), list(labels)


def draw_from_images(
    options: NearestImageOptions, size: int, flip: bool
) -> tuple[Draw, tuple[int, int, int], list[str]]:
    """Return a draw of `size` of the public images, half of them mirrored if `flip`."""
    public = CachedImages(options.public_table, options.framing, options.cache)

    def draw(step: int) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(step)
        chosen = np.sort(random.integers(len(public.images), size=size))
        images = public.images.take(chosen)
        mirrored = random.integers(2, size=size) == 1
        if flip:
            images[mirrored] = images[mirrored, :, ::-1]
        return images, public.class_of[chosen]

    shape = options.image_shape
    return draw, (shape.height, shape.width, shape.channels), public.classes


def compute_loss(
    model: torch.nn.Module,
    scheduler: diffusers.DDPMScheduler,
    images: torch.Tensor,
    classes: torch.Tensor | None,
    random: torch.Generator,
) -> torch.Tensor:
    """Return the squared error of the predicted noise (Ho et al. 2020, equation 14).

    images: [n, c, h, w] in [-1, 1].
    """
    noise = torch.randn(images.shape, generator=random).to(images.device)
    times = torch.randint(scheduler.config.num_train_timesteps, (len(images),), generator=random)
    times = times.to(images.device)
    noisy = scheduler.add_noise(images, noise, times)
    with torch.autocast(images.device.type, torch.bfloat16, images.device.type == "cuda"):
        predicted = model(noisy, times, class_labels=classes).sample
    return F.mse_loss(predicted.float(), noise)


def move_average(averaged: Any, current: Any, num_averaged: Any) -> None:
    """Move `averaged` towards `current`, faster at first: a short training forgets its start."""
    decay = min(AVERAGING, (1 + int(num_averaged)) / (10 + int(num_averaged)))
    torch._foreach_lerp_(averaged, current, 1 - decay)


def train(
    draw: Draw,
    model: diffusers.UNet2DModel,
    output: Path,
    *,
    steps: int,
    save_every: int,
) -> None:
    """Train the model; save its state every `save_every` steps and the pipeline at the end."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=move_average)
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    state, first = output / "training.pt", 0
    parts = {"model": model, "average": average, "optimizer": optimizer}
    if state.exists():
        saved = torch.load(state, weights_only=True, map_location=device)
        first = saved["step"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    has_classes = model.config.num_class_embeds is not None
    started, total = time.monotonic(), torch.zeros((), device=device)
    for step in range(first, steps):
        for group in optimizer.param_groups:  # warm up, then a half cosine
            group["lr"] = 1e-3 * min(1.0, step / 100) * (1 + math.cos(math.pi * step / steps)) / 2
        images, numbers = draw(step)
        pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        classes = torch.from_numpy(numbers).to(device).long() if has_classes else None
        random = torch.Generator().manual_seed(step)
        loss = compute_loss(model, scheduler, pixels.contiguous(), classes, random)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        total += loss.detach()  # read only where it is printed: a GPU would wait for it
        if (step + 1) % save_every == 0 or step + 1 == steps:
            done, spent = step + 1 - first, time.monotonic() - started
            left = (steps - step - 1) * spent / done
            aside = state.with_suffix(".part")
            torch.save({"step": step + 1, **{k: v.state_dict() for k, v in parts.items()}}, aside)
            aside.replace(state)
            print(
                f"step {step + 1} of {steps}: loss {total.item() / done:.4f}, {left:.0f} s left",
                flush=True,
            )
    diffusers.DDPMPipeline(average.module, scheduler).save_pretrained(output)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", help="pipeline whose generator draws the images")
    source.add_argument("--data", help="public images")
    parser.add_argument("--output", type=expand_home, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--layers", type=int, default=1, help="of each resolution")
    parser.add_argument("--save-every", type=int, default=250, metavar="STEPS")
    images = parser.add_argument_group("with --data")
    images.add_argument("--image-size", type=int, default=32)
    images.add_argument("--channels", type=int, choices=[1, 3], default=3)
    images.add_argument("--label-column", default="label")
    images.add_argument("--classes", action="store_true", help="learn the images' classes, too")
    images.add_argument("--flip", action="store_true", help="mirror half of the images")
    images.add_argument("--cache", help="folder for decoded images (generator.cache)")
    given = parser.parse_args()
    try:
        if given.config:
            config = Config.from_yaml(given.config)
            draw, shape, classes = draw_from_generator(config, given.batch_size)
        else:
            options = NearestImageOptions(
                data=given.data,
                image_size=given.image_size,
                channels=given.channels,
                label_column=given.label_column if given.classes else None,
                cache=given.cache,
            )
            draw, shape, classes = draw_from_images(options, given.batch_size, given.flip)
        conditional = given.config or given.classes
        torch.manual_seed(0)
        model = make_network(
            shape, len(classes) if conditional else None, given.width, given.layers
        )
        given.output.mkdir(parents=True, exist_ok=True)
        if conditional:
            (given.output / "classes.json").write_text(json.dumps(classes), encoding="utf-8")
        train(draw, model, given.output, steps=given.steps, save_every=given.save_every)
    except InputError as error:
        parser.error(str(error))
    print(f"saved       {given.output}")


if __name__ == "__main__":
    main()
