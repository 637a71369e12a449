"""Accuracy metrics: separable and unrelated labels, seeds, and edge cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_metrics import random_images, score

from pe_ray import InputError


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


@pytest.mark.slow
def test_cnn_is_fixed_by_its_seed_and_leaves_the_global_one_alone() -> None:
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


def test_a_set_that_came_down_to_one_label_is_scored_as_that_label() -> None:
    images, rest = random_images(40), np.arange(40, dtype=np.int32) % 4
    name = "accuracy_train_synthetic"
    assert score("classifier", images, images, np.full(40, 1, np.int32), rest)[name] == 0.25


def test_cnn_takes_any_number_of_images_from_two_and_refuses_one() -> None:
    for num in (2, 129):  # 129: one more than a batch
        images, labels = random_images(num), np.zeros(num, dtype=np.int32)
        assert score("cnn", images, images, labels, labels)["accuracy_train_synthetic/cnn"] == 1.0
    with pytest.raises(InputError, match="cnn"):
        score("cnn", images[:1], images, labels[:1], labels)


def test_labels_that_were_never_trained_on_are_wrong_not_an_error() -> None:
    images, labels = random_images(40), np.zeros(40, dtype=np.int32)
    found = score("cnn", images, images, labels, labels + 3)
    assert found == {"accuracy_train_synthetic/cnn": 0.0}
