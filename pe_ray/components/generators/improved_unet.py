"""The UNet of improved diffusion (Nichol and Dhariwal 2021), under the names its checkpoints use.

diffusers' UNet2DModel can't stand in: it fixes the channels per attention head, this network the
number of heads. Imports torch: import this module where the network runs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from torch.nn import functional

_CHANNEL_MULT = {32: (1, 2, 2, 2), 64: (1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4)}


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


class _ResBlock(nn.Module):
    """Residual block; the embedding scales and shifts the output of the second norm."""

    def __init__(self, channels: int, out_channels: int, embedding: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            _norm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * out_channels))
        self.out_layers = nn.Sequential(
            _norm(out_channels),
            nn.SiLU(),
            nn.Identity(),  # dropout, in training
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.skip_connection = (
            nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.emb_layers(embedding)[:, :, None, None].chunk(2, dim=1)
        norm, *rest = self.out_layers
        h = norm(self.in_layers(x)) * (1 + scale) + shift
        for layer in rest:
            h = layer(h)
        out: Tensor = self.skip_connection(x) + h
        return out


class _Attention(nn.Module):
    """Self-attention over positions; `qkv` holds one head after another, each as q, k, v."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = _norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        heads = self.qkv(self.norm(flat)).unflatten(1, (self.num_heads, 3, -1)).transpose(-1, -2)
        # Fused attention kernels refuse other strides.
        query, key, value = (part.contiguous() for part in heads.unbind(2))
        mixed = functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = flat + self.proj_out(mixed.transpose(-1, -2).flatten(1, 2))
        return out.view_as(x)


def _run(block: nn.Module, x: Tensor, embedding: Tensor) -> Tensor:
    for layer in block.children():
        x = layer(x, embedding) if isinstance(layer, _ResBlock) else layer(x)
    return x


class ImprovedUNet(nn.Module):
    """Predicts the noise (and, with `learn_sigma`, variance) in an image: [n, 3 or 6, side, side].

    num_channels: of the first level, a multiple of 32. attention_resolutions: sides, in pixels, of
    the levels with attention. num_classes: None without classes. It has the scale-shift norm, as
    all published checkpoints do.
    """

    def __init__(
        self,
        *,
        image_size: int,
        num_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        num_heads: int,
        num_classes: int | None,
        learn_sigma: bool,
    ) -> None:
        super().__init__()
        self.num_channels = num_channels
        width = 4 * num_channels
        self.time_embed = nn.Sequential(
            nn.Linear(num_channels, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.label_emb = nn.Embedding(num_classes, width) if num_classes else None
        levels = [num_channels * factor for factor in _CHANNEL_MULT[image_size]]
        sides = [image_size >> level for level in range(len(levels))]

        def stage(side: int, channels: int, out_channels: int) -> list[nn.Module]:
            block: list[nn.Module] = [_ResBlock(channels, out_channels, width)]
            if side in attention_resolutions:
                block.append(_Attention(out_channels, num_heads))
            return block

        current = num_channels
        blocks: list[list[nn.Module]] = [[nn.Conv2d(3, current, 3, padding=1)]]
        skips = [current]
        for side, channels in zip(sides, levels, strict=True):
            for _ in range(num_res_blocks):
                blocks.append(stage(side, current, channels))
                current = channels
                skips.append(current)
            if side != sides[-1]:
                halve = nn.Conv2d(current, current, 3, stride=2, padding=1)
                blocks.append([nn.Sequential(OrderedDict(op=halve))])
                skips.append(current)
        self.input_blocks = nn.ModuleList(nn.Sequential(*block) for block in blocks)
        self.middle_block = nn.Sequential(
            _ResBlock(current, current, width),
            _Attention(current, num_heads),
            _ResBlock(current, current, width),
        )
        blocks = []
        for side, channels in zip(reversed(sides), reversed(levels), strict=True):
            for index in range(num_res_blocks + 1):
                block = stage(side, current + skips.pop(), channels)
                current = channels
                if side != sides[0] and index == num_res_blocks:
                    conv = nn.Conv2d(current, current, 3, padding=1)
                    block.append(
                        nn.Sequential(OrderedDict(up=nn.Upsample(scale_factor=2), conv=conv))
                    )
                blocks.append(block)
        self.output_blocks = nn.ModuleList(nn.Sequential(*block) for block in blocks)
        out_channels = 6 if learn_sigma else 3
        self.out = nn.Sequential(
            _norm(current), nn.SiLU(), nn.Conv2d(current, out_channels, 3, padding=1)
        )

    def forward(self, x: Tensor, timesteps: Tensor, classes: Tensor | None = None) -> Tensor:
        """x: [n, 3, side, side]; timesteps: [n]; classes: int [n] if class-conditional."""
        waves = get_timestep_embedding(
            timesteps, self.num_channels, flip_sin_to_cos=True, downscale_freq_shift=0
        )
        embedding = self.time_embed(waves.to(x.dtype))
        if self.label_emb is not None:
            embedding = embedding + self.label_emb(classes)
        passed = []
        for block in self.input_blocks:
            x = _run(block, x, embedding)
            passed.append(x)
        x = _run(self.middle_block, x, embedding)
        for block in self.output_blocks:
            x = _run(block, torch.cat([x, passed.pop()], dim=1), embedding)
        out: Tensor = self.out(x)
        return out
