"""What several verbs print."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from typing import Any

Command = Callable[[argparse.Namespace], None]
AddVerb = Callable[[str, Command, str], argparse.ArgumentParser]
"""(name, what runs it, help) -> its parser."""


def guarantee(epsilon: float, delta: float, unit: str) -> str:
    """The claim in words."""
    if math.isinf(epsilon):
        return "epsilon inf: no noise, NOT private"
    return f"epsilon {epsilon:.6g}, delta {delta:g}, adding or removing one {unit}"


def print_json(tree: Any) -> None:
    """JSON without the non-standard Infinity: an infinite epsilon is the string "inf"."""

    def standard(value: Any) -> Any:
        if isinstance(value, float) and math.isinf(value):
            return "inf"
        if isinstance(value, dict):
            return {key: standard(below) for key, below in value.items()}
        return [standard(below) for below in value] if isinstance(value, list) else value

    print(json.dumps(standard(tree), indent=2))
