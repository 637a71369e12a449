"""Every family of models behind one generator: rows, sizes, ways to vary, options of loading."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_diffusion import generator, save_pipeline

from pe_ray import InputError
from pe_ray.components.generators.diffusers_generator import Diffusers
from pe_ray.plugins import Rows
from pe_ray.plugins.seeds import row_seeds

pytestmark = pytest.mark.usefixtures("one_thread")

Checkpoint = Callable[[str], str]

LABELS = np.array([0, 1, 2], dtype=np.int32)
IDS = np.arange(len(LABELS), dtype=np.int64)
DRAWS, STEPS = row_seeds(1, "random", 0, IDS), row_seeds(1, "variation", 1, IDS)
ROUNDING = 1  # of 255 levels, in fp32
EDITS = {"method": "edit", "edits": ["a bit: {prompt}", "a lot: {prompt}"], "steps": 1}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Folder of a tiny checkpoint by family (see tiny_diffusion), written once."""
    return cache(lambda name: save_pipeline(tmp_path_factory.mktemp(name), name))


def small(checkpoint: str, **options: Any) -> Diffusers:
    defaults = {
        "image_size": (32, 64),
        "max_tokens": 256,
        "random": {"steps": 1},
        "vary": {"steps": 2},
        "prompts": {"dog": "2 dogs"},  # of another length
    }
    return generator(checkpoint, **{**defaults, **options})


def drawn(made: Diffusers, which: slice | list[int] = slice(None)) -> Rows:
    return {**made.random(LABELS[which], DRAWS[which]), "label": LABELS[which]}


def apart(left: Any, right: Any) -> int:
    return int(np.abs(left.astype(int) - right).max())


def check_rows(made: Diffusers) -> None:
    """A row's image comes from its own seed, prompt and parent, whatever its batch."""
    rows = drawn(made)
    size = made._options.image_shape
    assert rows["image"].shape == (3, size.height, size.width, 3)
    assert apart(rows["image"][0], rows["image"][1]) > 20
    varied = made.vary(rows, 0.5, STEPS)["image"]
    assert (np.abs(varied.astype(int) - rows["image"]).max(axis=(1, 2, 3)) > 20).all()
    which = [1, 0]
    assert apart(drawn(made, which)["image"], rows["image"][which]) <= ROUNDING
    parents = {name: values[which] for name, values in rows.items()}
    assert apart(made.vary(parents, 0.5, STEPS[which])["image"], varied[which]) <= ROUNDING
    assert apart(made.vary(parents, 0.5, DRAWS[which])["image"], varied[which]) > 20
    guided = made._call(made._random, made._options.vary, ["a cat"], DRAWS[:1])
    settings = made._options.vary.model_copy(update={"guidance": 9.0})
    assert apart(made._call(made._random, settings, ["a cat"], DRAWS[:1]), guided) > 0


@pytest.mark.parametrize("name", ["sd3", "flux", "z_image", "qwen_image"])
def test_families_with_a_strength(family: Checkpoint, name: str) -> None:
    check_rows(small(family(name)))


def test_an_edit_model(family: Checkpoint) -> None:
    made = small(family("flux2_klein"), image_size=64, vary=EDITS)
    check_rows(made)
    rows = {name: values[:1] for name, values in drawn(made).items()}
    weak, strong, same = (made.vary(rows, degree, STEPS[:1])["image"] for degree in (0.3, 0.5, 1.0))
    assert apart(weak, strong) > 0
    assert apart(strong, same) == 0


@pytest.mark.slow
def test_another_edit_model(family: Checkpoint) -> None:
    check_rows(small(family("kontext"), vary=EDITS))


def test_a_family_without_image_to_image_takes_another_for_variations(
    family: Checkpoint, checkpoint: Checkpoint
) -> None:
    with pytest.raises(InputError, match=r"^generator\.checkpoint.*SanaPipeline"):
        small(family("sana"))
    check_rows(small(family("sana"), vary={"steps": 2, "checkpoint": checkpoint("sd")}))


@pytest.mark.parametrize("name", ["sd", pytest.param("xl", marks=pytest.mark.slow)])
def test_inpainting_draws_a_share_of_the_image_anew(checkpoint: Checkpoint, name: str) -> None:
    made = small(checkpoint(name), vary={"method": "inpaint", "steps": 2})
    check_rows(made)
    rows = drawn(made)
    for degree in (0.25, 1.0):
        varied = made.vary(rows, degree, STEPS)["image"]
        changed = (varied != rows["image"]).any(axis=-1)
        for row in changed:
            down, right = np.nonzero(row)
            box = (np.ptp(down) + 1) * (np.ptp(right) + 1)
            assert box <= degree * row.size
            assert row.sum() > 0.9 * degree * row.size


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd3", "flux", "z_image", "qwen_image"])
def test_other_families_inpaint(family: Checkpoint, name: str) -> None:
    check_rows(small(family(name), vary={"method": "inpaint", "steps": 2}))


@pytest.mark.parametrize(
    ("name", "options", "field"),
    [
        ("sana", {"image_size": (32, 48), "vary": {"checkpoint": "sd"}}, "image_size"),
        ("kontext", {}, r"vary\.method"),
        ("flux", {"vary": {"method": "edit"}}, r"vary\.method"),
        ("kontext", {"vary": {"method": "inpaint"}}, "checkpoint"),
        ("flux", {"max_tokens": 5}, "prompt"),
        ("flux", {"placement": {"offload": "model"}}, r"placement\.offload"),
        ("flux", {"placement": {"quantize": "bitsandbytes_4bit"}}, r"placement\.quantize"),
        ("flux", {"placement": {"attention": "unheard"}}, r"placement\.attention"),
        ("flux", {"weights": "/nowhere.safetensors"}, r"weights.*/nowhere"),
        ("flux", {"lora": [{"file": "/nowhere.safetensors"}]}, r"lora.*/nowhere"),
    ],
)
def test_what_a_model_can_not_do_is_refused_by_option(
    family: Checkpoint, checkpoint: Checkpoint, name: str, options: dict[str, Any], field: str
) -> None:
    if options.get("vary", {}).get("checkpoint"):
        options = {**options, "vary": {"checkpoint": checkpoint("sd")}}
    with pytest.raises(InputError, match=rf"^generator.*{field}"):
        small(family(name), **options)


def test_noise_that_no_seed_decides_is_refused(family: Checkpoint, tmp_path: Path) -> None:
    folder = shutil.copytree(family("flux"), tmp_path / "copy")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "stochastic_sampling": True}))
    with pytest.raises(InputError, match=r"^generator\.checkpoint.*stochastic_sampling"):
        small(str(folder))


def test_a_lora_is_added_by_its_scale(checkpoint: Checkpoint, tmp_path: Path) -> None:
    import torch
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint("sd"))
    torch.manual_seed(0)
    pipeline.unet.add_adapter(LoraConfig(target_modules=["to_q"], init_lora_weights=False))
    weights = get_peft_model_state_dict(pipeline.unet)
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=weights)
    (file,) = tmp_path.glob("*.safetensors")
    plain = drawn(small(checkpoint("sd")))["image"]
    for scale, changes in ((0.0, False), (50.0, True)):
        made = small(checkpoint("sd"), lora=[{"file": str(file), "scale": scale}])
        assert (apart(drawn(made)["image"], plain) > ROUNDING) == changes
    for unfit in ({name: value[:1] for name, value in weights.items()}, {"a": torch.ones(1)}):
        StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=unfit)
        with pytest.raises(InputError, match=r"^generator\.lora"):
            small(checkpoint("sd"), lora=[{"file": str(file)}])


def test_a_single_file_replaces_the_denoiser(family: Checkpoint, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    (own,) = Path(family("flux"), "transformer").glob("*.safetensors")
    weights, file = load_file(own), str(tmp_path / "one.safetensors")
    plain = drawn(small(family("flux")))["image"]
    save_file(weights, file)
    assert apart(drawn(small(family("flux"), weights=file))["image"], plain) <= ROUNDING
    save_file({name: torch.flip(value, (0,)) for name, value in weights.items()}, file)
    assert apart(drawn(small(family("flux"), weights=file))["image"], plain) > 20


def test_placement_changes_images_by_rounding(checkpoint: Checkpoint) -> None:
    plain = drawn(small(checkpoint("sd")))["image"]
    made = small(checkpoint("sd"), placement={"attention": "native", "vae_slicing": True})
    assert made._random.vae.use_slicing
    assert apart(drawn(made)["image"], plain) <= ROUNDING
    tiled = small(checkpoint("sd"), placement={"vae_tiling": True})  # two tiles, as VAEs have it
    assert apart(drawn(tiled)["image"], plain) > ROUNDING
