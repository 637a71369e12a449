"""Joined: distances are the weighted mean of those of the members, whatever their own units."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from tiny_networks import images, load_embedder

from pe_ray.values import ImageShape

PIXELS = {"kind": "pixels", "size": 6, "normalize": False}
SHAPE = ImageShape(height=20, width=24, channels=3)


def scaled(found: Any) -> Any:
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_squared_distances_are_weighted_means_of_the_members() -> None:
    shown = images(30, 20, 24, 3)
    members = [{"embedder": PIXELS, "share": 3}, {"embedder": "gradients"}]
    embedder = load_embedder("joined", members=members)
    found = embedder.embed(shown)
    assert found.dtype == np.float32
    assert found.shape == (30, type(embedder).Options(members=members).dim(SHAPE))
    first = scaled(load_embedder("pixels", size=6, normalize=False).embed(shown))
    second = scaled(load_embedder("gradients").embed(shown))
    for a, b in ((0, 1), (7, 22)):
        weighted = 0.75 * sum((first[a] - first[b]) ** 2) + 0.25 * sum((second[a] - second[b]) ** 2)
        assert sum((found[a] - found[b]) ** 2) == pytest.approx(weighted, rel=1e-4)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    rows = np.random.default_rng(1).permutation(30)[:11]
    assert np.array_equal(embedder.embed(shown[rows]), found[rows])
    assert np.isfinite(embedder.embed(np.zeros((1, 20, 24, 3), dtype=np.uint8))).all()


@pytest.mark.parametrize(
    ("members", "place"),
    [
        ([], ("members",)),
        ([{"embedder": "pixels"}, {"embedder": "label_features"}], ("members", 1, "embedder")),
        (
            [{"embedder": {**PIXELS, "whiten": {"data": "population"}}}, {"embedder": "pixels"}],
            ("members", 0, "embedder"),
        ),
        ([{"embedder": "pixels", "share": 0}, {"embedder": "pixels"}], ("members", 0, "share")),
    ],
)
def test_what_can_not_be_joined_is_named(members: Any, place: tuple[str | int, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        load_embedder("joined", members=members)
    assert [error["loc"] for error in caught.value.errors()] == [place]
