"""UNet2DModel pipelines: diffusers' own sampler, and folders that can't be used."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_unets import LABELS, NAMES, SEEDS, save_unet

from pe_ray import Config, InputError
from pe_ray.components.generators.unet_pipeline import UNetGenerator, UNetOptions, UNetPipeline
from pe_ray.evolution import evolve
from pe_ray.plugins.seeds import normals


@pytest.mark.parametrize("scheduler", ["DDPMScheduler", "DDIMScheduler"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_pipeline_samples_as_diffusers_does(
    tmp_path: Path, scheduler: str, prediction: str
) -> None:
    noise = {"prediction_type": prediction, "beta_schedule": "squaredcos_cap_v2"}
    folder = save_unet(tmp_path, scheduler=scheduler, noise=noise)
    theirs = diffusers.DDIMPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(4, torch.Generator().manual_seed(1), 0.0, 7, output_type="np").images
    drawn = torch.randn((4, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    made = UNetPipeline(folder, 7).denoise(drawn.numpy())
    assert np.abs(made.transpose(0, 2, 3, 1) / 2 + 0.5 - expected).max() < 1e-5


def test_names_of_attention_weights_from_before_2023_are_known(tmp_path: Path) -> None:
    folder = save_unet(tmp_path)
    noise = normals(SEEDS, 3 * 8 * 8).reshape(5, 3, 8, 8)
    now = UNetPipeline(folder, 3).denoise(noise)
    file = Path(folder) / "unet" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(file)
    for new_name, old_name in old.items():
        weights = {name.replace(new_name, old_name): value for name, value in weights.items()}
    file.unlink()
    torch.save(weights, file.with_suffix(".bin"))
    assert np.abs(UNetPipeline(folder, 3).denoise(noise) - now).max() < 1e-4


def test_a_pipelines_classes_are_the_labels_positions(classed: str) -> None:
    drawn = UNetGenerator(UNetOptions(checkpoint=classed, steps=2), NAMES).random(LABELS, SEEDS)
    assert np.array_equal(drawn["class_id"], LABELS)
    assert drawn["image"].shape == (5, 8, 8, 1)
    with pytest.raises(InputError, match=r"generator\.classes"):
        UNetGenerator(UNetOptions(checkpoint=classed), ("a", "b", "c"))


def test_a_learned_variance_is_left_out(tmp_path: Path) -> None:
    folder = save_unet(tmp_path, out_channels=6, noise={"variance_type": "learned_range"})
    options = UNetOptions(checkpoint=folder, steps=3)
    assert options.image_shape.channels == 3
    assert UNetGenerator(options, NAMES).random(LABELS, SEEDS)["image"].shape == (5, 8, 8, 3)


def test_a_pipelines_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder = Path(save_unet(tmp_path))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
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
    with pytest.raises(InputError, match=r"generator\.checkpoint: .*: unet"):
        UNetPipeline(str(folder), 3)


def test_a_folder_that_is_no_such_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"generator\.checkpoint: .*none: unet"):
        _ = UNetOptions(checkpoint=str(tmp_path / "none")).image_shape
    cases: list[dict[str, Any]] = [
        {"_class_name": "UNet2DConditionModel"},
        {"sample_size": None},
        {"in_channels": 4},
        {"class_embed_type": "timestep"},
    ]
    for number, changes in enumerate(cases):
        folder = Path(save_unet(tmp_path / str(number)))
        file = folder / "unet" / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
        with pytest.raises(InputError, match=r"generator\.checkpoint: .*unet/config\.json"):
            _ = UNetOptions(checkpoint=str(folder)).image_shape
    exploding = save_unet(tmp_path / "ve", scheduler="ScoreSdeVeScheduler")
    with pytest.raises(InputError, match=r"generator\.checkpoint: .*ScoreSdeVeScheduler"):
        UNetPipeline(exploding, 3)
    with pytest.raises(InputError, match=r"generator\.steps: .*1001"):
        UNetPipeline(save_unet(tmp_path / "steps"), 1001)


def test_options_and_image_shapes_need_no_torch(pipeline: str) -> None:
    code = (
        "import sys\n"
        "from pe_ray.components.generators.improved_diffusion import ImprovedDiffusionOptions\n"
        "from pe_ray.components.generators.unet_pipeline import UNetOptions\n"
        "options = UNetOptions(checkpoint=sys.argv[1])\n"
        "print(options.image_shape, options.columns)\n"
        "print({'torch', 'diffusers', 'transformers', 'safetensors', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, pipeline], capture_output=True, text=True)
    shape, loaded = done.stdout.splitlines()
    assert shape == "ImageShape(height=8, width=8, channels=3) {}"
    assert loaded == "set()"


def test_a_wrong_degree_is_refused_with_the_configuration(
    tree: dict[str, Any], pipeline: str
) -> None:
    tree["generator"] = {"kind": "unet", "checkpoint": pipeline, "steps": 10}
    tree["schedule"]["degrees"] = [2, 9]
    Config.from_dict(tree)
    tree["schedule"]["degrees"] = [2, 10]
    with pytest.raises(InputError, match="degree 10"):
        Config.from_dict(tree)


def test_a_run_with_a_pipeline(ray_session: None, tree: dict[str, Any], tmp_path: Path) -> None:
    classes = {str(digit): [digit, digit + 10] for digit in range(10)}
    unet = {"num_class_embeds": 20, "in_channels": 1, "out_channels": 1}
    checkpoint = save_unet(tmp_path / "checkpoint", **unet)
    tree["generator"] = {"kind": "unet", "checkpoint": checkpoint, "steps": 4, "classes": classes}
    tree["votes"]["lookahead"] = 2
    tree["schedule"] |= {"num_samples": 20, "degrees": [1, 3]}
    run = evolve(Config.from_dict(tree))
    made = [pq.read_table(run / "populations" / f"iter={t:04d}").to_pydict() for t in range(3)]
    for rows in made:
        assert [class_id % 10 for class_id in rows["class_id"]] == rows["label"]
    assert len(set(made[0]["class_id"])) > 10
    for before, after in itertools.pairwise(made):
        assert after["class_id"] == [before["class_id"][parent] for parent in after["parent"]]
    assert set(made[2]["degree"]) == {3.0}
    assert pq.read_table(run / "synthetic").num_rows == 20
