"""Places in a configuration: local paths and URIs of stores; and that no value holds credentials.

Every option that is a path has one of the types here. A leading ~ is the home folder where the
option is used. A run publishes the text as it was written, without the home folder's name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    PlainSerializer,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from pe_ray.files.storage import ObjectPath, parse_location

_USER_INFO = re.compile(r"^[a-z][a-z0-9+.-]*://[^/?#\s]*@", re.IGNORECASE)
_SECRET_QUERY = re.compile(
    r"://\S*[?&][^=&\s]*(key|secret|token|passw|signature|credential)[^=&\s]*=", re.IGNORECASE
)
_KEY = re.compile(
    r"(?<![A-Za-z0-9])("
    r"sk-[\w-]*?(?=[A-Za-z_]*[0-9])\w{16,}|(hf|gh[a-z]|github_pat)_\w{20,}|xox[a-z]-[\w-]{10,}|"
    r"A[KS]IA[0-9A-Z]{16}|AIza[\w-]{30,}|eyJ[\w-]{10,}\.[\w-]{4,})|-----BEGIN "
)
"""Keys of OpenAI and others, Hugging Face, GitHub, Slack, AWS, Google; JWT; PEM."""
_NAMES = (
    r"((api|access|secret|private|signing)[_-]?key|secret|token|password|passwd|passphrase|"
    r"authorization|credentials?)"
)
_SECRET_NAME = re.compile(_NAMES + "$", re.IGNORECASE)
_SECRET_LINE = re.compile(rf"({_NAMES}|_env)[\"']?\s*[:=]|://\S*@", re.IGNORECASE)
_USERS_NAMES = {"where", "audit_where", "prompts", "texts", "classes"}
"""Mappings whose keys are columns or labels."""
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")


class HomePath(str):
    """A path with the home folder in place of ~.

    use: `local` where it must be on every machine that uses it, `data` where it may be the URI of a
    store, `folder` where it is made if it isn't there. Else it may be the name of something.
    """

    written: str
    use: Literal["any", "local", "data", "folder"] = "any"


def _expand_home(text: Any, read: ValidatorFunctionWrapHandler) -> HomePath:
    text = str(text) if isinstance(text, os.PathLike | ObjectPath) else text
    path = HomePath(os.path.expanduser(read(text)))
    path.written = getattr(text, "written", read(text))
    return path


def _as_written(path: str) -> str:
    return str(getattr(path, "written", path))


def _mark_local(path: HomePath) -> HomePath:
    path.use = "local"
    return path


def _require_place(place: HomePath) -> HomePath:
    parse_location(place)
    place.use = "data"
    return place


def _require_local(place: HomePath) -> HomePath:
    local = parse_location(place)
    if not isinstance(local, Path):
        raise ValueError("must be a local folder")
    folder = HomePath(local)  # of a file:// URI, too
    folder.written, folder.use = place.written, "folder"
    return folder


def _require_color(color: str) -> str:
    from PIL import ImageColor  # a moment's work, which most commands are spared

    ImageColor.getrgb(color)  # raises a ValueError that says so
    return color


Color = Annotated[str, AfterValidator(_require_color)]
"""A colour as Pillow reads it."""
PathText = Annotated[str, WrapValidator(_expand_home), PlainSerializer(_as_written)]
"""A local path, or what stands for one: the id of a checkpoint, `system` for fonts."""
LocalFile = Annotated[PathText, AfterValidator(_mark_local)]
"""A local file or folder that must be on every machine that uses it."""
Place = Annotated[PathText, AfterValidator(_require_place)]
"""A local path or the URI of a store."""
LocalFolder = Annotated[PathText, AfterValidator(_require_local)]
"""A local path."""


def lies_in(place: str, folder: str) -> bool:
    """Return whether `place` is `folder` or below it."""
    outer = _parts(folder)
    return _parts(place)[: len(outer)] == outer


def apart(data: str, where: Mapping[str, Any], private: Any) -> bool:
    """Return whether rows of `data` that pass `where` are other records than the private ones.

    private: the block `private`. Paths and common columns of the two filters decide.
    """
    nested = lies_in(data, private.data) or lies_in(private.data, data)
    common = where.keys() & private.where.keys()
    return not nested or any(str(where[key]) != str(private.where[key]) for key in common)


def _parts(place: str) -> tuple[str, ...]:
    """Return the steps to `place` from the root or the bucket, however it is written."""
    try:
        found = parse_location(place)
    except ValueError:  # reported by the reader of that place
        return (place,)
    if isinstance(found, Path):
        return found.resolve().parts
    return (found.scheme, *(part for part in found.key.split("/") if part))


def refuse_credentials(tree: Any, field: str = "") -> None:
    """Raise ValueError for a value that is a secret by its name or its form; never quote it.

    The configuration is published with the run. tree: nested mappings and lists of plain values.
    Secrets are URIs with a user, a password or a key, what begins as known keys do, and what stands
    under a name such as `api_key`. A name that ends in `_env` names an environment variable.
    """
    _refuse_secrets(tree, field, names_secret=False, users_names=False)


def _refuse_secrets(tree: Any, field: str, *, names_secret: bool, users_names: bool) -> None:
    if isinstance(tree, Mapping):
        for name, below in tree.items():
            named = not users_names and _SECRET_NAME.search(str(name)) is not None
            _refuse_secrets(
                below,
                f"{field}.{name}".lstrip("."),
                names_secret=names_secret or named,
                users_names=name in _USERS_NAMES,
            )
    elif isinstance(tree, (list, tuple)):
        for below in tree:
            _refuse_secrets(below, field, names_secret=names_secret, users_names=False)
    elif tree is None or tree == "" or isinstance(tree, bool):
        return
    elif names_secret or (isinstance(tree, str) and _holds_secret(tree)):
        raise ValueError(
            f"{field}: holds credentials, and the configuration is published with the run; give "
            "them in the environment (AWS_ACCESS_KEY_ID, ...) or by the machine's role instead"
        )
    elif field.endswith("_env") and not _VARIABLE.fullmatch(str(tree)):
        raise ValueError(
            f"{field}: must be the name of an environment variable, in capitals; put the key into "
            "that variable, as the configuration is published with the run"
        )


def _holds_secret(text: str) -> bool:
    return any(form.search(text) for form in (_USER_INFO, _SECRET_QUERY, _KEY))


def may_hold_secret(text: str) -> bool:
    """Tell whether text that was not read yet, such as damaged YAML, should not be quoted."""
    return _holds_secret(text) or _SECRET_LINE.search(text) is not None
