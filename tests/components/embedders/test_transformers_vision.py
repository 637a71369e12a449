"""Vision networks of transformers: what each family gives, preprocessing, checkpoints that don't
fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_images
from tiny_networks import images, load_embedder, save_clip, save_dinov2, save_timm
from tiny_vision import FAMILIES, SIZE, WIDTH, save_vision

from pe_ray import InputError
from pe_ray.components.embedders.transformers_vision import (
    ClipOptions,
    TransformersOptions,
    prepare,
)
from pe_ray.values import ImageShape

ANY = ImageShape(height=1, width=1, channels=1)
PATCHES = 16
POOLED = {
    "clip": {"pooler": WIDTH, "cls": WIDTH, "mean": WIDTH, "projected": 24},
    "metaclip_2": {"pooler": WIDTH, "cls": WIDTH, "mean": WIDTH, "projected": 24},
    "siglip": {"pooler": WIDTH, "mean": WIDTH},
    "siglip2": {"pooler": WIDTH, "mean": WIDTH},
    "aimv2": {"pooler": WIDTH, "mean": WIDTH},
    "dinov2": {"pooler": WIDTH, "cls": WIDTH, "mean": WIDTH},
    "dinov2_with_registers": {"pooler": WIDTH, "cls": WIDTH, "mean": WIDTH},
    "dinov3_vit": {"pooler": WIDTH, "cls": WIDTH, "mean": WIDTH},
    "dinov3_convnext": {"pooler": WIDTH},
    "radio": {"pooler": 2 * WIDTH, "cls": WIDTH, "mean": WIDTH},
    "ijepa": {"mean": WIDTH},
}
"""Family -> what it gives and how many numbers that is."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """family -> folder of a tiny checkpoint."""
    folder = tmp_path_factory.mktemp("families")
    return {family: save_vision(folder / family, family) for family in FAMILIES}


def pixels_of(folder: Path, batch: np.ndarray) -> dict[str, torch.Tensor]:
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="torchvision")
    return dict(processor([Image.fromarray(image) for image in batch], return_tensors="pt"))


@pytest.mark.parametrize("family", POOLED)
def test_every_family_gives_what_its_own_model_does(family: str, folders: dict[str, Path]) -> None:
    batch, folder = images(3, 13, 10, 3), folders[family]
    model = FAMILIES[family][1].from_pretrained(folder).eval()
    tower = getattr(model, "vision_model", model)
    with torch.inference_mode():
        outputs = tower(**pixels_of(folder, batch), output_hidden_states=True)
        pooled = outputs.get("pooler_output", outputs.get("summary"))
        expected = {"pooler": pooled, "cls": outputs.last_hidden_state[:, 0]}
        # Class tokens and registers come first in all of them; SigLIP 2 has filled up none here.
        expected["mean"] = outputs.last_hidden_state[:, -PATCHES:].mean(1)
        if "projected" in POOLED[family]:
            expected["projected"] = model.visual_projection(pooled)
    for pooling in ("pooler", "cls", "mean", "projected"):
        given: dict[str, Any] = {"checkpoint": str(folder), "pooling": pooling}
        if pooling not in POOLED[family]:
            with pytest.raises(InputError, match=r"^embedder\.pooling: "):
                TransformersOptions(**given).dim(ANY)
            continue
        found = load_embedder("transformers", **given).embed(batch)
        dim = POOLED[family][pooling]
        assert found.shape == (3, dim)
        assert TransformersOptions(**given).dim(ANY) == dim
        if family == "siglip2" and pooling == "mean":  # 13x10 takes 20 patches at most, not 16
            continue
        wanted = expected[pooling].numpy()
        assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max(), pooling


def test_patches_that_fill_up_a_list_are_not_in_the_mean(folders: dict[str, Path]) -> None:
    batch, folder = images(3, 12, 40, 3), folders["siglip2"]
    pixels = pixels_of(folder, batch)
    num = int(pixels["pixel_attention_mask"][0].sum())
    assert num < pixels["pixel_attention_mask"].shape[1]
    model = transformers.Siglip2Model.from_pretrained(folder).eval()
    with torch.inference_mode():
        wanted = model.vision_model(**pixels).last_hidden_state[:, :num].mean(1).numpy()
    found = load_embedder("transformers", checkpoint=str(folder), pooling="mean").embed(batch)
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("family", ["dinov2_with_registers", "ijepa"])
def test_a_layer_is_the_output_of_a_block(family: str, folders: dict[str, Path]) -> None:
    batch, folder = images(2, 20, 20, 3), folders[family]
    seen: list[Any] = []
    model = FAMILIES[family][1].from_pretrained(folder).eval()
    blocks = next(part for part in model.modules() if isinstance(part, torch.nn.ModuleList))
    blocks[1].register_forward_hook(lambda *given: seen.append(given[2]))
    with torch.inference_mode():
        model(**pixels_of(folder, batch))
    (block,) = seen
    wanted = (block[0] if isinstance(block, tuple) else block)[:, -PATCHES:].mean(1).numpy()
    given = {"checkpoint": str(folder), "pooling": "mean"}
    found = load_embedder("transformers", **given, layer=2).embed(batch)
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()
    with pytest.raises(InputError, match=r"^embedder\.layer: "):
        TransformersOptions(**given, layer=4).dim(ANY)
    with pytest.raises(ValueError, match="layer"):
        TransformersOptions(checkpoint=str(folder), layer=2)


@pytest.mark.parametrize("family", ["clip", "dinov2", "siglip"])
@pytest.mark.parametrize("side", [13, SIZE, 200])
def test_pixels_differ_from_pillows_by_one_level(
    family: str, side: int, folders: dict[str, Path]
) -> None:
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    batch = np.stack([np.asarray(photo.resize((side, side + 3))) for photo in photos])
    batch = np.concatenate([batch, images(2, side + 3, side, 3)])
    folder = folders[family]
    pillow = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    wanted = pillow([Image.fromarray(image) for image in batch], return_tensors="pt")
    options = TransformersOptions(checkpoint=str(folder))
    found = prepare(options.load_processor(), batch, torch.device("cpu"))["pixel_values"]
    std = torch.tensor(pillow.image_std)[:, None, None]
    levels = (found - wanted["pixel_values"]).abs() * std * 255
    assert levels.max() < 1.01


def test_a_vision_tower_alone_is_enough_for_clip(tmp_path: Path) -> None:
    from transformers import CLIPVisionModelWithProjection

    whole = save_clip(tmp_path / "whole", projection_dim=512)  # the default, that towers state too
    CLIPVisionModelWithProjection.from_pretrained(whole).save_pretrained(tmp_path / "tower")
    settings = (whole / "preprocessor_config.json").read_text()
    (tmp_path / "tower" / "preprocessor_config.json").write_text(settings)
    batch = images(3, 32, 32, 3)
    tower = load_embedder("clip", checkpoint=str(tmp_path / "tower")).embed(batch)
    assert np.array_equal(tower, load_embedder("clip", checkpoint=str(whole)).embed(batch))


def test_clip_and_dinov2_are_transformers_with_other_defaults(folders: dict[str, Path]) -> None:
    batch = images(2, 20, 20, 3)
    for kind, pooling in (("clip", "projected"), ("dinov2", "pooler")):
        checkpoint = str(folders[kind])
        found = load_embedder(kind, checkpoint=checkpoint).embed(batch)
        general = load_embedder("transformers", checkpoint=checkpoint, pooling=pooling)
        assert np.array_equal(found, general.embed(batch))


def test_weights_of_a_file_take_the_checkpoints_place(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder, batch = str(folders["dinov2"]), images(2, 20, 20, 3)
    weights = load_file(Path(folder) / "model.safetensors")
    tuned = {name: value + 0.01 for name, value in weights.items()}
    save_file(tuned, tmp_path / "tuned.safetensors")
    torch.save(tuned, tmp_path / "tuned.pth")
    own = load_embedder("dinov2", checkpoint=folder).embed(batch)
    found = [
        load_embedder("dinov2", checkpoint=folder, weights=str(tmp_path / name)).embed(batch)
        for name in ("tuned.safetensors", "tuned.pth")
    ]
    assert np.array_equal(*found)
    assert not np.allclose(found[0], own)
    tuned.pop("layernorm.weight")
    save_file(tuned, tmp_path / "tuned.safetensors")
    with pytest.raises(InputError, match=r"^embedder\.weights: .*layernorm\.weight"):
        load_embedder("dinov2", checkpoint=folder, weights=str(tmp_path / "tuned.safetensors"))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", ["clip", "dinov2"])
def test_half_precision_is_near_and_not_the_same(
    folders: dict[str, Path], kind: str, precision: str
) -> None:
    batch, checkpoint = images(4, 32, 32, 3), str(folders[kind])
    exact = load_embedder(kind, checkpoint=checkpoint).embed(batch)
    half = load_embedder(kind, checkpoint=checkpoint, precision=precision).embed(batch)
    assert half.dtype == np.float32
    assert 0 < np.abs(half - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dinov2", "timm"])
def test_a_compiled_network_gives_the_same_up_to_rounding(
    kind: str, traced: None, folders: dict[str, Path], tmp_path: Path
) -> None:
    from torch._dynamo.utils import counters

    options: dict[str, Any] = {"checkpoint": str(folders["dinov2"])}
    if kind == "timm":
        weights = str(save_timm(tmp_path, "test_vit"))
        options = {"model": "test_vit", "weights": weights, "size": 32, "pooling": "mean"}
    batch = images(3, 32, 32, 3)
    plain = load_embedder(kind, **options).embed(batch)
    counters.clear()
    compiled = load_embedder(kind, **options, compile=True).embed(batch)
    assert counters["frames"]["ok"] > 0
    assert np.abs(compiled - plain).max() < 1e-4 * np.abs(plain).max()


def test_a_generators_tf32_does_not_reach_an_embedding(folders: dict[str, Path]) -> None:
    embedder, seen = load_embedder("clip", checkpoint=str(folders["clip"])), []
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
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPVisionConfig, Dinov2Config

    CLIPImageProcessor().save_pretrained(tmp_path)
    for options, config, size in (
        (ClipOptions, CLIPConfig(), "projection_dim"),
        (ClipOptions, CLIPVisionConfig(), "projection_dim"),
        (TransformersOptions, Dinov2Config(), "hidden_size"),
    ):
        file = tmp_path / "config.json"
        file.write_text(json.dumps({"model_type": config.model_type}))
        assert options(checkpoint=str(tmp_path)).dim(ANY) == getattr(config, size)


def test_checkpoints_that_do_not_fit_are_refused(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"^embedder\.pooling: "):
        load_embedder("clip", checkpoint=str(folders["dinov2"]))
    with pytest.raises(InputError, match=r"^embedder\.checkpoint: "):
        load_embedder("clip", checkpoint=str(tmp_path))
    # It gives other numbers each time.
    with pytest.raises(InputError, match=r"^embedder\.checkpoint: "):
        load_embedder("transformers", checkpoint=str(folders["vit_mae"]), pooling="mean")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("no/such", "no such/folder/anywhere"):
        with pytest.raises(InputError, match=rf"embedder\.checkpoint: {name}"):
            load_embedder("dinov2", checkpoint=name)

    text = tmp_path / "text"
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}
    transformers.BertConfig(**sizes, intermediate_size=8).save_pretrained(text)
    transformers.CLIPImageProcessor().save_pretrained(text)
    with pytest.raises(InputError, match=r"^embedder\.checkpoint: .*'bert'"):
        TransformersOptions(checkpoint=str(text)).dim(ANY)

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
