"""Distance metrics: names, the images they use, and that they tell good from bad."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_metrics import random_images, score
from tiny_networks import load_embedder, save_inception

from pe_ray import InputError
from pe_ray.components.metrics.distances import frechet_distance
from pe_ray.config.blocks import MetricsConfig
from pe_ray.config.kinds import better_scores


def test_a_score_names_its_embedding(tmp_path: Path) -> None:
    inception = {"kind": "inception", "weights": str(save_inception(tmp_path))}
    pixels = {"kind": "pixels", "size": 3}
    images, reference = random_images(8), random_images(9, seed=1)
    manifolds = ("precision", "recall", "density", "coverage")
    for kind, embedder, names in (
        ("frechet", inception, {"fid"}),
        ("frechet", pixels, {"frechet_distance/pixels"}),
        ("kid", inception, {"kid"}),
        ("kid", pixels, {"kernel_distance/pixels"}),
        ("precision_recall", inception, {f"{name}/inception" for name in manifolds}),
        ("precision_recall", pixels, {f"{name}/pixels" for name in manifolds}),
    ):
        found = score(kind, images, reference, embedder=embedder)
        assert set(found) == names
        metrics = MetricsConfig.model_validate({"audit": [{"kind": kind, "embedder": embedder}]})
        assert set(better_scores(metrics.audit, found)) == names  # each says which way is better


def test_fid_is_clean_fids_features_in_the_frechet_distance(tmp_path: Path) -> None:
    file = save_inception(tmp_path)
    embedder = load_embedder("inception", weights=str(file))
    images, reference = random_images(8), random_images(9, seed=1)
    found = score(
        "frechet", images, reference, embedder={"kind": "inception", "weights": str(file)}
    )
    features = embedder.embed(images), embedder.embed(reference)
    assert found["fid"] == frechet_distance(*features)


@pytest.mark.parametrize("kind", ["frechet", "kid"])
def test_distances_are_smallest_for_the_same_distribution(kind: str) -> None:
    def found(images: NDArray[np.uint8]) -> float:
        embedder = {"kind": "pixels", "size": 3, "normalize": False}
        return next(iter(score(kind, images, random_images(300), embedder=embedder).values()))

    assert found(random_images(300, seed=1)) < found(random_images(300, high=100, seed=1)) / 10


@pytest.mark.parametrize("kind", ["kid", "precision_recall"])
def test_max_images_looks_at_evenly_spaced_rows(kind: str) -> None:
    images, reference = random_images(101), random_images(60, seed=1)
    pixels = {"kind": "pixels"}
    limited = score(kind, images, reference, embedder=pixels, max_images=50)
    rows = np.arange(50)
    chosen = score(kind, images[rows * 101 // 50], reference[rows * 60 // 50], embedder=pixels)
    assert limited == chosen


@pytest.mark.parametrize(("kind", "least"), [("frechet", 2), ("kid", 2), ("precision_recall", 4)])
def test_too_few_images_are_refused(kind: str, least: int) -> None:
    few, many = random_images(least - 1), random_images(10)
    for pair in ((few, many), (many, few)):
        with pytest.raises(InputError, match=f"{kind}: .*{least}"):
            score(kind, *pair, embedder={"kind": "pixels"})


def test_nested_options_are_checked_and_written_as_they_were_read() -> None:
    written = {"kind": "frechet", "embedder": {"kind": "pixels", "size": 8}}
    config = MetricsConfig.model_validate({"audit": [written]})
    tree = config.model_dump(mode="json")
    assert tree["audit"][0]["embedder"].items() >= written["embedder"].items()
    assert MetricsConfig.model_validate(tree) == config
    with pytest.raises(ValueError, match="sise"):
        MetricsConfig.model_validate(
            {"audit": [{"kind": "kid", "embedder": {"kind": "pixels", "sise": 3}}]}
        )
