"""Plain values: a configuration as YAML has it, before it is validated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from pe_ray.errors import InputError
from pe_ray.files.storage import Location, given


def read_tree(path: str | Location, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The plain values of a YAML file, with `overrides` (`block.key=value`) in place."""
    try:
        text = given(path, "config").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"config {path}: can't be read ({type(error).__name__})") from error
    try:
        tree = _parsed(text)
    except yaml.YAMLError as error:
        raise InputError(f"config {path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise InputError(f"config {path}: must be a mapping of blocks (private, generator, ...)")
    for override in overrides:
        set_override(tree, override)
    return tree


def set_override(tree: dict[str, Any], override: str) -> None:
    """Apply one `block.key=value` in place."""
    name, equals, text = override.partition("=")
    if not equals or not name.rpartition(".")[2]:
        raise InputError(f"--set {override}: write it as block.key=value")
    try:
        value = _parsed(text)
    except yaml.YAMLError:
        raise InputError(f"--set {override}: {text!r} is not a YAML value") from None
    put(tree, name, value, f"--set {override}")


def put(tree: dict[str, Any], name: str, value: Any, source: str) -> None:
    """Set the dotted key `name` in place; source: who asks, for the InputError."""
    *blocks, last = name.split(".")
    for block in blocks:
        tree = tree.setdefault(_key(tree, block), {})
        if not isinstance(tree, dict):
            raise InputError(f"{source}: {block} is not a block")
    tree[_key(tree, last)] = value


def _key(tree: Mapping[Any, Any], part: str) -> Any:
    """The key that is written `part`: YAML reads 1 as a number."""
    return next((key for key in tree if str(key) == part), part)


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Dotted keys whose values differ between two trees."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted({*old, *new}, key=str)
        found = [differences(old.get(k), new.get(k), f"{path}.{k}".lstrip(".")) for k in keys]
        return [key for keys_below in found for key in keys_below]
    return [] if old == new else [path]


def _parsed(text: str) -> Any:
    """Plain values of a YAML text; raises yaml.YAMLError."""
    loader = _UniqueKeys(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _UniqueKeys(yaml.SafeLoader):
    """YAML whose mappings name each key once: of two, one would be passed over in silence."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise yaml.composer.ComposerError(
                    None, None, f"{key.value} is given twice", key.start_mark
                )
            seen.add(key.value)
        return node
