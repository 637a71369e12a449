"""Denoisers: from the noisy counts of one label to the weights that its parents are drawn by.

To add one, write a class with `Options` and `weigh`, as those below.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pe_ray.plugins import Options

Weights = NDArray[np.float64]


class ThresholdOptions(Options):
    """Options of Threshold."""

    threshold: Annotated[float, Field(allow_inf_nan=False)] | Literal["auto"] = "auto"
    """Votes subtracted from each count; auto: what Stein's risk estimate prefers."""


class Threshold:
    """Subtract a height and clip at 0 (Lin et al. 2024, Algorithm 2, line 6)."""

    Options = ThresholdOptions

    def __init__(self, options: ThresholdOptions) -> None:
        self._height = options.threshold

    def weigh(self, noisy_votes: NDArray[np.float64], sigma: float) -> Weights:
        height = self._height
        if height == "auto":
            height = auto_threshold(noisy_votes, sigma)
        return np.asarray(np.maximum(noisy_votes - height, 0.0))


class Simplex:
    """Project onto the vectors >= 0 with the same sum (Held, Wolfe, Crowder 1974).

    All weights are 0 where the sum is not above 0.
    """

    def __init__(self, options: Options) -> None:
        pass

    def weigh(self, noisy_votes: NDArray[np.float64], sigma: float) -> Weights:
        total = float(noisy_votes.sum())
        if total <= 0:
            return np.zeros(noisy_votes.size)
        falling = np.sort(noisy_votes)[::-1]
        shifts = (np.cumsum(falling) - total) / np.arange(1, falling.size + 1)
        shift = shifts[np.nonzero(falling > shifts)[0][-1]]
        return np.asarray(np.maximum(noisy_votes - shift, 0.0))


class Clip:
    """Clip at 0 and change nothing else."""

    def __init__(self, options: Options) -> None:
        pass

    def weigh(self, noisy_votes: NDArray[np.float64], sigma: float) -> Weights:
        return np.asarray(np.maximum(noisy_votes, 0.0))


def auto_threshold(noisy_votes: NDArray[np.float64], sigma: float) -> float:
    """Return the threshold with the least estimated squared error, in votes.

    Stein's unbiased risk estimate of the shrinker y -> max(y - h, 0) under Gaussian noise,
    sum(min(y, h)^2) + 2 sigma^2 #(y > h) + const, minimised over h in [0, sigma sqrt(2 ln n)]
    (Donoho and Johnstone 1995, "Adapting to unknown smoothness", section 2.3).
    """
    if sigma == 0 or noisy_votes.size == 0:
        return 0.0
    limit = sigma * np.sqrt(2.0 * np.log(max(2, noisy_votes.size)))
    votes = np.sort(noisy_votes)
    inside = votes[(votes > 0) & (votes < limit)]
    candidates = np.unique(np.concatenate([[0.0], inside, [limit]]))
    below = np.searchsorted(votes, candidates, side="right")
    squares = np.concatenate([[0.0], np.cumsum(votes**2)])
    above = votes.size - below
    risk = squares[below] + above * candidates**2 + 2.0 * sigma**2 * above
    return float(candidates[np.argmin(risk)])
