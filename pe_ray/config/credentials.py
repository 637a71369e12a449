"""Secrets don't belong in a configuration: it is stored in the run directory, to be published."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_USER_INFO = re.compile(r"^[a-z][a-z0-9+.-]*://[^/?#\s]*@", re.IGNORECASE)
_SECRET_QUERY = re.compile(
    r"://\S*[?&][^=&\s]*(key|secret|token|passw|signature|credential)[^=&\s]*=", re.IGNORECASE
)


def refuse_credentials(tree: Any, field: str = "") -> None:
    """Raise ValueError naming the field of a URI that carries a user, a password or a key.

    tree: nested mappings and lists of plain values; the value itself is never quoted.
    """
    if isinstance(tree, Mapping):
        for name, below in tree.items():
            refuse_credentials(below, f"{field}.{name}".lstrip("."))
    elif isinstance(tree, (list, tuple)):
        for below in tree:
            refuse_credentials(below, field)
    elif isinstance(tree, str) and (_USER_INFO.search(tree) or _SECRET_QUERY.search(tree)):
        raise ValueError(
            f"{field}: holds credentials, and the configuration is published with the run; give "
            "them in the environment (AWS_ACCESS_KEY_ID, ...) or by the machine's role instead"
        )
