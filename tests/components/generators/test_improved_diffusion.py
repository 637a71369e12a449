"""Improved diffusion: the reference's own numbers, and flags that don't fit a checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from tiny_unets import IMPROVED, LABELS, NAMES, SEEDS, improved_weights, save_improved

from pe_ray import InputError
from pe_ray.components.generators.improved_diffusion import (
    ImprovedDiffusion,
    ImprovedDiffusionGenerator,
    ImprovedDiffusionOptions,
)
from pe_ray.components.generators.improved_unet import ImprovedUNet
from pe_ray.plugins.seeds import normals

SHARED = Path(__file__).parents[4] / "shared" / "reference"
REFERENCE = Path(os.environ.get("PE_RAY_REFERENCE", SHARED)) / "improved_diffusion"


@pytest.fixture(scope="module")
def vectors() -> dict[str, NDArray[Any]]:
    """Inputs and results of the original implementation."""
    if not REFERENCE.exists():
        pytest.skip(
            f"{REFERENCE} is not there: its vectors are not in the repository; set PE_RAY_REFERENCE"
        )
    with np.load(REFERENCE / "vectors.npz") as stored:
        return dict(stored)


def reference_model() -> ImprovedDiffusion:
    config = json.loads((REFERENCE / "config.json").read_text())
    taken = ("image_size", "num_channels", "num_res_blocks", "attention_resolutions", "num_heads")
    return ImprovedDiffusion(
        checkpoint=REFERENCE / "state_dict.safetensors",
        **{name: config["model"][name] for name in (*taken, "class_cond", "learn_sigma")},
        diffusion_steps=config["diffusion"]["steps"],
        noise_schedule=config["diffusion"]["noise_schedule"],
        timestep_respacing=config["diffusion"]["timestep_respacing"],
    )


def test_the_network_is_the_originals(vectors: dict[str, NDArray[Any]]) -> None:
    unet = ImprovedUNet(
        image_size=32,
        num_channels=32,
        num_res_blocks=1,
        attention_resolutions=(16, 8),
        num_heads=4,
        num_classes=1000,
        learn_sigma=True,
    )
    unet.load_state_dict(load_file(REFERENCE / "state_dict.safetensors"))
    with torch.inference_mode():
        made = unet.eval()(*(torch.from_numpy(vectors[name]) for name in ("x", "t", "y")))
    assert np.abs(made.numpy() - vectors["model_output"]).max() < 1e-4


@pytest.mark.parametrize("tensors", [False, True])
def test_samples_and_variations_are_the_originals(
    vectors: dict[str, NDArray[Any]], tensors: bool
) -> None:
    given = {k: torch.from_numpy(v) for k, v in vectors.items()} if tensors else vectors
    model, noise, classes = reference_model(), given["noise"], given["y"]
    drawn = model.denoise(noise, classes)
    assert torch.is_tensor(drawn) == tensors
    drawn += 0  # the caller may change it
    assert np.abs(np.asarray(drawn) - vectors["random_sample"]).max() < 1e-4
    images = given["start_images"]
    for start in (0, 3, 7):
        varied = model.denoise(noise, classes, start_step=start, start_images=images)
        assert np.abs(np.asarray(varied) - vectors[f"variation_start{start}"]).max() < 1e-4
    floats = vectors["start_images"].transpose(0, 3, 1, 2) / 127.5 - 1
    same = np.asarray(model.denoise(noise, classes, start_step=7, start_images=floats))
    assert np.abs(same - vectors["variation_start7"]).max() < 1e-4


def test_a_batch_changes_the_sampler_by_rounding_only(improved: dict[str, Any]) -> None:
    model = ImprovedDiffusion(**improved)
    noise = normals(SEEDS, 3 * 32 * 32).reshape(5, 3, 32, 32)
    classes = np.arange(5)
    together = model.denoise(noise, classes)
    alone = [model.denoise(noise[i : i + 1], classes[i : i + 1]) for i in range(5)]
    assert np.abs(np.concatenate(alone) - together).max() < 1e-4
    assert np.abs(together).max() <= 1


def test_without_classes_or_learned_sigma(tmp_path: Path) -> None:
    options = save_improved(tmp_path, class_cond=False, learn_sigma=False)
    generator = ImprovedDiffusionGenerator(ImprovedDiffusionOptions(**options), NAMES)
    assert set(generator.random(LABELS, SEEDS)) == {"image"}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_changes_pixels_a_little(improved: dict[str, Any], precision: Any) -> None:
    options = {**improved, "timestep_respacing": "ddim2"}
    noise = normals(SEEDS[:1], 3 * 32 * 32).reshape(1, 3, 32, 32)
    exact = ImprovedDiffusion(**options).denoise(noise, [7])
    rough = ImprovedDiffusion(**options, precision=precision).denoise(noise, [7])
    assert 0 < np.abs(exact - rough).mean() < 0.02


def test_an_overflow_is_an_error_and_no_image(tmp_path: Path) -> None:
    weights = improved_weights()
    weights["time_embed.2.weight"] *= 1e6
    torch.save(weights, tmp_path / "model.pt")
    options = {**IMPROVED, "checkpoint": str(tmp_path / "model.pt"), "precision": "fp16"}
    options["timestep_respacing"] = "1"
    generator = ImprovedDiffusionGenerator(ImprovedDiffusionOptions(**options), NAMES)
    with pytest.raises(InputError, match=r"generator\.precision"):
        generator.random(LABELS[:1], SEEDS[:1])


@pytest.mark.parametrize(
    "changes",
    [
        {"num_heads": 5},
        {"image_size": 48},
        {"num_channels": 48},
        {"timestep_respacing": "ddim600"},
        {"timestep_respacing": "600,10"},
        {"timestep_respacing": "fast"},
        {"attention_resolutions": "all"},
    ],
)
def test_wrong_flags_are_named(improved: dict[str, Any], changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        ImprovedDiffusionOptions(**{**improved, **changes})
