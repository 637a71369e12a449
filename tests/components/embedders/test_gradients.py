"""Gradients: directions of edges and coarse pixels, whatever brightness and batch."""

from __future__ import annotations

import numpy as np
from tiny_networks import images, load_embedder

EDGES = 7 * 7 * 8


def test_edges_count_by_direction_and_place() -> None:
    embedder = load_embedder("gradients")
    right = np.zeros((1, 28, 28, 1), dtype=np.uint8)
    right[:, :, 14:] = 200  # brighter to the right: direction 0, in the middle columns
    cells = embedder.embed(right)[0, :EDGES].reshape(7, 7, 8)
    assert cells[:, 3, 0].min() > 0
    assert np.count_nonzero(cells) == np.count_nonzero(cells[:, 3, 0])
    down = embedder.embed(right.transpose(0, 2, 1, 3))[0, :EDGES].reshape(7, 7, 8)
    assert np.array_equal(down[3, :, 2], cells[:, 3, 0])  # a quarter turn is two directions
    left = embedder.embed(right[:, :, ::-1])[0, :EDGES].reshape(7, 7, 8)
    assert left[:, 3, 4].min() > 0


def test_both_parts_have_norm_one_and_contrast_does_not_matter() -> None:
    embedder = load_embedder("gradients")
    shown = images(40, 17, 30, 3)
    found = embedder.embed(shown)
    for part in (found[:, :EDGES], found[:, EDGES:]):
        assert np.allclose(np.linalg.norm(part, axis=1), 1, atol=1e-5)
    assert np.allclose(embedder.embed(shown // 2 * 2), embedder.embed(shown // 2), atol=1e-5)
    rows = np.random.default_rng(1).permutation(40)[:33]
    assert np.array_equal(embedder.embed(shown[rows]), found[rows])
    assert np.isfinite(embedder.embed(np.zeros((1, 5, 5, 1), dtype=np.uint8))).all()
