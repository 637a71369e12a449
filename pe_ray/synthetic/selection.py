"""From a noisy histogram to parents; pure functions of released values (post-processing).

What happens when nothing survives: if no count of a label is left after denoising, that label
falls back to its positive noisy counts without denoising; if it has none either, all its samples
weigh the same. Both look at the released histogram only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pe_ray.values import LabelLayout, NoisyHistogram

Counts = NDArray[np.int64] | NDArray[np.float64]
Weights = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Votes:
    """What parents are drawn by: votes, float64 [num_samples], and the standard deviation of the
    noise in those of each label.
    """

    votes: NDArray[np.float64]
    sigmas: tuple[float, ...]


def votes_of(histogram: NoisyHistogram, layout: LabelLayout) -> Votes:
    """The released votes as they are."""
    sigmas = (histogram.release.sigma,) * len(layout.counts)
    return Votes(votes=histogram.noisy_votes.astype(np.float64), sigmas=sigmas)


def auto_threshold(noisy_votes: Counts, sigma: float) -> float:
    """Threshold with the least estimated squared error, in votes, given the noise `sigma`.

    Stein's unbiased risk estimate of the shrinker y -> max(y - h, 0) under Gaussian noise,
    sum(min(y, h)^2) + 2 sigma^2 #(y > h) + const, minimised over h in [0, sigma sqrt(2 ln n)]
    (Donoho and Johnstone 1995, "Adapting to unknown smoothness", section 2.3).
    """
    if sigma == 0 or noisy_votes.size == 0:
        return 0.0
    limit = sigma * np.sqrt(2.0 * np.log(max(2, noisy_votes.size)))
    votes = np.sort(noisy_votes.astype(np.float64))
    inside = votes[(votes > 0) & (votes < limit)]
    candidates = np.unique(np.concatenate([[0.0], inside, [limit]]))
    below = np.searchsorted(votes, candidates, side="right")
    squares = np.concatenate([[0.0], np.cumsum(votes**2)])
    above = votes.size - below
    risk = squares[below] + above * candidates**2 + 2.0 * sigma**2 * above
    return float(candidates[np.argmin(risk)])


def threshold(noisy_votes: Counts, height: float) -> Weights:
    """Subtract `height` and clip at 0 (Lin et al. 2024, Alg. 2)."""
    return np.asarray(np.maximum(noisy_votes - height, 0.0))


def simplex(noisy_votes: Counts) -> Weights:
    """Nearest non-negative vector with the same sum (Held, Wolfe, Crowder 1974); 0 if that is 0."""
    total = float(noisy_votes.sum())
    if total <= 0:
        return np.zeros(noisy_votes.size)
    falling = np.sort(noisy_votes.astype(np.float64))[::-1]
    shifts = (np.cumsum(falling) - total) / np.arange(1, falling.size + 1)
    return np.asarray(np.maximum(noisy_votes - shifts[np.nonzero(falling > shifts)[0][-1]], 0.0))


Denoiser = Callable[[Counts, float], Weights]


def denoiser(name: str, height: float | Literal["auto"]) -> Denoiser:
    """The denoiser `name`: (noisy counts [n], sigma) -> weights >= 0, [n]."""

    def by_threshold(noisy_votes: Counts, sigma: float) -> Weights:
        chosen = auto_threshold(noisy_votes, sigma) if height == "auto" else height
        return threshold(noisy_votes, chosen)

    known: Mapping[str, Denoiser] = {
        "threshold": by_threshold,
        "simplex": lambda noisy_votes, sigma: simplex(noisy_votes),
        "none": lambda noisy_votes, sigma: threshold(noisy_votes, 0.0),
    }
    return known[name]


def with_fallback(weights: Weights, noisy_votes: Counts) -> Weights:
    """`weights`, or what replaces them when all are 0 (see the module's docstring)."""
    if weights.sum() > 0:
        return weights
    positive = np.maximum(noisy_votes, 0).astype(np.float64)
    return positive if positive.sum() > 0 else np.ones(noisy_votes.size)


def draw(
    weights: Weights, num: int, method: Literal["systematic", "multinomial", "rank"], seed: int
) -> NDArray[np.int64]:
    """`num` positions in ascending order, repeats allowed, from weights with a positive sum.

    systematic: one uniform offset, so each count is within 1 of its expectation (Kitagawa 1996);
    multinomial: independent draws; rank: the `num` heaviest, lower position first among equals,
    starting over when there are fewer than `num`.
    """
    size = weights.size
    if method == "rank":
        order = np.argsort(-weights, kind="stable")
        return np.sort(order[np.arange(num) % size]).astype(np.int64)
    rng = np.random.default_rng(seed)
    offsets = np.arange(num) + rng.random() if method == "systematic" else num * rng.random(num)
    cumulative = np.cumsum(weights)
    points = np.sort(offsets) * (cumulative[-1] / num)
    heavy = np.nonzero(weights > 0)[0]
    found = np.searchsorted(cumulative, points, side="right")
    return np.asarray(np.minimum(found, heavy[-1]).astype(np.int64), dtype=np.int64)
