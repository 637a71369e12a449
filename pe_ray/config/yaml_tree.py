"""Plain values: a configuration as YAML has it, before and after it is validated."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pe_ray.config.places import may_hold_secret
from pe_ray.errors import InputError
from pe_ray.files.storage import GivenPath, Location, resolve_place

_REMOVED: Mapping[str, Mapping[str, Any]] = {
    "schedule": {"expand_degree": None},
    "privacy": {"label_count_share": 0.05},
    "pixels": {"center": False, "projection": None, "projection_seed": 0, "metric": "l2"},
    "stable_diffusion": {"local_files_only": False, "safety_checker": False},
    "random": {"negative_prompt": None},
    "vary": {"negative_prompt": None},
}
"""Block or kind -> keys that an earlier version had, with the defaults that it wrote."""


def read_tree(path: GivenPath, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the plain values of a user's file, with `overrides` (`block.key=value`) in place."""
    tree = _read(path, _UserLoader)
    for override in overrides:
        set_override(tree, override)
    return tree


def read_stored(path: Location) -> dict[str, Any]:
    """Return the plain values of a file that `dump_tree` or an earlier version wrote."""
    return _read(path, _UniqueKeys)


def dump_tree(tree: Mapping[str, Any]) -> str:
    """Return plain values as YAML, which reads the same in a user's file and in a stored one."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def digest_tree(tree: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of plain values, however their YAML is laid out."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()


def _read(path: GivenPath, loader: type[_UniqueKeys]) -> dict[str, Any]:
    try:
        text = resolve_place(path, "config").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"config {path}: can't be read ({type(error).__name__})") from error
    try:
        tree = _parse(text, loader)
    except yaml.YAMLError as error:
        raise InputError(f"config {path}: not YAML: {_explain(error, text)}") from None
    if not isinstance(tree, dict):
        raise InputError(f"config {path}: must be a mapping of blocks (private, generator, ...)")
    return tree


def _explain(error: yaml.YAMLError, text: str) -> str:
    """Return what is wrong with YAML and where; quote it only where `text` holds no secret."""
    mark = getattr(error, "problem_mark", None)
    if may_hold_secret(text):
        return f"see line {mark.line + 1}" if mark else type(error).__name__
    return " ".join(str(error).split())


def set_override(tree: dict[str, Any], override: str) -> None:
    """Apply one `block.key=value` in place."""
    name, equals, text = override.partition("=")
    shown = re.split(r"[^\w.]", override)[0] if may_hold_secret(override) else override
    if not equals or not name.rpartition(".")[2]:
        raise InputError(f"--set {shown}: write it as block.key=value")
    put(tree, name, read_value(text, f"--set {shown}"), f"--set {shown}")


def read_value(text: str, source: str) -> Any:
    """Return the plain value that `text` is as YAML; source: what it is of, for the InputError."""
    try:
        return _parse(text, _UserLoader)
    except yaml.YAMLError as error:
        secret = may_hold_secret(f"{source}={text}")
        reason = None if secret else getattr(error, "problem", None)
        raise InputError(f"{source}: not a value: {reason or 'not YAML'}") from None


def put(tree: dict[str, Any], name: str, value: Any, source: str) -> None:
    """Set the dotted key `name` in place; source: who asks, for the InputError."""
    *blocks, last = name.split(".")
    for block in blocks:
        tree = tree.setdefault(_key(tree, block), {})
        if not isinstance(tree, dict):
            raise InputError(f"{source}: {block} is not a block")
    tree[_key(tree, last)] = value


def _key(tree: Mapping[Any, Any], part: str) -> Any:
    """Return the key that is written `part`: YAML reads 1 as a number."""
    return next((key for key in tree if str(key) == part), part)


def drop_removed_keys(tree: Any, name: str = "") -> Any:
    """Return `tree` without keys that an earlier version had, where they hold their defaults.

    name: of the block. Any other value of such a key stays, and is refused as an unknown key.
    """
    if isinstance(tree, list):
        return [drop_removed_keys(item, name) for item in tree]
    if not isinstance(tree, Mapping):
        return tree
    removed = _REMOVED.get(str(tree.get("kind", name)), {})
    return {
        key: drop_removed_keys(value, str(key))
        for key, value in tree.items()
        if key not in removed or value != removed[key]
    }


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return the dotted keys whose values differ between two trees."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted({*old, *new}, key=str)
        found = [differences(old.get(k), new.get(k), f"{path}.{k}".lstrip(".")) for k in keys]
        return [key for keys_below in found for key in keys_below]
    return [] if old == new else [path]


def name_faults(error: ValidationError, tree: Any, prefix: str = "config: ") -> InputError:
    """Return all faults of a `tree` of plain values.

    prefix: what comes before a dotted key, the blocks around `tree` included.
    Of the branches of a union, the one that fits furthest is reported.
    """
    found: dict[tuple[str, ...], tuple[str, str]] = {}
    for fault in error.errors(include_url=False):
        message = fault["msg"].removeprefix("Value error, ")
        message = message.removeprefix("Input ").replace("should ", "must ", 1)
        if fault["type"] == "string_type" and isinstance(fault["input"], int | float):
            message += f'; write it in quotes: "{json.dumps(fault["input"])}"'
        keys = _keys(tree, fault)
        if named := re.match(r"([\w.]+): ", message):  # by a block's own check
            keys, message = [*keys, *named[1].split(".")], message[named.end() :]
        found.setdefault(tuple(keys), (fault["type"], message))
    lines: dict[Any, str] = {}
    for place, (kind, message) in found.items():
        if not any(_is_below(other, place) for other in found):
            # Of items of a list with the same fault, one stands for all.
            group = (*place[:-1], kind) if place and place[-1].isdecimal() else place
            lines.setdefault(group, f"{prefix}{'.'.join(place)}{': ' if place else ''}{message}")
    return InputError(*lines.values())


def _is_below(keys: tuple[str, ...], above: tuple[str, ...]) -> bool:
    return len(keys) > len(above) > 0 and keys[: len(above)] == above


def _keys(tree: Any, fault: ErrorDetails) -> list[str]:
    """Return where a fault is, without the names that pydantic gives to branches of a union."""
    keys, place = [], fault["loc"]
    for part in place:
        if isinstance(tree, list | tuple) and isinstance(part, int):
            tree = tree[part] if part < len(tree) else None
        elif isinstance(tree, Mapping) and part in tree:
            tree = tree[part]
        elif not (fault["type"] == "missing" and part == place[-1]):
            continue
        keys.append(str(part))
    return keys


def _parse(text: str, kind: type[_UniqueKeys]) -> Any:
    """Return the plain values of a YAML text; raise yaml.YAMLError."""
    loader = kind(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _UniqueKeys(yaml.SafeLoader):
    """YAML whose mappings name each key once. Of two equal keys, one would be ignored."""

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


class _UserLoader(_UniqueKeys):
    """The core schema of YAML 1.2: yes, 1:30 and dates are text, 1e-5 is a number.

    Numbers that YAML 1.1 and people read differently, such as 010, are refused.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def refuse_number(self, node: yaml.ScalarNode) -> None:
        problem = f"{node.value} may be octal or hexadecimal; write a number in decimal without "
        problem += "leading zeros, and text in quotes"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


class _Dumper(yaml.SafeDumper):
    """Quotes text that either loader would take for something else, and escapes odd line breaks."""

    def analyze_scalar(self, scalar: str) -> Any:
        found = super().analyze_scalar(scalar)
        if any(line_break in scalar for line_break in "\x85\u2028\u2029"):
            found.allow_single_quoted = found.allow_block = False  # where PyYAML loses them
        return found


_CORE = "tag:yaml.org,2002:"
_AMBIGUOUS = "!ambiguous"
for _tag, _pattern, _first in (
    (_CORE + "null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (_CORE + "bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (_CORE + "int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    (_AMBIGUOUS, r"[-+]?0([0-9_]+|[xob][0-9a-fA-F_]+)", list("-+0")),
    (
        _CORE + "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    (_CORE + "merge", r"<<", ["<"]),
):
    for _class in (_UserLoader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), _first)
_UserLoader.add_constructor(_AMBIGUOUS, _UserLoader.refuse_number)
