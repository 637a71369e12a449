"""Files that a configuration names: a run continues only with the content that it began with.

`files.json` in the run directory holds a digest of each, by its path as the configuration writes
it. It is published, so nothing of the private records is digested, however it is reached.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pe_ray.config import Config
from pe_ray.config.places import lies_in
from pe_ray.errors import InputError
from pe_ray.files.contents import (
    digest_place,
    find_place,
    holds_own_work,
    list_named,
    names_images,
    walk_links,
)
from pe_ray.files.storage import (
    Location,
    atomic_write,
    delete_tree,
    find_cache,
    io_errors_as_input_errors,
)

FILES = "files.json"
FEATURES = "features"
"""Folder of the learnt embedder; its files' names stand for all that they are made from."""


def bind_files(run: Location, config: Config, bound: Mapping[str, Any], *, bare: bool) -> None:
    """Bind a run directory to the files that `bound` names; refuse another content.

    bound: plain values of the configuration. bare: whether nothing was made yet, so that the files
    may be replaced. Files that this machine lacks are left to the workers. What isn't recorded yet
    is added. What would be a digest of private records, after a mistake was corrected, is removed.
    """
    stored = _read_files(run)
    named = _digest_named(config, bound)
    digests = {text: digest for _, text, digest in named}
    if bare:
        if any(stored.get(text, digest) != digest for text, digest in digests.items()):
            delete_tree(run / FEATURES)  # they were learnt from the files before
        kept = {}
    else:
        _refuse_other_files(run, stored, named)
        kept = {text: digest for text, digest in stored.items() if not _is_own(text, config)}
    if kept | digests != stored:
        with io_errors_as_input_errors("output.path", run):
            atomic_write(run / FILES, json.dumps(kept | digests, indent=1).encode())


def require_same_files(run: Location, config: Config, bound: Mapping[str, Any]) -> None:
    """Raise InputError for a file that `bound` names and whose content is not the run's."""
    _refuse_other_files(run, _read_files(run), _digest_named(config, bound))


def digest_named_files(config: Config, tree: Mapping[str, Any]) -> dict[str, str]:
    """Return text -> digest of each file and folder that `tree`, a part of `config`, names."""
    return {text: digest for _, text, digest in _digest_named(config, tree)}


def _refuse_other_files(
    run: Location, stored: Mapping[str, str], named: Iterable[tuple[str, str, str]]
) -> None:
    for field, text, digest in named:
        if stored.get(text, digest) != digest:
            raise InputError(
                f"{field}: {text} holds something else than when {run} was made; restore it, or "
                "make a new run, which spends its own budget"
            )


def _read_files(run: Location) -> dict[str, str]:
    file = run / FILES
    with io_errors_as_input_errors("output.path", run):
        held = file.read_bytes() if file.exists() else b"{}"
    try:
        stored: dict[str, str] = dict(json.loads(held))
    except (ValueError, TypeError):
        raise InputError(f"{file}: is damaged; restore it from a copy, or delete it") from None
    return stored


def _digest_named(config: Config, bound: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return (dotted key, text, digest) of each file and folder that `bound` names.

    Guarantee: nothing of the private records, of an audit's or of the run itself is digested.
    """
    apart = {name: tree for name, tree in bound.items() if name not in ("private", "output")}
    found = []
    for field, text in list_named(apart):
        place = find_place(text)
        if place is None or (isinstance(place, Path) and holds_own_work(place)):
            continue
        if _is_own(text, config):
            continue
        digest = digest_place(place, images=names_images(field))
        if digest is not None:
            found.append((field, text, digest))
    return found


def _is_own(text: str, config: Config) -> bool:
    """Tell whether a path is, holds, lies in or leads by a link to what must not be digested."""
    private = config.private
    cache = private.cache or str(find_cache() / "pe_ray" / "private")
    given = (private.data, cache, config.metrics.audit_data, config.output.path)
    own = [each for each in given if each]
    reached = [text, *_list_linked(find_place(text))]
    return any(lies_in(place, each) or lies_in(each, place) for place in reached for each in own)


def _list_linked(place: Location | None) -> Iterator[str]:
    """Yield where the links below a local folder lead."""
    if not isinstance(place, Path):
        return
    for parent, folders, files in walk_links(place):
        linked = (os.path.join(parent, name) for name in (*folders, *files))
        yield from (os.path.realpath(path) for path in linked if os.path.islink(path))
