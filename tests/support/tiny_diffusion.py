"""Tiny diffusers checkpoints by kind, written in seconds without a network, and a generator on
them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pe_ray.components.generators.diffusers_generator import Diffusers, DiffusersOptions

NAMES = ("cat", "dog", "owl")
MAX_TOKENS = 24  # of CLIP's tokenizer, so that a sentence is too long
SCALE = 4  # image pixels per latent, a side

FAMILIES = {
    "sd3": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
    "kontext": "FluxKontextPipeline",
    "flux2_klein": "Flux2KleinPipeline",
    "z_image": "ZImagePipeline",
    "qwen_image": "QwenImagePipeline",
    "sana": "SanaPipeline",
    "xl": "StableDiffusionXLPipeline",
    "consistency": "LatentConsistencyModelPipeline",
}
"""Kind -> diffusers' class; others are Stable Diffusion 1."""


def save_pipeline(folder: Path, kind: str, seed: int = 0) -> str:
    """Write a checkpoint of `kind` to `folder`; returns the folder.

    sd: Stable Diffusion 1 with DDIM; ancestral and lcm: the same with schedulers that draw noise
    at every step; checked: with a safety checker.
    """
    import diffusers

    from pe_ray.components.generators import tiny_pipelines

    noise = tiny_pipelines._NOISE
    parts: dict[str, Any] = {}
    if kind == "ancestral":
        parts["scheduler"] = diffusers.EulerAncestralDiscreteScheduler(**noise)
    elif kind == "lcm":
        parts["scheduler"] = diffusers.LCMScheduler(**noise)
    elif kind == "checked":
        parts = _make_checker()
    if kind not in FAMILIES or kind in ("xl", "consistency"):
        tokenizer = tiny_pipelines.make_clip_tokenizer(folder / "short", MAX_TOKENS)
        encoder = tiny_pipelines.make_clip_encoder
        parts |= {"tokenizer": tokenizer, "text_encoder": encoder(tokenizer, projected=False)}
        if kind == "xl":
            second = encoder(tokenizer, projected=True)
            parts |= {"tokenizer_2": tokenizer, "text_encoder_2": second}
    name = FAMILIES.get(kind, "StableDiffusionPipeline")
    return tiny_pipelines.save_pipeline(folder, name, seed, **parts)


def _make_checker() -> dict[str, Any]:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
        "projection_dim": 16,
    }
    sides = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    return {
        "safety_checker": StableDiffusionSafetyChecker(
            CLIPConfig(vision_config=vision, projection_dim=16)
        ),
        "feature_extractor": CLIPImageProcessor(**sides),
    }


def generator(checkpoint: str, **options: Any) -> Diffusers:
    small = {"image_size": 32, "random": {"steps": 3}, "vary": {"steps": 4}}
    return Diffusers(DiffusersOptions(checkpoint=checkpoint, **{**small, **options}), NAMES)
