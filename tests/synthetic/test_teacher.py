"""The teacher: solved from noisy moments as from clean ones, and labels as the records do."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pe_ray import Config, InputError
from pe_ray.components.embedders import label_features
from pe_ray.components.embedders.pixels import Pixels, PixelsOptions
from pe_ray.components.moments import GRAM_SHARE
from pe_ray.planning import plan
from pe_ray.synthetic.teacher import ridge, try_teacher
from pe_ray.values import ImageShape

PIPELINES = Path(__file__).parents[2] / "pipelines"


def images(num: int, seed: int, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Bright on the left (label 0) or the right (label 1)."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(num) % 2).astype(np.int32)
    made = rng.integers(0, 60, (num, size, size, 1))
    half = size // 2
    for row, label in enumerate(labels):
        made[row, :, label * half : (label + 1) * half] += 150
    return made.astype(np.uint8), labels


def test_without_noise_ridge_is_least_squares() -> None:
    rng = np.random.default_rng(0)
    features, targets = rng.standard_normal((200, 6)), rng.standard_normal((200, 3))
    prior = rng.standard_normal((6, 3))
    found = ridge(features.T @ features, features.T @ targets, 0.0, prior)
    assert found == pytest.approx(np.linalg.lstsq(features, targets, rcond=None)[0], abs=1e-6)


def test_the_more_noise_the_closer_to_the_prior() -> None:
    rng = np.random.default_rng(0)
    features, targets = rng.standard_normal((200, 6)), rng.standard_normal((200, 3))
    gram, cross, prior = features.T @ features, features.T @ targets, rng.standard_normal((6, 3))
    away = [np.linalg.norm(ridge(gram, cross, sigma, prior) - prior) for sigma in (0, 10, 100, 1e6)]
    assert away == sorted(away, reverse=True)
    assert away[-1] < 1e-3
    # Of the definition: nothing near the found weights does better.
    weights = ridge(gram, cross, 10.0, prior)
    strength = (2 * 10.0 / np.sqrt(GRAM_SHARE)) ** 2 * (6 / 2) / (np.trace(gram) / 6)

    def loss(given: np.ndarray) -> float:
        fit = ((features @ given - targets) ** 2).sum()
        return float(fit + strength * ((given - prior) ** 2).sum())

    for _ in range(20):
        assert loss(weights) <= loss(weights + 1e-3 * rng.standard_normal((6, 3)))


def test_an_indefinite_noisy_gram_matrix_is_repaired() -> None:
    gram = np.diag([100.0, 5.0, -40.0])
    weights = ridge(gram, np.eye(3), 1.0, np.zeros((3, 3)))
    assert np.isfinite(weights).all()
    assert (np.diag(weights) > 0).all()
    assert weights[2, 2] <= 1 / (4 / GRAM_SHARE * (3 / 2) / (65 / 3)) + 1e-9
    lost = ridge(np.diag([-5.0, 1.0, 2.0]), np.eye(3), 9.0, 7 * np.eye(3))  # nothing but noise
    assert lost == pytest.approx(7 * np.eye(3), abs=0.01)


def test_features_are_of_norm_one_and_follow_the_images(tmp_path: Path) -> None:
    shown, labels = images(80, 0)
    arrays = label_features.fit(shown, labels, num_features=6, epochs=4, seed=1)
    again = label_features.fit(shown, labels, num_features=6, epochs=4, seed=1)
    assert all((arrays[name] == again[name]).all() for name in arrays)
    sink = io.BytesIO()
    np.savez(sink, **arrays)
    file = tmp_path / "features.npz"
    file.write_bytes(sink.getvalue())
    options = label_features.LearntFeaturesOptions(file=str(file), num_features=6)
    embedder = label_features.LearntFeatures(options)
    other, truth = images(60, 1)
    features = embedder.embed(other).astype(np.float64)
    assert features.shape == (60, 6)
    assert np.linalg.norm(features, axis=1) == pytest.approx(np.ones(60), abs=1e-5)
    assert ((features @ arrays["prior"]).argmax(axis=1) == truth).mean() > 0.9
    weights = ridge(features.T @ features, features.T @ np.eye(2)[truth], 0.0, arrays["prior"])
    assert ((features @ weights).argmax(axis=1) == truth).mean() > 0.9
    # With pixels, a squared distance is the weighted mean of both.
    with_pixels = options.model_copy(update={"pixels": 0.25})
    joint = label_features.LearntFeatures(with_pixels).embed(other)
    pixels = Pixels(PixelsOptions(size=14, blur=1.0)).embed(other)

    def apart(vectors: np.ndarray) -> np.ndarray:
        return np.square(vectors[:30].astype(np.float64) - vectors[30:]).sum(axis=1)

    assert apart(joint) == pytest.approx(0.75 * apart(features) + 0.25 * apart(pixels), rel=1e-4)
    shape = ImageShape(height=8, width=8, channels=1)
    assert joint.shape == (60, with_pixels.dim(shape)) == (60, 6 + 14 * 14)
    # Images of another size are brought to the size trained on.
    larger, truth = images(20, 2, size=16)
    assert ((embedder.embed(larger) @ weights).argmax(axis=1) == truth).mean() > 0.9


def test_features_of_another_version_are_refused(tmp_path: Path) -> None:
    shown, labels = images(80, 0)
    arrays = label_features.fit(shown, labels, num_features=6, epochs=1, seed=1)
    for change in ({}, {"format": np.array(1)}):
        file = tmp_path / "features.npz"
        np.savez(file, **{k: v for k, v in arrays.items() if k != "format"} | change)
        with pytest.raises(InputError, match=r"features\.npz: of another version"):
            label_features.LearntFeatures(
                label_features.LearntFeaturesOptions(file=str(file), num_features=6)
            )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"private": {"data": "x", "labels": ["a"]}}, "at least two"),
        ({"teacher": {"features": 1024}, "labels": 600}, "features: too many"),
        ({"teacher": {"share": 0.96}, "fractions": "dp"}, "share: must be below 0.95"),
        ({"teacher": {"share": 1.0}}, r"teacher\.share"),
        ({"teacher": {"features": 41}}, r"teacher\.features: must be at most 40"),
    ],
)
def test_a_teacher_that_cannot_be_is_refused(
    tree: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    tree["teacher"], tree["metrics"] = changes.get("teacher", {}), {}
    tree["private"] = changes.get("private", tree["private"])
    if "labels" in changes:
        tree["private"]["labels"] = [str(name) for name in range(changes["labels"])]
        tree["schedule"]["num_samples"] = 1000
    tree["privacy"]["label_fractions"] = changes.get("fractions", "uniform")
    with pytest.raises(InputError, match=message):
        Config.from_dict(tree)


def test_mnist_yaml_spends_half_on_the_teacher() -> None:
    config = Config.from_yaml(PIPELINES / "mnist.yaml")
    made = plan(config)
    *votes, last = made.releases
    assert (last.key, last.kind, last.iteration) == ("teacher", "sums", 4)
    of_votes = sum((release.sensitivity / release.sigma) ** 2 for release in votes)
    assert (last.sensitivity / last.sigma) ** 2 == pytest.approx(of_votes, rel=1e-4)
    assert 0.999 < made.epsilon <= 1.0


@pytest.mark.parametrize("features", [2, 40])
def test_the_least_run_that_may_have_a_teacher_can_learn_its_features(
    ray_session: None, tree: dict[str, Any], features: int
) -> None:
    tree["private"]["labels"] = ["0", "1"]
    tree["generator"] = {"kind": "rendered_text", "image_size": 4}
    tree["teacher"] = {"features": features}
    try_teacher(Config.from_dict(tree))
