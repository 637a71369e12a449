"""Networks in inference: chunks, channels, determinism, and what a GPU may round."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_networks import (
    images,
    load_embedder,
    save_clip,
    save_dinov2,
    save_inception,
    save_onnx,
    save_timm,
)
from tiny_vision import save_vision

from pe_ray.components import inference


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """kind -> options of a tiny network."""
    folder = tmp_path_factory.mktemp("networks")
    return {
        "inception": {"weights": str(save_inception(folder))},
        "clip": {"checkpoint": str(save_clip(folder / "clip"))},
        "dinov2": {"checkpoint": str(save_dinov2(folder / "dinov2"))},
        "transformers": {"checkpoint": str(save_vision(folder / "siglip", "siglip"))},
        "timm": {"model": "test_vit", "weights": str(save_timm(folder, "test_vit")), "size": 32},
        "onnx": {"file": str(save_onnx(folder / "tiny.onnx")), "size": 8, "output": "mixed"},
    }


KINDS = ["inception", "clip", "dinov2", "transformers", "timm", "onnx"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_embedding_is_the_same_in_any_batch(
    saved: dict[str, dict[str, Any]], kind: str, channels: int
) -> None:
    embedder = load_embedder(kind, **saved[kind])
    batch = images(40, 13, 10, channels)  # more than one forward pass
    whole = embedder.embed(batch)
    assert np.array_equal(embedder.embed(batch), whole)
    assert np.array_equal(load_embedder(kind, **saved[kind]).embed(batch), whole)
    for size in (1, 7, 33):
        rows = np.random.default_rng(size).permutation(40)[:size]
        assert np.array_equal(embedder.embed(batch[rows]), whole[rows])
    scale = np.abs(whole).max()
    assert np.abs(whole - whole.mean(axis=0)).max() > 1e-3 * scale  # images do matter
    assert embedder.embed(batch[:0]).shape == (0, whole.shape[1])


@pytest.mark.parametrize("kind", KINDS)
def test_grey_is_rgb_with_equal_channels(saved: dict[str, dict[str, Any]], kind: str) -> None:
    embedder, grey = load_embedder(kind, **saved[kind]), images(3, 40, 50, 1)
    assert np.array_equal(embedder.embed(grey), embedder.embed(grey.repeat(3, axis=3)))


@pytest.mark.parametrize(
    ("precision", "device", "allowed"),
    [
        ("fp32", "cuda", False),
        ("tf32", "cuda", True),
        ("bf16", "cuda", True),
        ("fp16", "cuda", True),
        ("tf32", "cpu", False),  # else a CPU may round as well
    ],
)
def test_tf32_is_for_gpus_and_only_where_the_precision_allows_it(
    precision: Any, device: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "pick_device", lambda: torch.device(device))
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    with inference.multiply_in(precision):
        assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
        assert torch.backends.cudnn.allow_tf32 == allowed
    assert before == (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision())
