"""What several generators check, and prompts by label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_ray.components.weights import Precision
from pe_ray.errors import InputError


def refuse_unknown_labels(option: str, given: Iterable[str], label_names: Sequence[str]) -> None:
    """Raise InputError if an option by label names one that the run doesn't have."""
    unknown = sorted(set(given) - set(label_names))
    if unknown:
        raise InputError(f"generator.{option}: {unknown[0]!r} is not a label")


def fill_prompts(prompt: str, prompts: Mapping[str, str], label_names: Sequence[str]) -> list[str]:
    """Return each label's prompt: its own, or `prompt` with its name for {label}."""
    refuse_unknown_labels("prompts", prompts, label_names)
    return [prompts.get(name, prompt.replace("{label}", name)) for name in label_names]


def refuse_overflow(images: NDArray[np.floating[Any]], precision: Precision) -> None:
    """Raise InputError if pixels are not finite."""
    if not np.isfinite(images).all():
        raise InputError(
            f"generator.precision: {precision} overflowed into pixels that are no numbers; use "
            "bf16 or fp32"
        )
