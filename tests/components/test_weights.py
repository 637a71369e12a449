"""Weights: no code runs, and whatever doesn't fit is named."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from tiny_unets import IMPROVED, improved_weights, save_unet

from pe_ray import InputError
from pe_ray.components.generators.improved_diffusion import ImprovedDiffusion
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
    with pytest.raises(InputError, match=r"generator\.checkpoint: .*code.* never run"):
        load(file)
    assert not target.exists()
    folder = Path(save_unet(tmp_path / "pipeline"))
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(file.read_bytes())
    with pytest.raises(InputError, match=r"generator\.checkpoint: .*: unet .*code.* never run"):
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
    with pytest.raises(InputError, match=r"generator\.checkpoint: .*model\."):
        load(file)


def test_noise_a_missing_file_and_other_contents_are_refused(tmp_path: Path) -> None:
    import torch

    file = tmp_path / "model.pt"
    with pytest.raises(InputError, match=r"generator\.checkpoint: .*model\.pt"):
        load(file)
    file.write_bytes(os.urandom(4096))
    with pytest.raises(InputError, match=r"generator\.checkpoint: .*model\.pt"):
        load(file)
    for content in ([torch.zeros(2)], {"model": {"weight": torch.zeros(2)}}, {"step": 3}):
        torch.save(content, file)
        with pytest.raises(InputError, match=r"generator\.checkpoint: .*model\.pt"):
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
    for name in ("middle_block.1.norm.weight", "ema.decay", "label_emb.weight", "[10, 128]"):
        assert name in message
