"""Tiny networks with random weights, saved as the real ones are, and embedders on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from transformers import (
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
)

from pe_ray import plugins


def images(num: int, height: int, width: int, channels: int) -> NDArray[np.uint8]:
    shape = (num, height, width, channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def load_embedder(kind: str, **options: Any) -> plugins.Embedder:
    plugin = plugins.load("embedder", kind)
    embedder: plugins.Embedder = plugin(plugin.Options(**options))
    return embedder


def _tower(size: int, patch: int) -> dict[str, int]:
    return {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": size,
        "patch_size": patch,
    }


def save_clip(folder: Path, projection_dim: int = 24) -> Path:
    """Both towers, as on the hub; the projection's size is stated outside the towers."""
    torch.manual_seed(0)
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    config = CLIPConfig(
        projection_dim=projection_dim,
        text_config=text | {"intermediate_size": 16, "bos_token_id": 0, "eos_token_id": 1},
        vision_config=_tower(32, 8) | {"intermediate_size": 64},
    )
    CLIPModel(config).save_pretrained(folder)
    crop = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=crop).save_pretrained(folder)
    return folder


def save_dinov2(folder: Path) -> Path:
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**_tower(28, 14))).save_pretrained(folder)
    crop = {"height": 28, "width": 28}
    BitImageProcessorPil(size={"shortest_edge": 32}, crop_size=crop).save_pretrained(folder)
    return folder


class _Layers(torch.nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 16, 9, stride=4)
        self.linear = torch.nn.Linear(16, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.relu(self.convolution(x)).mean((2, 3)))[:, :, None, None]


class _Inception(torch.nn.Module):
    """What clean-fid uses of inception-2015-12-05.pt: `layers`, for images in [-1, 1]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = _Layers(dim)

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return self.layers((x - 128) / 128)


def save_inception(folder: Path, dim: int = 2048) -> Path:
    """The name of the file is the one that clean-fid looks for."""
    torch.manual_seed(0)
    file = folder / "inception-2015-12-05.pt"
    torch.jit.script(_Inception(dim)).save(str(file))
    return file


def save_timm(folder: Path, name: str = "test_resnet", num_classes: int = 7) -> Path:
    """Weights of one of timm's networks for tests, as its trainers write them."""
    import timm

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.safetensors"
    save_file(timm.create_model(name, num_classes=num_classes).state_dict(), file)
    return file


def save_onnx(file: Path, batch: int | str = "n", size: int = 8) -> Path:
    """Two outputs: `means`, the mean of each channel, and `mixed`, five sums of all pixels."""
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    weights = rng.standard_normal((3 * size * size, 5)).astype(np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixels"], ["means"]),
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["mixed"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [batch, 3, size, size])],
        [
            helper.make_tensor_value_info("means", TensorProto.FLOAT, [batch, 3, 1, 1]),
            helper.make_tensor_value_info("mixed", TensorProto.FLOAT, [batch, 5]),
        ],
        [numpy_helper.from_array(weights, "weights")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)
    return file
