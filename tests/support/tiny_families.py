"""Tiny random checkpoints of the families beyond Stable Diffusion 1 and XL, made without a network.

Each function returns a pipeline; `save_family` writes it. Texts are read one token a byte.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_diffusion import make_clip_encoder, make_clip_tokenizer, make_vae

_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}: {{ message.content }}{% endfor %}"
)
_TEXT: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 2048,
}


def _qwen_tokenizer() -> Any:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet())]
    return Qwen2Tokenizer(
        vocab={word: n for n, word in enumerate(words)}, merges=[], chat_template=_CHAT
    )


def _t5(width: int = 16) -> tuple[Any, Any]:
    import string

    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_lowercase, *string.digits, ","]
    tokenizer = T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    return tokenizer, T5EncoderModel(config)


def _qwen3(kind: str, num_layers: int, vocabulary: int) -> Any:
    import transformers

    config = transformers.Qwen3Config(**_TEXT, vocab_size=vocabulary, num_hidden_layers=num_layers)
    return getattr(transformers, kind)(config)


def _flow() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler()


def make_sd3(folder: Path) -> Any:
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    clip, (t5_tokenizer, t5) = make_clip_tokenizer(folder / "tokenizer"), _t5(width=32)
    transformer = SD3Transformer2DModel(
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
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=_flow(),
        vae=make_vae(latent_channels=16, shift_factor=0.1),
        text_encoder=make_clip_encoder(len(clip), projected=True),
        tokenizer=clip,
        text_encoder_2=make_clip_encoder(len(clip), projected=True),
        tokenizer_2=clip,
        text_encoder_3=t5,
        tokenizer_3=t5_tokenizer,
    )


def _flux_parts(folder: Path) -> dict[str, Any]:
    from diffusers import FluxTransformer2DModel

    clip, (t5_tokenizer, t5) = make_clip_tokenizer(folder / "tokenizer"), _t5()
    transformer = FluxTransformer2DModel(
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
        "scheduler": _flow(),
        "vae": make_vae(shift_factor=0.1),
        "text_encoder": make_clip_encoder(len(clip), projected=False),
        "tokenizer": clip,
        "text_encoder_2": t5,
        "tokenizer_2": t5_tokenizer,
    }


def make_flux(folder: Path) -> Any:
    from diffusers import FluxPipeline

    return FluxPipeline(**_flux_parts(folder))


def make_kontext(folder: Path) -> Any:
    from diffusers import FluxKontextPipeline

    return FluxKontextPipeline(**_flux_parts(folder))


def make_flux2_klein(folder: Path) -> Any:
    from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel

    tokenizer = _qwen_tokenizer()
    transformer = Flux2Transformer2DModel(
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
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return Flux2KleinPipeline(
        scheduler=_flow(),
        vae=vae,
        text_encoder=_qwen3("Qwen3ForCausalLM", 27, len(tokenizer)),
        tokenizer=tokenizer,
        transformer=transformer,
    )


def make_z_image(folder: Path) -> Any:
    from diffusers import ZImagePipeline, ZImageTransformer2DModel

    tokenizer = _qwen_tokenizer()
    transformer = ZImageTransformer2DModel(
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
    return ZImagePipeline(
        scheduler=_flow(),
        vae=make_vae(shift_factor=0.1),
        text_encoder=_qwen3("Qwen3Model", 2, len(tokenizer)),
        tokenizer=tokenizer,
        transformer=transformer,
    )


def make_qwen_image(folder: Path) -> Any:
    from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = _qwen_tokenizer()
    config = Qwen2_5_VLConfig(
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
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(8, 4, 4),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return QwenImagePipeline(
        scheduler=_flow(),
        vae=vae,
        text_encoder=Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=tokenizer,
        transformer=transformer,
    )


def make_sana(folder: Path) -> Any:
    from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    tokenizer = _qwen_tokenizer()
    sides: dict[str, Any] = {}
    for side in ("encoder", "decoder"):
        sides |= {
            f"{side}_block_types": "ResBlock",
            f"{side}_block_out_channels": (4,) * 6,
            f"{side}_layers_per_block": (1,) * 6,
            f"{side}_qkv_multiscales": ((),) * 6,
        }
    transformer = SanaTransformer2DModel(
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
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        **sides,
    )
    return SanaPipeline(
        scheduler=_flow(),
        vae=vae,
        text_encoder=Gemma2Model(
            Gemma2Config(**_TEXT, vocab_size=len(tokenizer), num_hidden_layers=1)
        ),
        tokenizer=tokenizer,
        transformer=transformer,
    )


FAMILIES: dict[str, Callable[[Path], Any]] = {
    "sd3": make_sd3,
    "flux": make_flux,
    "kontext": make_kontext,
    "flux2_klein": make_flux2_klein,
    "z_image": make_z_image,
    "qwen_image": make_qwen_image,
    "sana": make_sana,
}


def save_family(folder: Path, family: str) -> str:
    """Write a checkpoint of `family` to `folder`; returns the folder."""
    import torch

    torch.manual_seed(0)
    FAMILIES[family](folder).save_pretrained(folder)
    return str(folder)
