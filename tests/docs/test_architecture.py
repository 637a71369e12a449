"""What docs/architecture.md says can be added is added, as written, from outside the package."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from pe_ray import Config, plugins
from pe_ray.plugins.seeds import row_seeds
from pe_ray.release.releases import kind_of
from pe_ray.synthetic.denoising import make_denoiser
from pe_ray.synthetic.export import load_format
from pe_ray.synthetic.export_formats import LabelledImages
from pe_ray.tuning.search import Search
from pe_ray.values import ImageShape, Release

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architecture.md"
MODULE = "shown_in_architecture"

ADDED: dict[plugins.PluginType, str] = {
    "generator": "Grey",
    "embedder": "Brightness",
    "metric": "MeanGap",
    "denoiser": "Power",
    "export_format": "LabelList",
    "release": "Sizes",
    "tuning_strategy": "Folder",
    "tuning_objective": "Contrast",
}


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The examples of the page, in one importable module."""
    examples = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / f"{MODULE}.py").write_text("\n\n".join(examples))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield
    sys.modules.pop(MODULE, None)


def kind(plugin_type: plugins.PluginType) -> str:
    return f"{MODULE}:{ADDED[plugin_type]}"


@pytest.mark.parametrize("plugin_type", ADDED)
def test_the_registry_finds_each(plugin_type: plugins.PluginType) -> None:
    found = plugins.load(plugin_type, kind(plugin_type))
    assert found.__name__ == ADDED[plugin_type]
    assert issubclass(plugins.options_of(found), plugins.Options)


def test_a_configuration_names_them_with_their_options(tree: dict[str, Any]) -> None:
    tree["generator"] = {"kind": kind("generator"), "side": 6}
    tree["embedder"] = kind("embedder")
    tree["selection"] = {"denoise": {"kind": kind("denoiser"), "exponent": 3}}
    tree["metrics"] = {"audit": [kind("metric")]}
    config = Config.from_dict(tree)
    assert config.image_shape == ImageShape(height=6, width=6, channels=1)
    assert Config.from_dict(config.tree()).bound() == config.bound()
    denoiser = make_denoiser(config.selection.at(1))
    assert denoiser.weigh(np.array([2.0, -1.0]), 1.0).tolist() == [8.0, 0.0]


def test_a_generator_an_embedder_and_a_metric() -> None:
    made: Any = plugins.load("generator", kind("generator"))
    generator = made(made.Options(side=5), ["a"])
    seeds = row_seeds(0, "random", 0, np.arange(4, dtype=np.int64))
    rows = generator.random(np.zeros(4, dtype=np.int32), seeds)
    assert rows["image"].shape == (4, 5, 5, 1)
    assert np.array_equal(generator.vary(rows, 0.0, seeds)["image"], rows["image"])
    varied = generator.vary(rows, 0.5, seeds)["image"]
    assert not np.array_equal(varied, rows["image"])
    embedder: Any = plugins.load("embedder", kind("embedder"))
    vectors = embedder(embedder.Options()).embed(rows["image"])
    assert vectors.shape == (4, 1)
    assert vectors[:, 0].tolist() == rows["image"][:, 0, 0, 0].tolist()
    metric: Any = plugins.load("metric", kind("metric"))
    labels = np.zeros(4, dtype=np.int32)
    assert metric(None).score(varied, labels, varied, labels) == {"mean_gap": 0.0}


def test_an_export_format(tmp_path: Path) -> None:
    form, labels = load_format(kind("export_format")), np.array([2, 1], dtype=np.int32)
    images = LabelledImages(first=0, pngs=[b"", b""], labels=labels, names=["a", "b", "c"])
    content = form.write(tmp_path, images)
    (tmp_path / f"part.{form.suffix}").write_bytes(content)
    assert np.load(tmp_path / "part.npy").tolist() == [2, 1]


def test_a_strategy_and_an_objective(tree: dict[str, Any], tmp_path: Path) -> None:
    tree["tuning"] = {
        "strategy": {"kind": kind("tuning_strategy"), "folder": str(tmp_path)},
        "objective": {"kind": kind("tuning_objective"), "target": 0.0},
        "space": {"votes.neighbors": [1, 2]},
    }
    search = Search.from_dict(tree)
    trial = search.strategy.configure_trial(search, search.config)
    assert trial.private.data == str(tmp_path)
    assert trial.private.labels == search.config.private.labels
    assert search.strategy.result_mu(search) > 0
    scorer = search.objective.make_scorer(search, trial.image_shape, None)
    grey = np.full((3, 4, 4, 1), 9, dtype=np.uint8)
    assert scorer(grey, np.zeros(3, dtype=np.int32)) == 0.0


def test_the_page_shows_one_of_each_type() -> None:
    assert set(ADDED) == set(get_args(plugins.PluginType))


def test_a_kind_of_release() -> None:
    shown: Any = kind("release")
    release = Release(key="sizes", kind=shown, iteration=0, votes_per_unit=1, sigma=1.0)
    made = kind_of(release)
    assert made.describe(release) == "image sizes"
    answer = made.answer(release, np.array([3, 4]))
    assert answer.noisy_votes.tolist() == [3, 4]
