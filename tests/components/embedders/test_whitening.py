"""Whitening: equal variances on the images that it was fitted to, norm 1, row by row."""

from __future__ import annotations

import numpy as np
import pytest

from pe_ray import InputError
from pe_ray.components.embedders.whitening import fit_whitening, whiten


def skewed(num: int, seed: int = 0) -> np.ndarray:
    """Ten directions of very different variance, far from the origin."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((num, 10)) * np.geomspace(1, 0.05, 10)
    turned = mixed @ np.linalg.qr(np.random.default_rng(9).standard_normal((10, 10)))[0]
    return (turned + 100).astype(np.float32)


def test_directions_of_largest_variance_become_alike() -> None:
    features = skewed(4000)
    fitted = fit_whitening(features, 6)
    white = (features - fitted["mean"]) @ fitted["projection"]
    assert np.cov(white, rowvar=False) == pytest.approx(np.eye(5), abs=0.02)
    made = whiten(features, **fitted)
    assert made.shape == (4000, 6)
    assert np.linalg.norm(made, axis=1) == pytest.approx(np.ones(4000), abs=1e-5)
    assert made[:, -1].min() > 0  # the constant
    other = skewed(50, seed=1)
    assert np.array_equal(whiten(other[7:9], **fitted), whiten(other, **fitted)[7:9])


def test_what_can_not_be_whitened_is_refused() -> None:
    features = skewed(40)
    assert fit_whitening(features, 11)["projection"].shape == (10, 10)
    with pytest.raises(InputError, match=r"teacher\.embedder: 40 images of 10 numbers"):
        fit_whitening(features, 12, "teacher.embedder")
    with pytest.raises(InputError, match="give more images"):
        fit_whitening(features[:4], 6)
    features[3, 3] = np.nan
    with pytest.raises(InputError, match="no numbers"):
        fit_whitening(features, 6)
