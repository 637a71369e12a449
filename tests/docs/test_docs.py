"""The pages under docs/ are as new as the code, and their example runs."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import yaml

from pe_ray import Config, InputError
from pe_ray.config import Config as Tree
from pe_ray.files.image_batches import read_images
from pe_ray.files.image_tables import ImageTable
from pe_ray.values import Framing, ImageShape

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def generate() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPOSITORY))
        yield importlib.import_module("docs.generate")


def test_the_configuration_page_and_the_schema_are_fresh(generate: ModuleType) -> None:
    made, stale = generate.schema(), "stale: run `python -m docs.generate`"
    written = generate.PAGE.read_text(encoding="utf-8")
    assert json.loads(generate.SCHEMA.read_text(encoding="utf-8")) == made, stale
    assert written == generate.page(made), stale
    for block in Tree.model_fields:
        assert f"## `{block}`" in written or block == "embedder"
    for kind in ("rendered_text", "stable_diffusion", "clip", "frechet"):
        assert f"### `{kind}`" in written


YAMLS = [*REPOSITORY.glob("pipelines/*.yaml"), *REPOSITORY.glob("benchmarks/*/*.yaml")]


@pytest.mark.parametrize("file", sorted(YAMLS), ids=lambda file: file.name)
def test_the_schema_that_a_pipeline_names_describes_it(file: Path) -> None:
    text = file.read_text()
    named = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert named is not None
    schema = file.parent / named.group(1)
    assert schema.resolve() == DOCS / "schema.json"
    validator = jsonschema.Draft202012Validator(json.loads(schema.read_text()))
    tree = yaml.safe_load(text)
    assert list(validator.iter_errors(tree)) == []
    tree["generator"]["no_such_option"] = 1
    assert list(validator.iter_errors(tree))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("votes", {"neighbours": 3}),
        ("embedder", {"kind": "pixels", "size": 0}),
        ("embedder", {"kind": "no_such_kind"}),
        ("embedder", {"kind": "clip"}),
        ("selection", {"overrides": {"1": {"smooth": 0}}}),
        ("privacy", {"epsilon": 1}),
    ],
)
def test_the_schema_refuses_what_a_run_would(
    tree: dict[str, Any], key: str, value: dict[str, Any]
) -> None:
    validator = jsonschema.Draft202012Validator(json.loads((DOCS / "schema.json").read_text()))
    assert list(validator.iter_errors(tree)) == []
    tree[key] = value
    assert list(validator.iter_errors(tree))
    with pytest.raises(InputError, match=key):
        Config.from_dict(tree)


def test_the_configuration_pages_example_is_valid() -> None:
    (example,) = blocks(DOCS / "configuration.md", "yaml")
    assert Config.from_dict(yaml.safe_load(example)).schedule.iterations == 4


RUN_AND_AUDIT = """
import contextlib, sys
import ray
from pe_ray.cli import main

ray.init(log_to_driver=False)
with contextlib.redirect_stdout(sys.stderr):
    assert main(["run", "discs.yaml", "--set", "resources={num_cpus: 2, workers: 1}"]) == 0
assert main(["audit", "runs/discs", "--json"]) == 0
"""


def test_the_plugin_example_runs_as_written(ray_session: None, tmp_path: Path) -> None:
    """From a folder that holds nothing but what the page shows, in the Ray that runs already."""
    import ray

    (module,) = blocks(DOCS / "plugins.md", "python")
    (config,) = blocks(DOCS / "plugins.md", "yaml")
    (tmp_path / "my_plugins.py").write_text(module)
    (tmp_path / "discs.yaml").write_text(config)
    search = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    address = ray.get_runtime_context().gcs_address
    done = subprocess.run(
        [sys.executable, "-c", RUN_AND_AUDIT],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": search, "RAY_ADDRESS": address},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0 <= json.loads(done.stdout)["ink"] <= 1


def test_the_example_of_images_in_memory_runs_as_written(tmp_path: Path) -> None:
    (example,) = blocks(DOCS / "storage.md", "python")
    search = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": search},
        check=True,
    )
    for name in ("pets", "held"):
        data = str(tmp_path / f"{name}.parquet")
        table = ImageTable(block="private", private=True, data=data, labels=("cat", "dog"))
        framing = Framing(shape=ImageShape(height=8, width=8, channels=1))
        images, labels = read_images(table, framing)
        found = dict(zip(labels.tolist(), images[:, 0, 0, 0].tolist(), strict=True))
        assert found == ({0: 0, 1: 200} if name == "pets" else {1: 0, 0: 200})


def test_links_between_pages_lead_somewhere() -> None:
    for page in DOCS.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if not target.startswith("https://"):
                assert (DOCS / target).exists(), f"{page.name}: {target}"


def test_the_errors_listed_are_those_of_the_code() -> None:
    source = "".join(file.read_text() for file in (REPOSITORY / "pe_ray").rglob("*.py"))
    source = re.sub(r'"\s*(#[^\n]*)?\n\s*f?"', "", source)  # literals that go on in the next line
    source = re.sub(r"\{[^{}]*\}|\(s\)|%d|%s", "...", source)
    table = (DOCS / "operations.md").read_text().split("## Errors")[1]
    listed = re.findall(r"^\| `(.+?)` \|", table, re.MULTILINE)
    assert len(listed) > 10
    for message in listed:
        for part in re.split(r"\.\.\.|\b[A-Z]\b|RUN", message):
            assert part.strip() in source, message
