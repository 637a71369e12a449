"""`run --rehearse`: the same run on stand-ins; nothing of the real one is read or spent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from pe_ray import Config, evolve
from pe_ray.config.kinds import Switch
from pe_ray.config.rehearsal import rehearse
from pe_ray.release.ledger import Ledger

PIPELINES = Path(__file__).parents[2] / "pipelines"
NOWHERE = "/nowhere"


def texts(tree: Any) -> list[str]:
    if isinstance(tree, dict):
        return [text for value in tree.values() for text in texts(value)]
    if isinstance(tree, list | tuple):
        return [text for value in tree for text in texts(value)]
    return [tree] if isinstance(tree, str) else []


@pytest.fixture
def full(tree: dict[str, Any]) -> dict[str, Any]:
    """A run that names places, services and machines wherever it can, none of which are there."""
    paid = {
        "kind": "fal",
        "store": f"{NOWHERE}/store",
        "image_size": 64,
        "random": {"model": "a/b", "size": 64},
        "vary": {"model": "a/c", "size": 64},
        "price": {"random": 1, "vary": 1},
        "max_calls": 10,
        "max_cost": 1,
    }
    local = {
        "kind": "nearest_image",
        "data": f"{NOWHERE}/public",
        "image_size": 64,
        "classes": {str(digit): [f"class{digit}"] for digit in range(10)},
    }
    stages = [{"start": 0, "generator": local}, {"start": 4, "generator": paid}]
    metric = {"kind": "precision_recall", "neighbors": 25, "embedder": {"kind": "inception"}}
    public = {"data": f"{NOWHERE}/reference", "metrics": [metric], "where": {"split": "test"}}
    whiten = {"data": f"{NOWHERE}/white"}
    return tree | {
        "private": {
            **tree["private"],
            "data": f"{NOWHERE}/private",
            "where": {"split": "train"},
            "user_column": "patient",
            "node_label": "zone=private",
            "cache": f"{NOWHERE}/cache",
        },
        "generator": {"kind": "switch", "stages": stages},
        "embedder": {"kind": "clip", "checkpoint": f"{NOWHERE}/clip", "whiten": whiten},
        "votes": {"lookahead": 8, "neighbors": 40},
        "selection": {"overrides": {2: {"method": "rank"}, 4: {"smooth": 2}}},
        "schedule": {"iterations": 6, "num_samples": 5000, "degrees": [9, 8, 7, 0.6, 0.5, 0.4]},
        "privacy": {**tree["privacy"], "unit": "user", "account": f"{NOWHERE}/account"},
        "metrics": {"public": public},
        "resources": {"address": "10.0.0.1:6379", "gpus_per_worker": 1, "workers": 64},
        "output": {"path": f"{NOWHERE}/run"},
    }


def test_a_rehearsal_names_nothing_of_the_run(full: dict[str, Any], tmp_path: Path) -> None:
    small = rehearse(Config.from_dict(full), tmp_path)
    found = small.model_dump(mode="json")
    assert not [text for text in texts(found) if text.startswith((NOWHERE, "https:", "10."))]
    assert small.privacy.account is None
    assert small.private.where == {}
    assert not small.resources.gpus_per_worker


def test_a_rehearsal_keeps_the_shape_of_the_run(full: dict[str, Any], tmp_path: Path) -> None:
    small = rehearse(Config.from_dict(full), tmp_path)
    assert small.schedule.degree_list == (9, 0.6, 0.4)
    kinds = [small.generator_at(t).kind for t in range(4)]
    assert kinds == ["nearest_image", "nearest_image", "fal", "fal"]
    methods = [small.selection.at(t).method for t in (1, 2, 3)]
    assert methods == ["systematic"] * 3
    assert [small.selection.at(t).smooth for t in (1, 2, 3)] == [1, 2, 1]
    assert min(small.schedule.sizes) >= 26  # precision_recall asks for as many
    assert small.privacy.unit == "user"
    assert small.embedder.kind == "clip"


def test_stages_with_equal_generators_are_rehearsed(tree: dict[str, Any], tmp_path: Path) -> None:
    stages = [{"start": start, "generator": tree["generator"]} for start in (0, 2, 3)]
    schedule = tree["schedule"] | {"iterations": 5, "degrees": 0.5}
    switch = {"kind": "switch", "stages": stages}
    config = Config.from_dict(tree | {"generator": switch, "schedule": schedule})
    small = rehearse(config, tmp_path)
    assert isinstance(small.generator, Switch)
    assert [stage.start for stage in small.generator.stages] == [0, 2, 3]
    assert small.schedule.iterations == 4


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_rehearsal_runs_and_spends_nothing(full: dict[str, Any], tmp_path: Path) -> None:
    small = rehearse(Config.from_dict(full), tmp_path)
    path = evolve(small)
    assert (path / "synthetic" / ".manifest.json").exists()
    assert len(Ledger.open(path / "ledger.sqlite").entries()) == 3
    scores = json.loads((path / "scores" / "iter=0003.json").read_text())
    assert scores
    assert not Path(NOWHERE).exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sdxl_turbo", "service_openai"])
def test_pipelines_are_rehearsed_by_command(name: str, tmp_path: Path) -> None:
    file, here = PIPELINES / f"{name}.yaml", tmp_path / "here"
    here.mkdir()
    with tempfile.TemporaryDirectory(prefix="r-", dir="/tmp") as aside:  # sockets: a short path
        done = subprocess.run(
            [sys.executable, "-m", "pe_ray", "run", str(file), "--rehearse"],
            cwd=here,
            env={**os.environ, "TMPDIR": aside},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        (config,) = Path(aside).glob("pe-ray-rehearsal-*/run/config.yaml")
        made = yaml.safe_load(config.read_text())
    assert made["generator"]["kind"] == yaml.safe_load(file.read_text())["generator"]["kind"]
    assert "epsilon" not in done.stdout
    assert list(here.iterdir()) == []
