"""A run that needs an extra is refused in one line that names it."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel

from pe_ray import Config, InputError, evolve, plugins
from pe_ray.config.extras import EXTRAS, require_extras, require_paths
from pe_ray.plugins import PluginType

REPOSITORY = Path(__file__).parents[2]
TYPES: tuple[PluginType, ...] = ("generator", "embedder", "metric")
KINDS = [(plugin_type, kind) for plugin_type in TYPES for kind in plugins.registered(plugin_type)]


def config(output: Path, **blocks: Any) -> Config:
    tree = {
        "private": {"data": "sklearn:digits", "labels": [str(digit) for digit in range(10)]},
        "generator": {"kind": "rendered_text", "image_size": 28},
        "embedder": {"kind": "pixels"},
        "schedule": {"iterations": 1, "num_samples": 100, "degrees": [0.5]},
        "privacy": {"epsilon": 1, "delta": 1e-4, "unit": "record", "label_fractions": "uniform"},
        "output": {"path": str(output)},
    }
    return Config.from_dict(tree | blocks)


@pytest.mark.parametrize(
    ("blocks", "module", "field", "extra"),
    [
        (
            {"embedder": {"kind": "clip", "checkpoint": "a"}},
            "transformers",
            "embedder",
            "embedders",
        ),
        ({"embedder": {"kind": "label_features"}}, "torch", "embedder", "embedders"),
        ({"embedder": {"kind": "natural"}}, "timm", "embedder", "natural"),
        (
            {
                "embedder": {
                    "kind": "joined",
                    "members": [{"embedder": "pixels"}, {"embedder": "natural"}],
                }
            },
            "timm",
            "embedder.members.embedder",
            "natural",
        ),
        ({"embedder": {"kind": "onnx", "file": "a", "size": 8}}, "onnxruntime", "embedder", "onnx"),
        ({"teacher": {"features": 8, "share": 0.2}}, "torch", "teacher", "embedders"),
        ({"metrics": {"audit": [{"kind": "cnn"}]}}, "torch", "metrics.audit", "embedders"),
        (
            {"metrics": {"audit": [{"kind": "frechet", "embedder": {"kind": "inception"}}]}},
            "cleanfid",
            "metrics.audit.embedder",
            "embedders",
        ),
    ],
)
def test_a_run_without_its_extra_is_refused_before_it_starts(
    blocks: dict[str, Any],
    module: str,
    field: str,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = config(tmp_path / "run", **blocks)
    require_extras(made)
    monkeypatch.setitem(sys.modules, module, None)  # as Python finds one that isn't installed
    with pytest.raises(InputError, match=rf"^{field}: .*{module}.*pe_ray\[{extra}\]"):
        evolve(made)
    assert not (tmp_path / "run").exists()


def test_a_plugin_of_another_package_names_its_own_dependencies() -> None:
    class Part(BaseModel):
        modules: ClassVar[tuple[str, ...]] = ("no_such_module",)

    with pytest.raises(InputError, match=r"^generator: .*pip install no_such_module$"):
        require_extras(Part(), "generator")


@pytest.mark.parametrize(("plugin_type", "kind"), KINDS)
def test_an_extra_brings_what_a_plugin_needs(plugin_type: PluginType, kind: str) -> None:
    modules = set(plugins.load(plugin_type, kind).Options.modules)
    assert any(modules <= held for held in EXTRAS.values())


def test_the_project_declares_these_extras() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    declared = project["optional-dependencies"]
    for extra, modules in EXTRAS.items():
        packages = {name.split(">")[0].replace("-", "") for name in declared[extra]}
        assert {name.replace("_", "") for name in modules} <= packages
    base = {name.split(">")[0] for name in project["dependencies"]}
    assert not base & {"torch", "torchvision", "diffusers", "transformers", "clean-fid"}


def test_every_path_that_cannot_be_used_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    made = config(
        tmp_path / "run",
        private={
            "data": "sklearn:digits",
            "labels": [str(digit) for digit in range(10)],
            "cache": str(tmp_path / "file" / "cache"),
        },
        generator={
            "kind": "diffusers",
            "checkpoint": "an/id",  # of a hub
            "image_size": 64,
            "lora": [{"file": "lora.safetensors"}],
            "vary": {"checkpoint": "./nothing"},
        },
        embedder={"kind": "onnx", "file": "net.onnx", "size": 8},
    )
    with pytest.raises(InputError) as caught:
        require_paths(made)
    assert {fault.split(": ")[0] for fault in caught.value.faults} == {
        "private.cache",
        "generator.lora.file",
        "generator.vary.checkpoint",
        "embedder.file",
    }
    require_paths(config(tmp_path / "run"))
