"""Network embedders: the preprocessing and the features of the originals, and what is refused."""

from __future__ import annotations

import json
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_networks import save_clip, save_dinov2, save_inception

from pe_ray import InputError, plugins
from pe_ray.components.embedders.networks import ClipOptions, Dinov2Options, InceptionOptions
from pe_ray.values import ImageShape

ANY = ImageShape(height=1, width=1, channels=1)


def images(num: int, height: int, width: int, channels: int) -> NDArray[np.uint8]:
    shape = (num, height, width, channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """kind -> options of a tiny network."""
    folder = tmp_path_factory.mktemp("networks")
    return {
        "inception": {"weights": str(save_inception(folder))},
        "clip": {"checkpoint": str(save_clip(folder / "clip"))},
        "dinov2": {"checkpoint": str(save_dinov2(folder / "dinov2"))},
    }


def made(kind: str, **options: Any) -> plugins.Embedder:
    plugin = plugins.load("embedder", kind)
    embedder: plugins.Embedder = plugin(plugin.Options(**options))
    return embedder


KINDS = ["inception", "clip", "dinov2"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_embedding_hardly_depends_on_its_batch(
    saved: dict[str, dict[str, Any]], kind: str, channels: int
) -> None:
    embedder = made(kind, **saved[kind])
    batch = images(40, 13, 10, channels)  # more than one forward pass
    whole = embedder.embed(batch)
    assert np.array_equal(embedder.embed(batch), whole)
    assert np.array_equal(made(kind, **saved[kind]).embed(batch), whole)
    scale = np.abs(whole).max()
    for size in (1, 7):
        parts = [embedder.embed(batch[start : start + size]) for start in range(0, 40, size)]
        assert np.abs(np.concatenate(parts) - whole).max() < 3e-6 * scale
    assert np.abs(whole - whole.mean(axis=0)).max() > 1e-3 * scale  # images do matter
    assert embedder.embed(batch[:0]).shape == (0, whole.shape[1])


@pytest.mark.parametrize("kind", KINDS)
def test_grey_is_rgb_with_equal_channels(saved: dict[str, dict[str, Any]], kind: str) -> None:
    embedder, grey = made(kind, **saved[kind]), images(3, 40, 50, 1)
    assert np.array_equal(embedder.embed(grey), embedder.embed(grey.repeat(3, axis=3)))
    with pytest.raises(TypeError, match=r"\(3, 40, 50, 2\)"):
        embedder.embed(images(3, 40, 50, 2))


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (64, 48), (320, 301)])
def test_inception_is_clean_fids(saved: dict[str, dict[str, Any]], size: tuple[int, int]) -> None:
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    batch = images(5, *size, 3)
    resize = build_resizer("clean")
    pixels = np.stack([resize(image) for image in batch]).transpose(0, 3, 1, 2)
    file = Path(saved["inception"]["weights"])
    network = InceptionV3W(str(file.parent), download=False)
    with torch.inference_mode():
        expected = network(torch.from_numpy(pixels)).numpy()
    found = made("inception", weights=str(file)).embed(batch)
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()


def test_inception_is_downloaded_once(
    saved: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fetched(url: str) -> Any:
        calls.append(url)
        return open(saved["inception"]["weights"], "rb")

    monkeypatch.setattr("urllib.request.urlopen", fetched)
    batch = images(2, 9, 9, 1)
    first, second = made("inception").embed(batch), made("inception").embed(batch)
    assert np.array_equal(first, second)
    assert len(calls) == 1


def test_without_a_network_inception_says_what_to_get(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unreachable(url: str) -> Any:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(InputError, match=r"https://.*inception-2015-12-05.pt .* as `weights`"):
        made("inception")
    assert not list((tmp_path / "xdg" / "pe_ray" / "weights").iterdir())
    with pytest.raises(InputError, match=r"absent is not a file; get https://"):
        made("inception", weights="absent")


def test_inception_refuses_other_files(tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    other.write_bytes(b"not an archive")
    with pytest.raises(InputError, match="is not the TorchScript network"):
        made("inception", weights=str(other))
    with pytest.raises(InputError, match="can't embed an image"):
        made("inception", weights=str(save_inception(tmp_path, dim=2047)))


def test_clip_gives_the_image_features_of_the_whole_model(
    saved: dict[str, dict[str, Any]],
) -> None:
    from transformers import CLIPImageProcessorPil, CLIPModel

    folder, batch = saved["clip"]["checkpoint"], images(5, 30, 45, 3)
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    pixels = processor([Image.fromarray(image) for image in batch], return_tensors="pt")
    model = CLIPModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        pooled = model.vision_model(**pixels).pooler_output
        expected = model.visual_projection(pooled).numpy()
    found = made("clip", checkpoint=folder).embed(batch)
    assert found.shape == (5, ClipOptions(checkpoint=folder).dim(ANY)) == (5, 24)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_vision_tower_alone_is_enough_for_clip(
    saved: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    from transformers import CLIPVisionModelWithProjection

    whole = save_clip(tmp_path / "whole", projection_dim=512)  # the default, that towers state too
    CLIPVisionModelWithProjection.from_pretrained(whole).save_pretrained(tmp_path / "tower")
    settings = (whole / "preprocessor_config.json").read_text()
    (tmp_path / "tower" / "preprocessor_config.json").write_text(settings)
    batch = images(3, 32, 32, 3)
    tower = made("clip", checkpoint=str(tmp_path / "tower")).embed(batch)
    assert np.array_equal(tower, made("clip", checkpoint=str(whole)).embed(batch))


def test_dinov2_gives_the_cls_token(saved: dict[str, dict[str, Any]]) -> None:
    from transformers import BitImageProcessorPil, Dinov2Model

    folder, batch = saved["dinov2"]["checkpoint"], images(5, 30, 45, 3)
    processor = BitImageProcessorPil.from_pretrained(folder)
    pixels = processor([Image.fromarray(image) for image in batch], return_tensors="pt")
    with torch.inference_mode():
        model = Dinov2Model.from_pretrained(folder).eval()
        expected = model(**pixels).last_hidden_state[:, 0].numpy()
    found = made("dinov2", checkpoint=folder).embed(batch)
    assert found.shape == (5, Dinov2Options(checkpoint=folder).dim(ANY)) == (5, 32)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", ["clip", "dinov2"])
def test_half_precision_is_near_and_not_the_same(
    saved: dict[str, dict[str, Any]], kind: str, precision: str
) -> None:
    batch = images(4, 32, 32, 3)
    exact = made(kind, **saved[kind]).embed(batch)
    half = made(kind, **saved[kind], precision=precision).embed(batch)
    assert half.dtype == np.float32
    assert 0 < np.abs(half - exact).max() < 0.05 * np.abs(exact).max()


def test_a_generators_tf32_does_not_reach_an_embedding(
    saved: dict[str, dict[str, Any]],
) -> None:
    embedder, seen = made("clip", **saved["clip"]), []
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
    assert InceptionOptions().dim(ANY) == 2048


def test_checkpoints_that_do_not_fit_are_refused(
    saved: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="holds a 'dinov2' model, not one of clip"):
        made("clip", **saved["dinov2"])
    with pytest.raises(InputError, match="is not a transformers configuration"):
        made("clip", checkpoint=str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("no/such", "no such/folder/anywhere"):
        with pytest.raises(InputError, match="neither a folder nor to be had"):
            made("dinov2", checkpoint=name)

    folder = save_dinov2(tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"can't be loaded: .*safetensors"):
        made("dinov2", checkpoint=str(folder))
    lost = {name: value for name, value in weights.items() if name != "layernorm.weight"}
    save_file(lost, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 weights, the first is layernorm\.weight"):
        made("dinov2", checkpoint=str(folder))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match="can't be loaded"):
        made("dinov2", checkpoint=str(folder))
