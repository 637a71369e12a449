"""Names of class folders: a label as one name that every disk can hold."""

from __future__ import annotations

import re

_UNUSABLE = re.compile(r'^\.|[\x00-\x1f\x7f%/\\:*?"<>|]')


def folder_name(label: str) -> str:
    """Return the label, with what a folder's name can't hold percent-encoded.

    That is a dot in front, which would hide it, control characters, % and / \\ : * ? " < > |.
    """
    return _UNUSABLE.sub(lambda found: f"%{ord(found[0]):02X}", label)
