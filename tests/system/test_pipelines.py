"""The pipelines that come with the package validate, and cost what the experiments they name do."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny_public import save_public
from tiny_unets import save_unet

from pe_ray import Config
from pe_ray.components.generators.unet_pipeline import UNetGenerator
from pe_ray.config.rehearsal import rehearse
from pe_ray.planning import plan
from pe_ray.plugins.seeds import row_seeds

PIPELINES = Path(__file__).parents[2] / "pipelines"


def of(name: str) -> Config:
    return Config.from_yaml(PIPELINES / name)


@pytest.mark.parametrize("file", sorted(PIPELINES.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_pipeline_is_valid_and_says_what_it_needs(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Images of these two are as the trained models' configurations say.
    save_unet(tmp_path / "models" / "glyphs", in_channels=1, out_channels=1, num_class_embeds=10)
    save_unet(tmp_path / "models" / "natural32", num_class_embeds=10)
    monkeypatch.chdir(tmp_path)
    config = Config.from_yaml(file)
    assert plan(config).epsilon == pytest.approx(config.privacy.epsilon, rel=0.01)
    small = rehearse(config, tmp_path)
    assert small.generator.kind == config.generator.kind
    assert plan(small).epsilon == pytest.approx(config.privacy.epsilon, rel=0.01)
    head = file.read_text().split("private:")[0]
    if config.resources.gpus_per_worker:
        assert config.generator.options.precision != "fp32"
        for needed in ("Needs", "Licence", "not measured", "--rehearse"):
            assert needed in head


def test_cifar10() -> None:
    config = of("cifar10.yaml")
    made = plan(config)
    assert made.random_calls == 50_000
    assert made.variation_calls == 9_000_000
    assert config.schedule.degree_list == tuple(range(2, 42, 2))
    assert config.generator.options.num_steps == 100
    sigmas = [release.sigma for release in made.releases]
    assert len(sigmas) == 20
    assert min(sigmas) >= 5 * math.sqrt(2)
    assert max(sigmas) == pytest.approx(5 * math.sqrt(2), rel=1e-4)


def test_camelyon17() -> None:
    config = of("camelyon17.yaml")
    made = plan(config)
    assert made.random_calls == 302_436
    assert made.variation_calls == 18 * 9 * 302_436
    assert config.generator.options.num_steps == 10
    sigmas = [release.sigma for release in made.releases]
    assert len(sigmas) == 18
    assert min(sigmas) >= 2 * math.sqrt(2)
    assert max(sigmas) == pytest.approx(2 * math.sqrt(2), rel=2e-4)


@pytest.mark.parametrize("name", ["cifar10.yaml", "camelyon17.yaml"])
def test_passes_of_the_network_are_as_the_file_says(name: str) -> None:
    config = of(name)
    steps, schedule = config.generator.options.num_steps, config.schedule
    each = schedule.sizes[0] * (config.votes.lookahead + 1)
    passes = schedule.sizes[0] * steps + sum(each * (steps - v) for v in schedule.degree_list)
    head = (PIPELINES / name).read_text()
    assert f"{passes / 1e6:.0f} million passes" in head


def test_the_averaged_weights_of_a_short_training_forget_its_start() -> None:
    sys.path.insert(0, str(PIPELINES))
    try:
        from train_public_generator import AVERAGING, move_average
    finally:
        sys.path.remove(str(PIPELINES))
    average = [torch.zeros(1)]
    for step in range(1, 751):
        move_average(average, [torch.ones(1)], torch.tensor(step))
    assert float(average[0]) > 0.999  # a fixed decay would have kept 0.47 of it
    late = [torch.zeros(1)]
    move_average(late, [torch.ones(1)], torch.tensor(1_000_000))
    assert float(late[0]) == pytest.approx(1 - AVERAGING, rel=1e-4)


def test_the_small_run_that_the_file_describes_is_valid() -> None:
    head = (PIPELINES / "mnist_diffusion.yaml").read_text().split("private:")[0]
    given = re.findall(r"--set ('[^']+'|\S+)", head.split("A small one")[1])
    config = Config.from_yaml(
        PIPELINES / "mnist_diffusion.yaml", [change.strip("'") for change in given]
    )
    assert config.generator.options.steps == 10
    assert config.schedule.degree_list == (4, 6)
    assert config.schedule.sizes == (500, 500, 500)


def start_training(data: Path, output: Path, *more: str) -> subprocess.Popen[str]:
    """Train a tiny model for six steps; it saves and prints after every second one."""
    command = f"--data {data} --output {output} --cache {output}-cache --image-size 16 --steps 6"
    options = f"{command} --width 8 --batch-size 8 --save-every 2 --flip".split()
    script = str(PIPELINES / "train_public_generator.py")
    env = {**os.environ, "PYTHONPATH": str(PIPELINES.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, script, *options, *more], stdout=subprocess.PIPE, text=True, env=env
    )


@pytest.mark.slow
@pytest.mark.parametrize("conditional", [True, False])
def test_a_training_on_public_images_continues_after_a_kill(
    tmp_path: Path, conditional: bool
) -> None:
    data = save_public(tmp_path / "public", ["cat", "dog"])
    more = ["--classes"] if conditional else []
    killed = start_training(data, tmp_path / "killed", *more)
    assert killed.stdout is not None
    assert killed.stdout.readline().startswith("step 2 ")
    killed.kill()
    killed.communicate()
    assert not (tmp_path / "killed/unet").exists()
    again = start_training(data, tmp_path / "killed", *more)
    assert again.communicate()[0].startswith("step 4 ")
    assert start_training(data, tmp_path / "whole", *more).wait() == 0
    file = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()

    plugin = {"kind": "unet", "checkpoint": str(tmp_path / "killed"), "steps": 3}
    tree = yaml.safe_load((PIPELINES / "natural_diffusion.yaml").read_text())
    tree["private"]["labels"] = ["cat", "dog"]
    tree["generator"] = plugin if conditional else {**plugin, "precision": "bf16"}
    tree["schedule"] |= {"degrees": 1}
    options = Config.from_dict(tree).generator_at(0).options
    assert options.num_classes == (2 if conditional else None)
    generator = UNetGenerator(options, ["cat", "dog"])
    seeds = row_seeds(0, "random", 0, np.arange(2, dtype=np.int64))
    rows = generator.random(np.arange(2, dtype=np.int32), seeds)
    assert rows["image"].shape == (2, 16, 16, 3)
    assert generator.vary(rows, 1.0, seeds)["image"].shape == (2, 16, 16, 3)
    if conditional:
        assert json.loads((tmp_path / "killed/classes.json").read_text()) == ["cat", "dog"]


def test_pipelines_on_public_images_end_with_a_teacher() -> None:
    for name in ("cifar10_public.yaml", "fashion.yaml"):
        config = of(name)
        made = plan(config)
        assert config.teacher is not None
        assert (config.teacher.keep or config.schedule.sizes[-1]) == 60_000
        assert made.releases[-1].key == "teacher"
        assert 0.999 < made.epsilon <= 1.0
