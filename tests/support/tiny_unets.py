"""Pixel diffusion checkpoints with random weights, small enough to run in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pe_ray.plugins.seeds import row_seeds

NAMES = ("cat", "dog")
LABELS = np.array([0, 1, 1, 0, 1], dtype=np.int32)
SEEDS = row_seeds(3, "random", 0, np.arange(5, dtype=np.int64))
STEPS = row_seeds(3, "variation", 1, np.arange(5, dtype=np.int64))

IMPROVED: dict[str, Any] = {
    "image_size": 32,
    "num_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": "8,4",
    "num_heads": 4,
    "class_cond": True,
    "learn_sigma": True,
    "diffusion_steps": 1000,
    "noise_schedule": "cosine",
    "timestep_respacing": "ddim5",
}
"""Options that describe the checkpoints of `save_improved`, but for `checkpoint`."""


def improved_weights(**changes: Any) -> dict[str, Any]:
    """Random weights by name, as improved diffusion saves them."""
    import torch

    from pe_ray.components.generators.improved_unet import ImprovedUNet

    options = {**IMPROVED, **changes}
    torch.manual_seed(0)
    unet = ImprovedUNet(
        image_size=options["image_size"],
        num_channels=options["num_channels"],
        num_res_blocks=options["num_res_blocks"],
        attention_resolutions=[int(part) for part in options["attention_resolutions"].split(",")],
        num_heads=options["num_heads"],
        num_classes=1000 if options["class_cond"] else None,
        learn_sigma=options["learn_sigma"],
    )
    return dict(unet.state_dict())


def save_improved(folder: Path, **changes: Any) -> dict[str, Any]:
    """Write a checkpoint; returns the options of a generator that reads it."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    torch.save(improved_weights(**changes), folder / "model.pt")
    return {**IMPROVED, **changes, "checkpoint": str(folder / "model.pt")}


def save_unet(
    folder: Path,
    *,
    scheduler: str = "DDPMScheduler",
    noise: dict[str, Any] | None = None,
    **unet: Any,
) -> str:
    """Write a pipeline with a UNet2DModel, RGB and 8x8 unless `unet` says otherwise."""
    import diffusers
    import torch

    torch.manual_seed(0)
    options: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    made = diffusers.UNet2DModel(**{**options, **unet})
    schedule = getattr(diffusers, scheduler)(**(noise or {}))
    diffusers.DDPMPipeline(unet=made, scheduler=schedule).save_pretrained(folder)
    return str(folder)
