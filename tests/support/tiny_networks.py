"""The package's tiny networks under the names of tests, one more, and embedders on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_ray import plugins
from pe_ray.components.embedders.tiny_networks import (
    save_inception,
    save_timm,
    save_vision_network,
)

__all__ = ["save_inception", "save_timm"]


def images(num: int, height: int, width: int, channels: int) -> NDArray[np.uint8]:
    shape = (num, height, width, channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def load_embedder(kind: str, **options: Any) -> plugins.Embedder:
    plugin = plugins.load("embedder", kind)
    embedder: plugins.Embedder = plugin(plugin.Options(**options))
    return embedder


def save_clip(folder: Path, projection_dim: int = 24) -> Path:
    return save_vision_network("clip", folder, projection_dim)


def save_dinov2(folder: Path) -> Path:
    return save_vision_network("dinov2", folder)


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
