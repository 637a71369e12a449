"""Tiny vision networks of many families, with random weights, saved as those on the hub are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf

SIZE, PATCH, WIDTH = 32, 8, 16
_TOWER: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": PATCH,
}
_MLP = {"intermediate_size": 32}
_TEXT = {
    **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50},
    **_MLP,
}
FAMILIES: dict[str, tuple[Any, Any, str]] = {
    "clip": (
        lambda: hf.CLIPConfig(projection_dim=24, vision_config=_TOWER | _MLP, text_config=_TEXT),
        hf.CLIPModel,
        "CLIPImageProcessor",
    ),
    "metaclip_2": (
        lambda: hf.MetaClip2Config(
            projection_dim=24, vision_config=_TOWER | _MLP, text_config=_TEXT
        ),
        hf.MetaClip2Model,
        "CLIPImageProcessor",
    ),
    "siglip": (
        lambda: hf.SiglipConfig(vision_config=_TOWER | _MLP, text_config=_TEXT),
        hf.SiglipModel,
        "SiglipImageProcessor",
    ),
    "siglip2": (
        lambda: hf.Siglip2Config(
            vision_config={
                **{name: value for name, value in _TOWER.items() if name != "image_size"},
                **_MLP,
                "num_patches": 16,
            },
            text_config=_TEXT,
        ),
        hf.Siglip2Model,
        "Siglip2ImageProcessor",
    ),
    "aimv2": (
        lambda: hf.Aimv2VisionConfig(**_TOWER, **_MLP),
        hf.Aimv2VisionModel,
        "CLIPImageProcessor",
    ),
    "dinov2": (lambda: hf.Dinov2Config(**_TOWER), hf.Dinov2Model, "BitImageProcessor"),
    "dinov2_with_registers": (
        lambda: hf.Dinov2WithRegistersConfig(**_TOWER, num_register_tokens=2),
        hf.Dinov2WithRegistersModel,
        "BitImageProcessor",
    ),
    "dinov3_vit": (
        lambda: hf.DINOv3ViTConfig(**_TOWER, **_MLP, num_register_tokens=4),
        hf.DINOv3ViTModel,
        "DINOv3ViTImageProcessor",
    ),
    "dinov3_convnext": (
        lambda: hf.DINOv3ConvNextConfig(hidden_sizes=[8, 8, 8, WIDTH], depths=[1, 1, 1, 1]),
        hf.DINOv3ConvNextModel,
        "DINOv3ViTImageProcessor",
    ),
    "radio": (
        lambda: hf.RadioConfig(**_TOWER, max_img_size=64),
        hf.RadioModel,
        "CLIPImageProcessor",
    ),
    "ijepa": (lambda: hf.IJepaConfig(**_TOWER, **_MLP), hf.IJepaModel, "ViTImageProcessor"),
    "vit_mae": (
        lambda: hf.ViTMAEConfig(**_TOWER, **_MLP),
        hf.ViTMAEModel,
        "ViTImageProcessor",
    ),
}
"""Family -> its configuration, its class as on the hub, its processor."""

_SIZES: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": {
        "size": {"shortest_edge": SIZE},
        "crop_size": {"height": SIZE, "width": SIZE},
    },
    "BitImageProcessor": {
        "size": {"shortest_edge": SIZE + 4},
        "crop_size": {"height": SIZE, "width": SIZE},
    },
    "Siglip2ImageProcessor": {"patch_size": PATCH, "max_num_patches": 16},
}


def save_vision(folder: Path, family: str) -> Path:
    config, network, processor = FAMILIES[family]
    torch.manual_seed(0)
    network(config()).save_pretrained(folder)
    sizes = _SIZES.get(processor, {"size": {"height": SIZE, "width": SIZE}})
    if family == "radio":  # the network itself subtracts the mean
        sizes = {**sizes, "do_normalize": False}
    getattr(hf, processor)(**sizes).save_pretrained(folder)
    return folder
