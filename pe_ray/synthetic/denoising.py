"""Denoising: from a noisy histogram to the weights that parents are drawn by; post-processing.

Where no count of a label is left after denoising, that label falls back to its positive noisy
counts. Where it has none either, all its samples weigh the same.

Denoisers themselves are in pe_ray/components/denoisers.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pe_ray.config import Config
from pe_ray.config.blocks import SelectionSettings
from pe_ray.plugins import Denoiser, load
from pe_ray.run_context import RunContext
from pe_ray.synthetic.smoothing import NoisyVotes, smooth_votes
from pe_ray.values import LabelLayout, NoisyHistogram

if TYPE_CHECKING:  # `pe-ray verify` imports this module where there is no Ray
    from pe_ray.synthetic.embedding import Embedding

Weights = NDArray[np.float64]


def denoise(run: RunContext, embedding: Embedding, histogram: NoisyHistogram) -> Weights:
    """Return the weights of all samples that were voted on, float64 [num_samples].

    Each label's votes are averaged over near samples first, as `selection.smooth` says. The weights
    of every label that has samples have a positive sum.
    """
    settings = run.config.selection.at(histogram.release.iteration)
    return weigh(settings, smooth_votes(run, embedding, histogram), embedding.layout)


def weigh(settings: SelectionSettings, votes: NoisyVotes, layout: LabelLayout) -> Weights:
    """Return the weights of all samples from their smoothed votes, float64 [num_samples]."""
    labels = weigh_labels(settings, votes, layout)
    return np.concatenate([fall_back(weights, noisy) for noisy, weights in labels])


def weigh_labels(
    settings: SelectionSettings, votes: NoisyVotes, layout: LabelLayout
) -> Iterator[tuple[Weights, Weights]]:
    """Yield the votes of each label that has samples, and what the denoiser makes of them."""
    denoiser = make_denoiser(settings)
    for label, sigma in enumerate(votes.sigmas):
        if layout.counts[label]:
            noisy = votes.votes[slice(*layout.label_range(label))]
            yield noisy, denoiser.weigh(noisy, sigma)


def make_denoiser(settings: SelectionSettings) -> Denoiser:
    """Return the denoiser that `settings` names."""
    chosen = settings.denoise
    denoiser: Denoiser = load("denoiser", chosen.kind)(chosen.options)
    return denoiser


def try_denoisers(config: Config) -> None:
    """Build the denoiser of each iteration; raise whatever one raises."""
    for iteration in range(1, config.schedule.iterations + 1):
        make_denoiser(config.selection.at(iteration))


def fall_back(weights: Weights, noisy_votes: Weights) -> Weights:
    """Return `weights`, or what replaces them where all are 0 (see the module's docstring)."""
    if weights.sum() > 0:
        return weights
    positive = np.maximum(noisy_votes, 0.0)
    return positive if positive.sum() > 0 else np.ones(noisy_votes.size)
