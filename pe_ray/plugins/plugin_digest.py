"""What the answers of a plugin depend on, as one digest: code, options, content of named files."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from pe_ray.files.contents import digest_place, find_place, holds_own_work, stat_entries
from pe_ray.plugins.options import BOUND, Options
from pe_ray.plugins.registry import PluginType, load


def digest_plugin(plugin_type: PluginType, kind: str, options: Options) -> str:
    """Return a SHA-256 (hex) of what the plugin's answers depend on, for the key of a cache.

    That is its code (the files that define its class and the classes it inherits from, and the
    version of this package), its options, and the content of each file or folder that an option
    names. Of a plugin in its options too. A name on the Hugging Face hub counts with the commit
    that this machine's cache has for it.

    Not noticed: other modules of its package, and other versions of the packages that it uses.
    """
    parts = {
        # Not by an import: the package's own would be a circle.
        "version": sys.modules[__name__.partition(".")[0]].__version__,
        "kind": kind,
        "code": [_digest_code(found) for found in (load(plugin_type, kind), *_inner(options))],
        "options": _with_contents(options.model_dump(mode="json", context=BOUND)),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _inner(value: Any) -> Iterator[Any]:
    """Yield the plugins that options name."""
    if isinstance(value, BaseModel):
        if {"plugin_type", "kind", "options"} <= type(value).model_fields.keys():
            yield load(value.plugin_type, value.kind)  # type: ignore[attr-defined]
        for _, below in value:
            yield from _inner(below)
    elif isinstance(value, Mapping):
        yield from _inner([*value.values()])
    elif isinstance(value, list | tuple):
        for below in value:
            yield from _inner(below)


def _digest_code(plugin: Any) -> list[str]:
    classes = getattr(plugin, "__mro__", (plugin,))
    names = dict.fromkeys(getattr(each, "__module__", "") for each in classes)
    return [_digest_module(sys.modules[name]) for name in names if name in sys.modules]


@lru_cache(maxsize=256)
def _digest_module(module: ModuleType) -> str:
    """Return a digest of a module's file as it is when first asked: what is loaded stays loaded."""
    file = getattr(module, "__file__", None)
    return module.__name__ if file is None else digest_place(Path(file)) or module.__name__


def _with_contents(tree: Any) -> Any:
    """Return plain values in which each text that names a file is replaced by its content."""
    if isinstance(tree, Mapping):
        made = {str(name): _with_contents(below) for name, below in tree.items()}
        commits = {name: _hub_commit(below, tree.get("revision")) for name, below in tree.items()}
        found = {f"{name}'s commit": commit for name, commit in commits.items() if commit}
        return {**made, **found}
    if isinstance(tree, list | tuple):
        return [_with_contents(below) for below in tree]
    place = find_place(tree) if isinstance(tree, str) else None
    if isinstance(place, Path) and holds_own_work(place):
        return {"folder": str(place.resolve()), "entries": stat_entries(place, folders=False)}
    digest = None if place is None else digest_place(place)
    # The name stays, since an embedder may tell by it what the file is.
    return tree if place is None or digest is None else {"name": place.name, "content": digest}


def _hub_commit(name: Any, revision: Any) -> str | None:
    """Return the commit that this machine's cache has for `revision` of a hub name."""
    if not isinstance(name, str) or find_place(name) is not None:
        return None
    name = name.removeprefix("hf-hub:")  # as timm writes it
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return None
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return None
    folder = Path(HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "refs")
    try:
        return (folder / str(revision or "main")).read_text()
    except (OSError, ValueError):
        return None
