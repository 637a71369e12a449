"""Denoising: from a noisy histogram to the weights that parents are drawn by; post-processing.

Where no count of a label is left after denoising, that label falls back to its positive noisy
counts. Where it has none either, all its samples weigh the same. Both look at the released
histogram only.

Denoisers themselves are in pe_ray/components/denoisers.py.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pe_ray.config.blocks import SelectionSettings
from pe_ray.plugins import Denoiser, load
from pe_ray.run import Run
from pe_ray.synthetic.embedding import Embedding
from pe_ray.synthetic.smoothing import smooth_votes
from pe_ray.values import NoisyHistogram

Weights = NDArray[np.float64]


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
    chosen = settings.denoise
    denoiser: Denoiser = load("denoiser", chosen.kind)(chosen.options)
    return denoiser


def fall_back(weights: Weights, noisy_votes: NDArray[np.float64]) -> Weights:
    """Return `weights`, or what replaces them where all are 0 (see the module's docstring)."""
    if weights.sum() > 0:
        return weights
    positive = np.maximum(noisy_votes, 0.0)
    return positive if positive.sum() > 0 else np.ones(noisy_votes.size)
