"""Names of class folders: a label as one name that every disk can hold."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from urllib.parse import unquote

_UNUSABLE = re.compile(r'^\.|[\x00-\x1f\x7f%/\\:*?"<>|=]')


def folder_name(label: str) -> str:
    """Return the label, with what a folder's name can't hold percent-encoded.

    That is a dot in front, which would hide it, an equals sign, which would make it a column,
    control characters, % and / \\ : * ? " < > |.
    """
    return _UNUSABLE.sub(lambda found: f"%{ord(found[0]):02X}", label)


def label_of(folder: str, labels: Collection[str] = ()) -> str:
    """Return the label that a folder's name stands for, in Unicode's normal form C.

    labels: names that stand for themselves, however they are written.
    """
    folder = unicodedata.normalize("NFC", folder)
    decoded = unquote(folder)
    is_ours = folder not in labels and folder_name(decoded) == folder
    return decoded if is_ours else folder
