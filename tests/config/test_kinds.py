"""Plugins in a configuration: a kind and its options, flat, or the kind alone."""

from __future__ import annotations

from typing import Any

import pytest

from pe_ray import Config, InputError


def test_a_kind_alone_is_a_plugin_with_its_defaults(tree: dict[str, Any]) -> None:
    tree["embedder"] = "pixels"
    short = Config.from_dict(tree)
    tree["embedder"] = {"kind": "pixels"}
    assert Config.from_dict(tree) == short
    assert short.tree()["embedder"]["kind"] == "pixels"


@pytest.mark.parametrize("given", [{}, {"size": 3}, {"kind": 3}, None, 7, ["pixels"]])
def test_what_names_no_kind_is_refused(tree: dict[str, Any], given: Any) -> None:
    tree["embedder"] = given
    with pytest.raises(InputError, match="embedder: needs a `kind`"):
        Config.from_dict(tree)


def test_an_option_is_named_with_its_path(tree: dict[str, Any]) -> None:
    tree["metrics"] = {"audit": [{"kind": "frechet", "embedder": {"kind": "pixels", "size": 0}}]}
    with pytest.raises(InputError, match=r"metrics\.audit\.0\.embedder\.size: "):
        Config.from_dict(tree)


def test_defaults_of_plugins_in_plugins_are_plugins(tree: dict[str, Any]) -> None:
    tree["metrics"] = {"audit": ["kid", "frechet"]}
    kid, frechet = Config.from_dict(tree).metrics.audit
    assert kid.options.embedder.kind == "inception"
    assert frechet.options.embedder.options.size == 14
