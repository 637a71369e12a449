"""CLIP and DINOv2: the originals' preprocessing and features, and checkpoints that don't fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_networks import images, load_embedder, save_clip, save_dinov2

from pe_ray import InputError
from pe_ray.components.embedders.transformers_vision import ClipOptions, Dinov2Options
from pe_ray.values import ImageShape

ANY = ImageShape(height=1, width=1, channels=1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """kind -> folder of a tiny checkpoint."""
    folder = tmp_path_factory.mktemp("networks")
    clip, dinov2 = save_clip(folder / "clip"), save_dinov2(folder / "dinov2")
    return {"clip": str(clip), "dinov2": str(dinov2)}


def test_clip_gives_the_image_features_of_the_whole_model(
    saved: dict[str, str],
) -> None:
    from transformers import CLIPImageProcessorPil, CLIPModel

    folder, batch = saved["clip"], images(5, 30, 45, 3)
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    pixels = processor([Image.fromarray(image) for image in batch], return_tensors="pt")
    model = CLIPModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        pooled = model.vision_model(**pixels).pooler_output
        expected = model.visual_projection(pooled).numpy()
    found = load_embedder("clip", checkpoint=folder).embed(batch)
    assert found.shape == (5, ClipOptions(checkpoint=folder).dim(ANY)) == (5, 24)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_vision_tower_alone_is_enough_for_clip(saved: dict[str, str], tmp_path: Path) -> None:
    from transformers import CLIPVisionModelWithProjection

    whole = save_clip(tmp_path / "whole", projection_dim=512)  # the default, that towers state too
    CLIPVisionModelWithProjection.from_pretrained(whole).save_pretrained(tmp_path / "tower")
    settings = (whole / "preprocessor_config.json").read_text()
    (tmp_path / "tower" / "preprocessor_config.json").write_text(settings)
    batch = images(3, 32, 32, 3)
    tower = load_embedder("clip", checkpoint=str(tmp_path / "tower")).embed(batch)
    assert np.array_equal(tower, load_embedder("clip", checkpoint=str(whole)).embed(batch))


def test_dinov2_gives_the_cls_token(saved: dict[str, str]) -> None:
    from transformers import BitImageProcessorPil, Dinov2Model

    folder, batch = saved["dinov2"], images(5, 30, 45, 3)
    processor = BitImageProcessorPil.from_pretrained(folder)
    pixels = processor([Image.fromarray(image) for image in batch], return_tensors="pt")
    with torch.inference_mode():
        model = Dinov2Model.from_pretrained(folder).eval()
        expected = model(**pixels).last_hidden_state[:, 0].numpy()
    found = load_embedder("dinov2", checkpoint=folder).embed(batch)
    assert found.shape == (5, Dinov2Options(checkpoint=folder).dim(ANY)) == (5, 32)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", ["clip", "dinov2"])
def test_half_precision_is_near_and_not_the_same(
    saved: dict[str, str], kind: str, precision: str
) -> None:
    batch = images(4, 32, 32, 3)
    exact = load_embedder(kind, checkpoint=saved[kind]).embed(batch)
    half = load_embedder(kind, checkpoint=saved[kind], precision=precision).embed(batch)
    assert half.dtype == np.float32
    assert 0 < np.abs(half - exact).max() < 0.05 * np.abs(exact).max()


def test_a_generators_tf32_does_not_reach_an_embedding(
    saved: dict[str, str],
) -> None:
    embedder, seen = load_embedder("clip", checkpoint=saved["clip"]), []
    spied = embedder._network.register_forward_hook(  # type: ignore[attr-defined]
        lambda *_: seen.append(torch.get_float32_matmul_precision())
    )
    torch.set_float32_matmul_precision("high")
    try:
        embedder.embed(images(1, 8, 8, 3))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
        spied.remove()
    assert seen == ["highest"]


def test_sizes_left_out_of_a_configuration_are_transformers_defaults(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPVisionConfig, Dinov2Config

    for options, config, size in (
        (ClipOptions, CLIPConfig(), "projection_dim"),
        (ClipOptions, CLIPVisionConfig(), "projection_dim"),
        (Dinov2Options, Dinov2Config(), "hidden_size"),
    ):
        file = tmp_path / "config.json"
        file.write_text(json.dumps({"model_type": config.model_type}))
        assert options(checkpoint=str(tmp_path)).dim(ANY) == getattr(config, size)


def test_checkpoints_that_do_not_fit_are_refused(
    saved: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"embedder\.checkpoint: .*'dinov2'"):
        load_embedder("clip", checkpoint=saved["dinov2"])
    with pytest.raises(InputError, match=r"embedder\.checkpoint"):
        load_embedder("clip", checkpoint=str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("no/such", "no such/folder/anywhere"):
        with pytest.raises(InputError, match=rf"embedder\.checkpoint: {name}"):
            load_embedder("dinov2", checkpoint=name)

    folder = save_dinov2(tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"embedder\.checkpoint: .*safetensors"):
        load_embedder("dinov2", checkpoint=str(folder))
    lost = {name: value for name, value in weights.items() if name != "layernorm.weight"}
    save_file(lost, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"embedder\.checkpoint: .*layernorm\.weight"):
        load_embedder("dinov2", checkpoint=str(folder))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match=r"embedder\.checkpoint"):
        load_embedder("dinov2", checkpoint=str(folder))
