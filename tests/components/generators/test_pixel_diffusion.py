"""Pixel diffusion: the reference's own numbers, diffusers' own sampler, rows apart from batches."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from tiny_unets import IMPROVED, save_improved, save_unet

from pe_ray import Config, InputError, evolve
from pe_ray.components.generators.pixel_diffusion import (
    ImprovedDiffusion,
    ImprovedDiffusionGenerator,
    ImprovedDiffusionOptions,
    UNetGenerator,
    UNetOptions,
)
from pe_ray.components.generators.unet_pipeline import UNetPipeline
from pe_ray.plugins import Rows
from pe_ray.plugins.seeds import normals, row_seeds

SHARED = Path(__file__).parents[4] / "shared" / "reference"
REFERENCE = Path(os.environ.get("PE_RAY_REFERENCE", SHARED)) / "improved_diffusion"
NAMES = ("cat", "dog")
LABELS = np.array([0, 1, 1, 0, 1], dtype=np.int32)
SEEDS = row_seeds(3, "random", 0, np.arange(5, dtype=np.int64))
STEPS = row_seeds(3, "variation", 1, np.arange(5, dtype=np.int64))


@pytest.fixture(scope="module")
def improved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of a tiny improved-diffusion checkpoint."""
    return save_improved(tmp_path_factory.mktemp("improved"))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny unconditional RGB pipeline."""
    return save_unet(tmp_path_factory.mktemp("unet"))


@pytest.fixture(scope="module")
def classed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny grey pipeline with two classes."""
    folder = tmp_path_factory.mktemp("classed")
    return save_unet(folder, num_class_embeds=2, in_channels=1, out_channels=1)


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
    import torch
    from safetensors.torch import load_file

    from pe_ray.components.generators.improved_unet import ImprovedUNet

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
    import torch

    given = {k: torch.from_numpy(v) for k, v in vectors.items()} if tensors else vectors
    model, noise, classes = reference_model(), given["noise"], given["y"]
    drawn = model.denoise(noise, classes)
    assert torch.is_tensor(drawn) == tensors
    assert np.abs(np.asarray(drawn) - vectors["random_sample"]).max() < 1e-4
    images = given["start_images"]
    for start in (0, 3, 7):
        varied = model.denoise(noise, classes, start_step=start, start_images=images)
        assert np.abs(np.asarray(varied) - vectors[f"variation_start{start}"]).max() < 1e-4
    floats = vectors["start_images"].transpose(0, 3, 1, 2) / 127.5 - 1
    same = np.asarray(model.denoise(noise, classes, start_step=7, start_images=floats))
    assert np.abs(same - vectors["variation_start7"]).max() < 1e-4


@pytest.mark.parametrize("scheduler", ["DDPMScheduler", "DDIMScheduler"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_pipeline_samples_as_diffusers_does(
    tmp_path: Path, scheduler: str, prediction: str
) -> None:
    import diffusers
    import torch

    noise = {"prediction_type": prediction, "beta_schedule": "squaredcos_cap_v2"}
    folder = save_unet(tmp_path, scheduler=scheduler, noise=noise)
    theirs = diffusers.DDIMPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(4, torch.Generator().manual_seed(1), 0.0, 7, output_type="np").images
    drawn = torch.randn((4, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    made = UNetPipeline(folder, 7).denoise(drawn.numpy())
    assert np.abs(made.transpose(0, 2, 3, 1) / 2 + 0.5 - expected).max() < 1e-5


def test_names_of_attention_weights_from_before_2023_are_known(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

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


def generators(improved: dict[str, Any], pipeline: str, classed: str) -> dict[str, Any]:
    return {
        "improved": ImprovedDiffusionGenerator(ImprovedDiffusionOptions(**improved), NAMES),
        "unet": UNetGenerator(UNetOptions(checkpoint=pipeline, steps=5), NAMES),
        "classed": UNetGenerator(UNetOptions(checkpoint=classed, steps=5), NAMES),
    }


def levels_apart(one: Rows, other: Rows) -> int:
    return int(np.abs(one["image"].astype(int) - other["image"].astype(int)).max())


@pytest.mark.parametrize("kind", ["improved", "unet", "classed"])
def test_a_row_depends_on_its_seed_and_not_on_its_batch(
    improved: dict[str, Any], pipeline: str, classed: str, kind: str
) -> None:
    generator = generators(improved, pipeline, classed)[kind]
    drawn = {**generator.random(LABELS, SEEDS), "label": LABELS}
    varied = generator.vary(drawn, 2, STEPS)
    for rows in ([4], [2, 0], [3, 3, 1]):
        alone = generator.random(LABELS[rows], SEEDS[rows])
        some = {name: values[rows] for name, values in drawn.items()}
        assert levels_apart(alone, some) <= 1
        again = generator.vary(some, 2, STEPS[rows])
        assert levels_apart(again, {"image": varied["image"][rows]}) <= 1
    assert levels_apart(varied, drawn) > 10
    other = generator.vary(drawn, 2, STEPS[::-1])
    assert levels_apart(varied, other) > 10


def test_a_batch_changes_the_sampler_by_rounding_only(improved: dict[str, Any]) -> None:
    model = ImprovedDiffusion(**improved)
    noise = normals(SEEDS, 3 * 32 * 32).reshape(5, 3, 32, 32)
    classes = np.arange(5)
    together = model.denoise(noise, classes)
    alone = [model.denoise(noise[i : i + 1], classes[i : i + 1]) for i in range(5)]
    assert np.abs(np.concatenate(alone) - together).max() < 1e-4
    assert np.abs(together).max() <= 1


@pytest.mark.parametrize("kind", ["improved", "unet", "classed"])
def test_the_more_steps_skipped_the_closer(
    improved: dict[str, Any], pipeline: str, classed: str, kind: str
) -> None:
    generator = generators(improved, pipeline, classed)[kind]
    rng = np.random.default_rng(0)
    drawn = {**generator.random(LABELS, SEEDS), "label": LABELS}
    drawn["image"] = rng.integers(0, 256, drawn["image"].shape, dtype=np.uint8)
    apart = []
    for degree in range(5):
        varied = generator.vary(drawn, degree, STEPS)["image"]
        apart.append(np.abs(varied.astype(float) - drawn["image"]).mean())
    assert apart[0] / 2 > apart[2] / 2 > apart[4]
    assert apart[2] > apart[3] > apart[4]


def test_classes_are_drawn_per_label_and_kept(improved: dict[str, Any]) -> None:
    options = ImprovedDiffusionOptions(**improved, classes={"cat": (281, 282), "dog": (207,)})
    generator = ImprovedDiffusionGenerator(options, NAMES)
    labels = np.repeat(np.array([0, 1], dtype=np.int32), 12)
    seeds = row_seeds(0, "random", 0, np.arange(24, dtype=np.int64))
    drawn = generator.random(labels, seeds)
    assert set(drawn["class_id"][:12]) == {281, 282}
    assert set(drawn["class_id"][12:]) == {207}
    assert drawn["class_id"].dtype == np.int32
    varied = generator.vary({**drawn, "label": labels}, 3, seeds)
    assert np.array_equal(varied["class_id"], drawn["class_id"])
    other = {**drawn, "label": labels, "class_id": drawn["class_id"] + 1}
    assert levels_apart(generator.vary(other, 0, seeds), generator.vary(drawn, 0, seeds)) > 1
    anywhere = ImprovedDiffusionGenerator(ImprovedDiffusionOptions(**improved), NAMES)
    ids = anywhere.random(labels, seeds)["class_id"]
    assert len(set(ids)) > 15
    assert ids.min() < 300 < 700 < ids.max() < 1000


def test_a_pipelines_classes_are_the_labels_positions(classed: str, tmp_path: Path) -> None:
    drawn = UNetGenerator(UNetOptions(checkpoint=classed, steps=2), NAMES).random(LABELS, SEEDS)
    assert np.array_equal(drawn["class_id"], LABELS)
    assert drawn["image"].shape == (5, 8, 8, 1)
    with pytest.raises(InputError, match=r"generator\.classes: the model has 2 classes for 3"):
        UNetGenerator(UNetOptions(checkpoint=classed), ("a", "b", "c"))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"cat": (0,), "dog": (2,)}, "'dog': the model's classes are 0 to 1, not 2"),
        ({"cat": (0,)}, "give label 'dog' at least one class"),
        ({"cat": (0,), "dog": ()}, "give label 'dog' at least one class"),
        ({"cat": (0,), "dog": (1,), "owl": (1,)}, "'owl' is not a label"),
    ],
)
def test_wrong_classes_are_named(classed: str, classes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        UNetGenerator(UNetOptions(checkpoint=classed, classes=classes), NAMES)


def test_a_model_without_classes_has_no_column(pipeline: str, improved: dict[str, Any]) -> None:
    options = UNetOptions(checkpoint=pipeline, steps=2)
    assert options.columns == {}
    assert set(UNetGenerator(options, NAMES).random(LABELS, SEEDS)) == {"image"}
    with pytest.raises(InputError, match="classes: the model has none"):
        UNetGenerator(UNetOptions(checkpoint=pipeline, classes={"cat": (1,), "dog": (0,)}), NAMES)
    with pytest.raises(ValueError, match="classes: the model has none"):
        ImprovedDiffusionOptions(**{**improved, "class_cond": False, "classes": {"cat": [1]}})


def test_without_classes_or_learned_sigma(tmp_path: Path) -> None:
    options = save_improved(tmp_path, class_cond=False, learn_sigma=False)
    generator = ImprovedDiffusionGenerator(ImprovedDiffusionOptions(**options), NAMES)
    assert set(generator.random(LABELS, SEEDS)) == {"image"}


def test_a_learned_variance_is_left_out(tmp_path: Path) -> None:
    folder = save_unet(tmp_path, out_channels=6, noise={"variance_type": "learned_range"})
    options = UNetOptions(checkpoint=folder, steps=3)
    assert options.image_shape.channels == 3
    assert UNetGenerator(options, NAMES).random(LABELS, SEEDS)["image"].shape == (5, 8, 8, 3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_changes_pixels_a_little(improved: dict[str, Any], precision: Any) -> None:
    options = {**improved, "timestep_respacing": "ddim2"}
    noise = normals(SEEDS[:1], 3 * 32 * 32).reshape(1, 3, 32, 32)
    exact = ImprovedDiffusion(**options).denoise(noise, [7])
    rough = ImprovedDiffusion(**options, precision=precision).denoise(noise, [7])
    assert 0 < np.abs(exact - rough).mean() < 0.02


def test_an_overflow_is_an_error_and_no_image(tmp_path: Path) -> None:
    import torch
    from tiny_unets import improved_weights

    weights = improved_weights()
    weights["time_embed.2.weight"] *= 1e6
    torch.save(weights, tmp_path / "model.pt")
    options = {**IMPROVED, "checkpoint": str(tmp_path / "model.pt"), "precision": "fp16"}
    options["timestep_respacing"] = "1"
    generator = ImprovedDiffusionGenerator(ImprovedDiffusionOptions(**options), NAMES)
    with pytest.raises(InputError, match=r"generator\.precision: fp16 overflowed"):
        generator.random(LABELS[:1], SEEDS[:1])


@pytest.mark.slow
def test_a_compiled_network_makes_the_same_images(
    traced: None, improved: dict[str, Any], pipeline: str
) -> None:
    for made, options in (
        (ImprovedDiffusionGenerator, ImprovedDiffusionOptions(**improved)),
        (UNetGenerator, UNetOptions(checkpoint=pipeline, steps=3)),
    ):
        plain = made(options, NAMES).random(LABELS, SEEDS)
        compiled = made(options.model_copy(update={"compile": True}), NAMES)
        assert levels_apart(compiled.random(LABELS, SEEDS), plain) <= 1
        assert (
            levels_apart(compiled.random(LABELS[:2], SEEDS[:2]), {"image": plain["image"][:2]}) <= 1
        )


def test_options_and_image_shapes_need_no_torch(pipeline: str) -> None:
    code = (
        "import sys\n"
        "from pe_ray.components.generators.pixel_diffusion import "
        "ImprovedDiffusionOptions, UNetOptions\n"
        "options = UNetOptions(checkpoint=sys.argv[1])\n"
        "print(options.image_shape, options.columns)\n"
        "print({'torch', 'diffusers', 'transformers', 'safetensors', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, pipeline], capture_output=True, text=True)
    shape, loaded = done.stdout.splitlines()
    assert shape == "ImageShape(height=8, width=8, channels=3) {}"
    assert loaded == "set()"


@pytest.mark.parametrize("degree", [-1, 5, 0.5, float("nan")])
def test_degrees_are_whole_numbers_of_steps(improved: dict[str, Any], degree: float) -> None:
    with pytest.raises(ValueError, match="whole number from 0 to 4"):
        ImprovedDiffusionOptions(**improved).check_degree(degree)


def test_a_wrong_degree_is_refused_with_the_configuration(
    tree: dict[str, Any], pipeline: str
) -> None:
    tree["generator"] = {"kind": "unet", "checkpoint": pipeline, "steps": 10}
    tree["schedule"]["degrees"] = [2, 9]
    Config.from_dict(tree)
    tree["schedule"]["degrees"] = [2, 10]
    with pytest.raises(InputError, match="degree 10: is the number of sampling steps skipped"):
        Config.from_dict(tree)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "num_heads: must divide num_channels"),
        ({"image_size": 48}, "Input should be 32, 64 or 256"),
        ({"num_channels": 48}, "multiple of 32"),
        ({"timestep_respacing": "ddim600"}, "no whole stride takes 600 of 1000"),
        ({"timestep_respacing": "600,10"}, "can't take 600 of the 500 steps of section 1"),
        ({"timestep_respacing": "fast"}, "'fast' is not a number of steps"),
        ({"attention_resolutions": "all"}, "attention_resolutions"),
    ],
)
def test_wrong_flags_are_named(improved: dict[str, Any], changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImprovedDiffusionOptions(**{**improved, **changes})


def test_a_run_with_a_pipeline(ray_session: None, tree: dict[str, Any], tmp_path: Path) -> None:
    classes = {str(digit): [digit, digit + 10] for digit in range(10)}
    unet = {"num_class_embeds": 20, "in_channels": 1, "out_channels": 1}
    checkpoint = save_unet(tmp_path / "checkpoint", **unet)
    tree["generator"] = {"kind": "unet", "checkpoint": checkpoint, "steps": 5, "classes": classes}
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
