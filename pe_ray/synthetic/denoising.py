"""Denoising: from a noisy histogram to the weights that parents are drawn by; post-processing.

Where no count of a label is left after denoising, that label falls back to its positive noisy
counts. Where it has none either, all its samples weigh the same. Both look at the released
histogram only.

To add a denoiser, write a class with `Options` and `weigh`, as those below.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pe_ray.config.blocks import SelectionSettings
from pe_ray.plugins import Options, registry
from pe_ray.run import Run
from pe_ray.synthetic.embedding import Embedding
from pe_ray.synthetic.smoothing import smooth_votes
from pe_ray.values import NoisyHistogram

Weights = NDArray[np.float64]


class Denoiser(Protocol):
    """Turns the noisy counts of one label into weights."""

    Options: ClassVar[type[Options]]

    def __init__(self, options: Any) -> None: ...

    def weigh(self, noisy_votes: NDArray[np.float64], sigma: float) -> Weights:
        """Return weights >= 0, [n], for counts [n] with Gaussian noise of scale `sigma`."""
        ...


class Threshold:
    """Subtract a height and clip at 0 (Lin et al. 2024, Algorithm 2, line 6)."""

    class Options(Options):
        threshold: Annotated[float, Field(allow_inf_nan=False)] | Literal["auto"] = "auto"
        """Votes subtracted from each count; auto: what Stein's risk estimate prefers."""

    def __init__(self, options: Threshold.Options) -> None:
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

    class Options(Options):
        pass

    def __init__(self, options: Simplex.Options) -> None:
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

    class Options(Options):
        pass

    def __init__(self, options: Clip.Options) -> None:
        pass

    def weigh(self, noisy_votes: NDArray[np.float64], sigma: float) -> Weights:
        return np.asarray(np.maximum(noisy_votes, 0.0))


def denoise(run: Run, embedding: Embedding, histogram: NoisyHistogram) -> Weights:
    """Return the weights of all samples that were voted on, float64 [num_samples].

    Each label's votes are averaged over near samples first, as `selection.smooth` says. The weights
    of every label that has samples have a positive sum.
    """
    settings = run.config.selection.at(histogram.release.iteration)
    denoiser = make_denoiser(settings)
    votes = smooth_votes(run, embedding, histogram)
    weights = np.empty(votes.votes.size)
    for label, sigma in enumerate(votes.sigmas):
        own = slice(*embedding.layout.label_range(label))
        weights[own] = fall_back(denoiser.weigh(votes.votes[own], sigma), votes.votes[own])
    return weights


def make_denoiser(settings: SelectionSettings) -> Denoiser:
    """Return the denoiser that `settings` names."""
    made = registry.load("denoiser", settings.denoise)
    given = {name: getattr(settings, name) for name in made.Options.model_fields}
    denoiser: Denoiser = made(made.Options(**given))
    return denoiser


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


def fall_back(weights: Weights, noisy_votes: NDArray[np.float64]) -> Weights:
    """Return `weights`, or what replaces them where all are 0 (see the module's docstring)."""
    if weights.sum() > 0:
        return weights
    positive = np.maximum(noisy_votes, 0.0)
    return positive if positive.sum() > 0 else np.ones(noisy_votes.size)
