"""Tiny diffusers pipelines with random weights, made without a network. Imports torch.

They draw noise, but have the parts, shapes and calls of the real ones. CLIP and T5 read texts one
token a letter, Qwen's tokenizer one a byte.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

CLIP_TOKENS = 512  # as the letters of a prompt are tokens
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}: {{ message.content }}{% endfor %}"
)
_TEXT: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 4096,
}
_NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def make_clip_tokenizer(folder: Path, max_tokens: int = CLIP_TOKENS) -> Any:
    """Return a CLIP tokenizer of letters, digits and commas; its files are put into `folder`."""
    folder.mkdir(parents=True)
    letters = string.ascii_lowercase + string.digits + ","
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=max_tokens
    )


def make_clip_encoder(tokenizer: Any, *, projected: bool) -> Any:
    """Return a text encoder for that tokenizer."""
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=len(tokenizer) - 2,
        eos_token_id=len(tokenizer) - 1,
        pad_token_id=len(tokenizer) - 1,
    )
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return kind(config)


def make_unet(**options: Any) -> Any:
    """Return the UNet of Stable Diffusion, or what `options` make of it."""
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
    return diffusers.UNet2DConditionModel(**{**defaults, **options})


def _vae_blocks() -> dict[str, Any]:
    return {
        "block_out_channels": (8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "norm_num_groups": 4,
        "layers_per_block": 1,
    }


def make_vae(**options: Any) -> Any:
    """Return a VAE of 4 latent channels with 4 pixels a side in each latent."""
    return diffusers.AutoencoderKL(**_vae_blocks(), **{"latent_channels": 4, **options})


def _byte_tokenizer() -> Any:
    from tokenizers.pre_tokenizers import ByteLevel

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    special += ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"]
    words = [*special, *sorted(ByteLevel.alphabet())]
    return transformers.Qwen2Tokenizer(
        vocab={word: n for n, word in enumerate(words)},
        merges=[],
        chat_template=_CHAT,
        additional_special_tokens=special[1:],
    )


def _t5(width: int) -> tuple[Any, Any]:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_lowercase, *string.digits, ","]
    tokenizer = transformers.T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0)
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    return tokenizer, transformers.T5EncoderModel(config)


def _qwen3(kind: Any, num_layers: int, tokenizer: Any) -> Any:
    return kind(
        transformers.Qwen3Config(**_TEXT, vocab_size=len(tokenizer), num_hidden_layers=num_layers)
    )


def make_stable_diffusion(folder: Path) -> dict[str, Any]:
    """Return Stable Diffusion 1's parts."""
    tokenizer = make_clip_tokenizer(folder / "tokenizer")
    return {
        "vae": make_vae(),
        "text_encoder": make_clip_encoder(tokenizer, projected=False),
        "tokenizer": tokenizer,
        "scheduler": diffusers.DDIMScheduler(**_NOISE),
        "unet": make_unet(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def make_consistency(folder: Path) -> dict[str, Any]:
    """Return the parts of a latent consistency model."""
    return make_stable_diffusion(folder) | {
        "unet": make_unet(time_cond_proj_dim=8),
        "scheduler": diffusers.LCMScheduler(**_NOISE),
    }


def make_xl(folder: Path) -> dict[str, Any]:
    """Return Stable Diffusion XL's parts."""
    tokenizer = make_clip_tokenizer(folder / "tokenizer")
    return {
        "vae": make_vae(),
        "text_encoder": make_clip_encoder(tokenizer, projected=False),
        "tokenizer": tokenizer,
        "text_encoder_2": make_clip_encoder(tokenizer, projected=True),
        "tokenizer_2": tokenizer,
        "scheduler": diffusers.EulerDiscreteScheduler(**_NOISE),
        "unet": make_unet(
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + 16,
            cross_attention_dim=32,
        ),
    }


def make_sd3(folder: Path) -> dict[str, Any]:
    """Return Stable Diffusion 3's parts."""
    clip, (t5_tokenizer, t5) = make_clip_tokenizer(folder / "tokenizer"), _t5(width=32)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,  # as diffusers' inpainting asks
        out_channels=16,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=32,
    )
    return {
        "transformer": transformer,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "vae": make_vae(latent_channels=16, shift_factor=0.1),
        "text_encoder": make_clip_encoder(clip, projected=True),
        "tokenizer": clip,
        "text_encoder_2": make_clip_encoder(clip, projected=True),
        "tokenizer_2": clip,
        "text_encoder_3": t5,
        "tokenizer_3": t5_tokenizer,
    }


def make_flux(folder: Path) -> dict[str, Any]:
    """Return FLUX.1's parts, of Kontext too."""
    clip, (t5_tokenizer, t5) = make_clip_tokenizer(folder / "tokenizer"), _t5(width=16)
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    return {
        "transformer": transformer,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "vae": make_vae(shift_factor=0.1),
        "text_encoder": make_clip_encoder(clip, projected=False),
        "tokenizer": clip,
        "text_encoder_2": t5,
        "tokenizer_2": t5_tokenizer,
    }


def make_flux2_klein(folder: Path) -> dict[str, Any]:
    """Return FLUX.2 [klein]'s parts."""
    tokenizer = _byte_tokenizer()
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * 8,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    return {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "vae": diffusers.AutoencoderKLFlux2(
            **_vae_blocks(), latent_channels=4, use_quant_conv=False, use_post_quant_conv=False
        ),
        "text_encoder": _qwen3(transformers.Qwen3ForCausalLM, 27, tokenizer),
        "tokenizer": tokenizer,
        "transformer": transformer,
    }


def make_z_image(folder: Path) -> dict[str, Any]:
    """Return Z-Image's parts."""
    tokenizer = _byte_tokenizer()
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=8,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 32, 32],
    )
    return {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "vae": make_vae(shift_factor=0.1),
        "text_encoder": _qwen3(transformers.Qwen3Model, 2, tokenizer),
        "tokenizer": tokenizer,
        "transformer": transformer,
    }


def make_qwen_image(folder: Path, halvings: int = 2) -> dict[str, Any]:
    """Return Qwen-Image's parts; halvings: of an image's sides by the VAE."""
    tokenizer = _byte_tokenizer()
    config = transformers.Qwen2_5_VLConfig(
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        text_config={
            **_TEXT,
            "vocab_size": len(tokenizer),
            "num_hidden_layers": 1,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 0]},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_heads": 2,
            "out_hidden_size": 8,
        },
    )
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(8, 4, 4),
    )
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1] * (halvings + 1),
        num_res_blocks=1,
        temperal_downsample=[False] * (halvings - 1) + [True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "vae": vae,
        "text_encoder": transformers.Qwen2_5_VLForConditionalGeneration(config),
        "tokenizer": tokenizer,
        "transformer": transformer,
    }


def make_qwen_image_edit(folder: Path) -> dict[str, Any]:
    """Return Qwen-Image-Edit's parts: the prompt's encoder sees the image."""
    parts = make_qwen_image(folder, halvings=5)  # as the pipeline enlarges images to 1024x1024
    sides = {"min_pixels": 28 * 28, "max_pixels": 56 * 56}
    processor = transformers.Qwen2VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessorPil(**sides),
        video_processor=transformers.Qwen2VLVideoProcessor(),
        tokenizer=parts["tokenizer"],
        chat_template=_CHAT,
    )
    return parts | {"processor": processor}


def make_sana(folder: Path) -> dict[str, Any]:
    """Return Sana's parts."""
    tokenizer = _byte_tokenizer()
    sides: dict[str, Any] = {}
    for side in ("encoder", "decoder"):
        sides |= {
            f"{side}_block_types": "ResBlock",
            f"{side}_block_out_channels": (4,) * 6,
            f"{side}_layers_per_block": (1,) * 6,
            f"{side}_qkv_multiscales": ((),) * 6,
        }
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=32,
        patch_size=1,
    )
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        **sides,
    )
    config = transformers.Gemma2Config(**_TEXT, vocab_size=len(tokenizer), num_hidden_layers=1)
    return {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "vae": vae,
        "text_encoder": transformers.Gemma2Model(config),
        "tokenizer": tokenizer,
        "transformer": transformer,
    }


PIPELINES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "StableDiffusionPipeline": make_stable_diffusion,
    "LatentConsistencyModelPipeline": make_consistency,
    "StableDiffusionXLPipeline": make_xl,
    "StableDiffusion3Pipeline": make_sd3,
    "FluxPipeline": make_flux,
    "FluxKontextPipeline": make_flux,
    "Flux2KleinPipeline": make_flux2_klein,
    "ZImagePipeline": make_z_image,
    "QwenImagePipeline": make_qwen_image,
    "QwenImageEditPipeline": make_qwen_image_edit,
    "SanaPipeline": make_sana,
}
"""diffusers' class -> what makes its parts; some put files into a folder."""


def save_pipeline(folder: Path, pipeline_class: str, seed: int = 0, **parts: Any) -> str:
    """Write a tiny pipeline of a class in PIPELINES, with `parts` in place of its own."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(seed)
    made = PIPELINES[pipeline_class](folder) | parts
    getattr(diffusers, pipeline_class)(**made).save_pretrained(folder)
    return str(folder)
