"""What the tests of searches share beside their configuration (tuning/conftest.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

STAND_IN = [str(digit) for digit in range(10)]


def final(tree: dict[str, Any]) -> Path:
    return Path(tree["output"]["path"])
