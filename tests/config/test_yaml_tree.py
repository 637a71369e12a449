"""Plain values: read from YAML, overridden by dotted keys, compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pe_ray import Config, InputError
from pe_ray.config.yaml_tree import differences, read_tree, set_override


def test_a_key_that_a_file_gives_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("privacy: {epsilon: 1.0}\nvotes: {}\nprivacy: {epsilon: 8.0}\n")
    with pytest.raises(InputError, match="privacy is given twice"):
        read_tree(file)
    file.write_text("a: &a {x: 1}\nb: {c: &c {<<: *a, x: 2}}\nd: {<<: *c, y: 3}\n")
    assert read_tree(file)["d"] == {"x": 2, "y": 3}


@pytest.mark.parametrize("text", ["- a\n", "a: [1\n", "\x00", "just text"])
def test_a_file_without_blocks_is_refused_by_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=rf"^config {file}: "):
        read_tree(file)


def test_an_override_of_one_iteration_keeps_its_others(tree: dict[str, Any]) -> None:
    tree["selection"] = {"overrides": {1: {"threshold": 5, "smooth": 4}}}
    set_override(tree, "selection.overrides.1.method=rank")
    settings = Config.from_dict(tree).selection.at(1)
    assert (settings.smooth, settings.method) == (4, "rank")


def test_overrides_make_the_blocks_that_are_missing() -> None:
    tree: dict[str, Any] = {"a": {"b": 1}}
    set_override(tree, "a.c=[1, 2]")
    set_override(tree, "d.e.f=x")
    assert tree == {"a": {"b": 1, "c": [1, 2]}, "d": {"e": {"f": "x"}}}
    for wrong in ("a.b", "=1", "a.=1", "a.b.c=1", "a.b=[1"):
        with pytest.raises(InputError, match="--set"):
            set_override(tree, wrong)


def test_differences_are_dotted_keys() -> None:
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 5}
    assert differences(old, new) == ["a.c", "d", "e"]
    assert differences(old, old) == []
