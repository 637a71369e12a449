"""Checkpoints: no code runs, and whatever doesn't fit is named."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from tiny_unets import IMPROVED, improved_weights, save_unet

from pe_ray import InputError
from pe_ray.components.generators.pixel_diffusion import ImprovedDiffusion, UNetOptions
from pe_ray.components.generators.unet_pipeline import UNetPipeline


class Malicious:
    """A pickle that makes a folder where it is loaded with code execution."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.fixture(scope="module")
def weights() -> dict[str, Any]:
    return improved_weights()


def load(file: Path) -> ImprovedDiffusion:
    return ImprovedDiffusion(**IMPROVED, checkpoint=file)


def test_pt_and_safetensors_are_the_same(tmp_path: Path, weights: dict[str, Any]) -> None:
    import numpy as np
    import torch
    from safetensors.torch import save_file

    torch.save(weights, tmp_path / "model.pt")
    save_file(weights, tmp_path / "model.safetensors")
    noise = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)
    made = [load(tmp_path / f"model.{s}").denoise(noise, [1]) for s in ("pt", "safetensors")]
    # Tensors mapped from a file lie elsewhere in memory than read ones, and sums differ with that.
    assert np.abs(made[0] - made[1]).max() < 1e-4


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    import torch

    target, file = tmp_path / "was-run", tmp_path / "model.pt"
    tree = {"out.0.weight": Malicious(target)}
    if zipped:
        torch.save(tree, file)
    else:
        file.write_bytes(pickle.dumps(tree, protocol=2))
    with pytest.raises(InputError, match=r"generator\.checkpoint: .*code in a checkpoint is never"):
        load(file)
    assert not target.exists()
    folder = Path(save_unet(tmp_path / "pipeline"))
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(file.read_bytes())
    with pytest.raises(InputError, match=r"generator\.checkpoint: .*code in a checkpoint is never"):
        UNetPipeline(str(folder), 3)
    assert not target.exists()


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99])
def test_a_file_cut_short_is_refused(
    tmp_path: Path, weights: dict[str, Any], suffix: str, kept: float
) -> None:
    import torch
    from safetensors.torch import save_file

    file = tmp_path / f"model.{suffix}"
    (torch.save if suffix == "pt" else save_file)(weights, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(InputError, match="was not loaded: it is damaged"):
        load(file)


def test_noise_a_missing_file_and_other_contents_are_refused(tmp_path: Path) -> None:
    import torch

    file = tmp_path / "model.pt"
    with pytest.raises(InputError, match="is not a file"):
        load(file)
    file.write_bytes(os.urandom(4096))
    with pytest.raises(InputError, match="damaged"):
        load(file)
    for content in ([torch.zeros(2)], {"model": {"weight": torch.zeros(2)}}, {"step": 3}):
        torch.save(content, file)
        with pytest.raises(InputError, match="holds no tensors by name"):
            load(file)


def test_what_does_not_fit_is_named(tmp_path: Path, weights: dict[str, Any]) -> None:
    import torch

    changed = dict(weights)
    for name in [name for name in weights if name.startswith("middle_block.1.")]:
        del changed[name]
    changed["label_emb.weight"] = torch.zeros(10, 128)
    changed["ema.decay"] = torch.zeros(1)
    torch.save(changed, tmp_path / "model.pt")
    with pytest.raises(InputError) as caught:
        load(tmp_path / "model.pt")
    message = str(caught.value)
    assert "\n" not in message
    assert "6 missing (middle_block.1.norm.weight, middle_block.1.norm.bias, " in message
    assert "1 unexpected (ema.decay)" in message
    assert "1 of another shape (label_emb.weight [10, 128] instead of [1000, 128])" in message


def test_a_pipelines_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(save_unet(tmp_path))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    import torch

    del weights["conv_in.bias"]
    weights["conv_out.weight"] = torch.zeros(3, 4, 3, 3)
    weights["extra"] = torch.zeros(1)
    save_file(weights, file)
    with pytest.raises(InputError) as caught:
        UNetPipeline(str(folder), 3)
    message = str(caught.value)
    assert "1 missing (conv_in.bias)" in message
    assert "1 unexpected (extra)" in message
    assert "1 of another shape (conv_out.weight [3, 4, 3, 3] instead of [3, 8, 3, 3])" in message
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match="was not loaded"):
        UNetPipeline(str(folder), 3)


def test_a_folder_that_is_no_such_pipeline_is_refused(tmp_path: Path) -> None:
    import json

    with pytest.raises(InputError, match=r"unet/config.json is missing; give the folder of"):
        _ = UNetOptions(checkpoint=str(tmp_path / "none")).image_shape
    cases: list[tuple[dict[str, Any], str]] = [
        ({"_class_name": "UNet2DConditionModel"}, "not a UNet2DModel"),
        ({"sample_size": None}, "has no sample_size"),
        ({"in_channels": 4}, "images of 4 channels"),
    ]
    for number, (changes, message) in enumerate(cases):
        folder = Path(save_unet(tmp_path / str(number)))
        file = folder / "unet" / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
        with pytest.raises(InputError, match=message):
            _ = UNetOptions(checkpoint=str(folder)).image_shape
    exploding = save_unet(tmp_path / "ve", scheduler="ScoreSdeVeScheduler")
    with pytest.raises(InputError, match="has a ScoreSdeVeScheduler; the unet generator samples"):
        UNetPipeline(exploding, 3)
    with pytest.raises(InputError, match=r"generator\.steps: 1001 is more than the 1000"):
        UNetPipeline(save_unet(tmp_path / "steps"), 1001)
    embedded = save_unet(tmp_path / "timestep", class_embed_type="timestep")
    with pytest.raises(InputError, match="takes classes as timestep"):
        UNetPipeline(embedded, 3)
