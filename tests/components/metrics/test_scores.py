"""Metrics: what they are called, which images they look at, and that they tell good from bad."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_networks import save_inception

from pe_ray import InputError, plugins
from pe_ray.components.metrics import distances
from pe_ray.config.blocks import MetricsConfig


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


def test_a_score_names_its_embedding(tmp_path: Path) -> None:
    inception = {"kind": "inception", "weights": str(save_inception(tmp_path))}
    pixels = {"kind": "pixels", "size": 3}
    images, reference = random_images(8), random_images(9, seed=1)
    for kind, embedder, names in (
        ("frechet", inception, {"fid"}),
        ("frechet", pixels, {"frechet_distance/pixels"}),
        ("kid", inception, {"kid"}),
        ("kid", pixels, {"kernel_distance/pixels"}),
        ("precision_recall", inception, {"precision/inception", "recall/inception"}),
        ("precision_recall", pixels, {"precision/pixels", "recall/pixels"}),
    ):
        assert set(score(kind, images, reference, embedder=embedder)) == names


def test_fid_is_clean_fids_features_in_the_frechet_distance(tmp_path: Path) -> None:
    file = save_inception(tmp_path)
    made = plugins.load("embedder", "inception")
    embedder = made(made.Options(weights=str(file)))
    images, reference = random_images(8), random_images(9, seed=1)
    found = score(
        "frechet", images, reference, embedder={"kind": "inception", "weights": str(file)}
    )
    features = embedder.embed(images), embedder.embed(reference)
    assert found["fid"] == distances.frechet_distance(*features)


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
        with pytest.raises(InputError, match=f"needs at least {least}"):
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


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("classifier", "accuracy_train_synthetic", {"size": 4}),
        ("cnn", "accuracy_train_synthetic/cnn", {"epochs": 12}),
    ],
)
def test_accuracy_is_high_for_separable_and_chance_for_unrelated_labels(
    kind: str, name: str, options: dict[str, Any]
) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(400, dtype=np.int32) % 2
    images = rng.integers(0, 60, (400, 4, 4, 1), dtype=np.uint8)
    images[labels == 1, :2] += 150
    unrelated = (np.arange(200, dtype=np.int32) // 2) % 2
    split = {"images": images[:200], "reference": images[200:], "reference_labels": labels[200:]}
    right = score(kind, labels=labels[:200], **split, **options)
    wrong = score(kind, labels=unrelated, **split, **options)
    assert right[name] > 0.99
    assert 0.1 < wrong[name] < 0.9


def test_cnn_is_fixed_by_its_seed_and_leaves_the_global_one_alone() -> None:
    import torch

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (300, 9, 9, 3), dtype=np.uint8)
    labels = np.arange(300, dtype=np.int32) % 3
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (
        score("cnn", images, images, labels, labels, epochs=6, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.rand(3), expected)
    assert first == again
    assert first != other


def test_cnn_takes_any_number_of_images_from_two_and_refuses_one() -> None:
    for num in (2, 129):  # 129: one more than a batch
        images, labels = random_images(num), np.zeros(num, dtype=np.int32)
        assert score("cnn", images, images, labels, labels)["accuracy_train_synthetic/cnn"] == 1.0
    with pytest.raises(InputError, match="cnn: needs at least 2"):
        score("cnn", images[:1], images, labels[:1], labels)


def test_labels_that_were_never_trained_on_are_wrong_not_an_error() -> None:
    images, labels = random_images(40), np.zeros(40, dtype=np.int32)
    for kind, name in (("cnn", "accuracy_train_synthetic/cnn"),):
        assert score(kind, images, images, labels, labels + 3)[name] == 0.0
