"""Tiny networks with random weights, saved as the real ones are. Imports torch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch


class _Layers(torch.nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 16, 9, stride=4)
        self.linear = torch.nn.Linear(16, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.linear(torch.relu(self.convolution(x)).mean((2, 3)))
        return made[:, :, None, None]


class _Inception(torch.nn.Module):
    """What clean-fid uses of inception-2015-12-05.pt: `layers`, for images in [-1, 1]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = _Layers(dim)

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        made: torch.Tensor = self.layers((x - 128) / 128)
        return made


def save_inception(folder: Path, dim: int = 2048) -> Path:
    """Write a stand-in of Inception under the name that clean-fid looks for; return the file."""
    torch.manual_seed(0)
    file = folder / "inception-2015-12-05.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the real file is such an archive, too
        torch.jit.script(_Inception(dim)).save(str(file))
    return file


def save_vision_network(model_type: str, folder: Path, dim: int = 24) -> Path:
    """Write a network of transformers' type `clip` or `dinov2` with its image processor.

    dim: of CLIP's projection; DINOv2's features have 32 numbers.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    if model_type == "dinov2":
        dinov2 = transformers.Dinov2Config(**tower, image_size=28, patch_size=14)
        network, kind = transformers.Dinov2Model(dinov2), transformers.BitImageProcessorPil
        side = 28
    else:  # both towers, as on the hub; the projection's size is stated outside the towers
        text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        clip = transformers.CLIPConfig(
            projection_dim=dim,
            text_config=text
            | {"vocab_size": 50, "intermediate_size": 16, "bos_token_id": 0, "eos_token_id": 1},
            vision_config=tower | {"image_size": 32, "patch_size": 8, "intermediate_size": 64},
        )
        network, kind = transformers.CLIPModel(clip), transformers.CLIPImageProcessorPil
        side = 32
    network.save_pretrained(folder)
    crop = {"height": side, "width": side}
    kind(size={"shortest_edge": 32}, crop_size=crop).save_pretrained(folder)
    return folder


def save_timm(folder: Path, name: str = "test_resnet", num_classes: int = 7) -> Path:
    """Write weights of the network of timm's own tests that is most like `name`.

    Returns the file, whose stem is the network's name. They are written as timm's trainers do.
    """
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    tests: list[Any] = timm.list_models("test_*")
    words = [test for test in tests if test.split("_")[1].rstrip("0123456789") in name.lower()]
    chosen = name if name in tests else min(words, key=len, default="test_resnet")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{chosen}.safetensors"
    save_file(timm.create_model(chosen, num_classes=num_classes).state_dict(), file)
    return file
