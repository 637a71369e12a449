"""How a stored label becomes one of the declared names: by name, or by a position that is meant.

1. A file that carries class names (a ClassLabel of Hugging Face) says what its integers mean.
2. Text is a name.
3. Other integers are names if all declared names are numbers. They are positions only where the
   configuration says `label_values: position`. Else they are refused.

The rule depends on the file's schema and the configuration, never on a value.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pe_ray.files.image_tables import ImageTable


def read_class_names(schema: pa.Schema, column: str | None) -> tuple[str, ...] | None:
    """Return the class names that a schema's Hugging Face metadata gives a column, if it does."""
    try:
        stored = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        feature = stored["info"]["features"][column]
        names = feature["names"]
    except (KeyError, TypeError, ValueError):
        return None
    if isinstance(names, Mapping):  # as old versions write them: {"0": "cat"}
        names = [names[key] for key in sorted(names, key=int)]
    return tuple(map(str, names)) if feature.get("_type") == "ClassLabel" else None


def explain_ambiguous(table: ImageTable, class_names: Sequence[str] | None) -> str | None:
    """Say why a column of integers can't be matched, and the fix; None if it can."""
    if table.labels is None or class_names is not None or table.label_values == "position":
        return None
    if all(map(is_number, table.labels)):
        return None
    return (
        "holds integers, and not all names in labels are numbers; write label_values: position if "
        "0 stands for the first name, or store names"
    )


def is_number(name: str) -> bool:
    """Tell whether a label's name is written like an integer."""
    return name.removeprefix("-").isdecimal() and name == str(int(name))


def find_name(table: ImageTable, value: Any, class_names: Sequence[str] | None) -> str | None:
    """Return the name that a stored label stands for; None if it stands for none."""
    if value is None or isinstance(value, bool | float):
        return None
    if not isinstance(value, int):
        return unicodedata.normalize("NFC", str(value))
    names = class_names
    if names is None and table.label_values == "position":
        names = table.labels
    if names is None:
        return str(value)
    return names[value] if 0 <= value < len(names) else None
