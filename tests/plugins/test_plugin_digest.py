"""What a plugin is made of: its code, its options, the files that they name."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from weighed import save_weights

from pe_ray import plugins
from pe_ray.plugins import digest_plugin

SOURCE = """
from pe_ray.components.embedders.pixels import PixelsOptions
from own_base import Base

class Own(Base):
    Options = PixelsOptions
    scale = 1
"""


def digest(kind: str, **options: Any) -> str:
    made = plugins.load("embedder", kind).Options(**options)
    return digest_plugin("embedder", kind, made)


def test_edited_code_is_another_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    files = {"own_embedder": SOURCE, "own_base": "class Base:\n    shift = 1\n"}

    def now() -> str:
        for name, source in files.items():
            monkeypatch.delitem(sys.modules, name, raising=False)
            (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        return digest("own_embedder:Own")

    first = now()
    assert now() == first
    for name in files:
        files[name] = files[name].replace("= 1", "= 2")
        assert now() != first
        files[name] = files[name].replace("= 2", "= 1")


def test_options_and_kinds_are_told_apart() -> None:
    found = {digest("pixels"), digest("pixels", size=7), digest("weighed:Weighed", checkpoint="-")}
    assert len(found) == 3
    assert digest("pixels") == digest("pixels", size=14)


def test_files_that_options_name_count_by_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = save_weights(tmp_path / "one" / "clip", 0)
    copy = save_weights(tmp_path / "two" / "clip", 0)
    other = save_weights(tmp_path / "three" / "clip", 1)
    found = [digest("weighed:Weighed", checkpoint=str(each)) for each in (first, copy, other)]
    assert found[0] == found[1] != found[2]
    monkeypatch.setenv("HOME", str(tmp_path / "three"))
    monkeypatch.chdir(tmp_path / "one")
    assert digest("weighed:Weighed", checkpoint="clip") == found[0]
    assert digest("weighed:Weighed", checkpoint="~/clip") == found[2]
    here = digest("weighed:Weighed", checkpoint=".")
    monkeypatch.chdir(tmp_path / "two")
    assert digest("weighed:Weighed", checkpoint=".") != here


def test_a_plugin_in_options_counts_with_its_files(tmp_path: Path) -> None:
    def of_metric() -> str:
        inner = {"kind": "weighed:Weighed", "checkpoint": str(tmp_path / "clip")}
        options = plugins.load("metric", "frechet").Options(embedder=inner)
        return digest_plugin("metric", "frechet", options)

    save_weights(tmp_path / "clip", 0)
    first = of_metric()
    save_weights(tmp_path / "clip", 1)
    assert of_metric() != first


def test_a_hub_name_counts_with_the_commit_that_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    refs = tmp_path / "models--openai--tiny" / "refs"
    refs.mkdir(parents=True)
    found = [digest("clip", checkpoint="openai/tiny")]
    for commit in ("1" * 40, "2" * 40):
        (refs / "main").write_text(commit)
        found.append(digest("clip", checkpoint="openai/tiny"))
    assert len(set(found)) == 3
    assert digest("clip", checkpoint="openai/tiny", revision="2" * 40) not in found
    before = digest("timm", model="hf-hub:openai/tiny")
    (refs / "main").write_text("3" * 40)
    assert digest("timm", model="hf-hub:openai/tiny") != before


def test_a_plugin_is_built_again_when_its_file_changes(tmp_path: Path) -> None:
    folder = save_weights(tmp_path / "clip", 0)
    file = folder / "network" / "weights.npy"
    options = plugins.load("embedder", "weighed:Weighed").Options(checkpoint=str(folder))
    first, state = plugins.build("embedder", "weighed:Weighed", options), file.stat()
    assert plugins.build("embedder", "weighed:Weighed", options) is first
    save_weights(folder, 1)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert plugins.build("embedder", "weighed:Weighed", options) is not first
