"""What several generators check: ranges, labels, edits by degree, overflow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator

from pe_ray.components.weights import Precision
from pe_ray.errors import InputError

EDITS = (
    "Redraw this image with changes that are hardly visible. It shows: {prompt}",
    "Redraw this image with small changes, same subject and composition. It shows: {prompt}",
    "Redraw this image with clear changes to details, colours and pose. It shows: {prompt}",
    "Redraw this image with strong changes, keeping its subject and style. It shows: {prompt}",
    "Draw another image that only resembles this one. It shows: {prompt}",
)
"""Instructions to change an image, from the weakest to the strongest."""


def within(low: float, high: float) -> AfterValidator:
    """Return the check of an option that is a range [low, high], for an Annotated type."""

    def check(value: tuple[float, float]) -> tuple[float, float]:
        if not low <= value[0] <= value[1] <= high:
            raise ValueError(f"give [low, high] with {low:g} <= low <= high <= {high:g}")
        return value

    return AfterValidator(check)


def refuse_unknown_labels(option: str, given: Iterable[str], label_names: Sequence[str]) -> None:
    """Raise InputError if an option by label names one that the run doesn't have."""
    unknown = sorted(set(given) - set(label_names))
    if unknown:
        raise InputError(f"generator.{option}: {unknown[0]!r} is not a label")


def pick_edit(edits: Sequence[str], degree: float) -> str:
    """Return the edit number floor(k degree) of k, counted from 0; the last for degree 1."""
    return edits[min(int(len(edits) * degree), len(edits) - 1)]


def refuse_overflow(images: NDArray[np.floating[Any]], precision: Precision) -> None:
    """Raise InputError if pixels are not finite."""
    if not np.isfinite(images).all():
        raise InputError(
            f"generator.precision: {precision} overflowed into pixels that are no numbers; use "
            "bf16 or fp32"
        )
