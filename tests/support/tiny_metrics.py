"""Scores of built-in metrics, and random images for them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_ray import plugins


def score(
    kind: str,
    images: NDArray[np.uint8],
    reference: NDArray[np.uint8],
    labels: NDArray[np.int32] | None = None,
    reference_labels: NDArray[np.int32] | None = None,
    **options: Any,
) -> dict[str, float]:
    metric = plugins.load("metric", kind)
    zeros = np.zeros(max(len(images), len(reference)), dtype=np.int32)
    scores: dict[str, float] = metric(metric.Options.model_validate(options)).score(
        images,
        zeros[: len(images)] if labels is None else labels,
        reference,
        zeros[: len(reference)] if reference_labels is None else reference_labels,
    )
    return scores


def random_images(num: int, high: int = 256, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, high, (num, 6, 6, 1), dtype=np.uint8)
