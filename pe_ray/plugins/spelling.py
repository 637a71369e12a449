"""Names that a misspelt one may stand for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that `name` is, or may be a misspelling of."""
    return next(iter(difflib.get_close_matches(name, known, n=1)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of an error about an unknown name."""
    nearest = closest(name, known)
    return f" (did you mean {nearest}?)" if nearest else ""
