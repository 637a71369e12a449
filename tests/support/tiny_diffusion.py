"""Tiny Stable Diffusion checkpoints with random weights, written in seconds without a network,
and a generator on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pe_ray.components.generators.diffusers_generator import Diffusers, DiffusersOptions

NAMES = ("cat", "dog", "owl")
MAX_TOKENS = 24
SCALE = 4  # image pixels per latent, a side


def make_clip_tokenizer(folder: Path) -> Any:
    """A CLIP tokenizer of letters, digits and spaces alone: one token a character."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=MAX_TOKENS
    )


def make_clip_encoder(vocabulary: int, *, projected: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=16,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
    return CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)


def _unet(**options: Any) -> Any:
    from diffusers import UNet2DConditionModel

    defaults: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": 16,
    }
    return UNet2DConditionModel(**{**defaults, **options})


def make_vae(**options: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        layers_per_block=1,
        **{"latent_channels": 4, **options},
    )


def save_pipeline(folder: Path, kind: str, seed: int = 0) -> str:
    """Write a checkpoint of `kind` to `folder`; returns the folder.

    sd: Stable Diffusion 1 with DDIM; ancestral and lcm: the same with schedulers that draw noise
    at every step; consistency: a latent consistency model; xl: SDXL; checked: with a safety
    checker; sde: with a scheduler whose noise ignores generators.
    """
    import diffusers
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor

    torch.manual_seed(seed)
    tokenizer = make_clip_tokenizer(folder / "tokenizer")
    noise = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    schedulers = {
        "ancestral": diffusers.EulerAncestralDiscreteScheduler,
        "lcm": diffusers.LCMScheduler,
        "consistency": diffusers.LCMScheduler,
        "xl": diffusers.EulerDiscreteScheduler,
    }
    parts: dict[str, Any] = {
        "vae": make_vae(),
        "text_encoder": make_clip_encoder(len(tokenizer), projected=False),
        "tokenizer": tokenizer,
        "scheduler": schedulers.get(kind, diffusers.DDIMScheduler)(**noise),
    }
    if kind == "xl":
        unet = _unet(
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + 16,
            cross_attention_dim=32,
        )
        made = diffusers.StableDiffusionXLPipeline(
            **parts,
            text_encoder_2=make_clip_encoder(len(tokenizer), projected=True),
            tokenizer_2=tokenizer,
            unet=unet,
        )
    else:
        made_of = diffusers.StableDiffusionPipeline
        if kind == "consistency":
            made_of = diffusers.LatentConsistencyModelPipeline
        parts["safety_checker"] = parts["feature_extractor"] = None
        if kind == "checked":
            from diffusers.pipelines.stable_diffusion.safety_checker import (
                StableDiffusionSafetyChecker,
            )

            vision = {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 32,
                "patch_size": 16,
                "projection_dim": 16,
            }
            parts["safety_checker"] = StableDiffusionSafetyChecker(
                CLIPConfig(vision_config=vision, projection_dim=16)
            )
            parts["feature_extractor"] = CLIPImageProcessor(
                size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
            )
        unet = _unet(time_cond_proj_dim=8 if kind == "consistency" else None)
        made = made_of(**parts, unet=unet, requires_safety_checker=False)
    made.save_pretrained(folder)
    return str(folder)


def generator(checkpoint: str, **options: Any) -> Diffusers:
    small = {"image_size": 32, "random": {"steps": 3}, "vary": {"steps": 4}}
    return Diffusers(DiffusersOptions(checkpoint=checkpoint, **{**small, **options}), NAMES)
