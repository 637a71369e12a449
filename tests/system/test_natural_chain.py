"""The whole chain on 2,000 real images with the real network: votes, teacher, final set, labels."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from pe_ray import Config, label_images, save_images
from pe_ray.evolution import evolve


def crops(num: int, columns: slice, seed: int) -> tuple[list[np.ndarray], list[str]]:
    """Squares of 32 to 96 pixels out of two photographs, brought to 32: a temple and a flower."""
    rng, made = np.random.default_rng(seed), []
    for number in range(num):
        photo = load_photographs()[number % 2][:, columns]
        side = int(rng.integers(32, 97))
        top, left = (int(rng.integers(0, size - side)) for size in photo.shape[:2])
        square = Image.fromarray(photo[top : top + side, left : left + side])
        made.append(np.asarray(square.resize((32, 32))))
    return made, [("temple", "flower")[number % 2] for number in range(num)]


def load_photographs() -> list[np.ndarray]:
    photographs: list[np.ndarray] = load_sample_images().images
    return photographs


@pytest.mark.slow
def test_a_teacher_learns_what_photographs_show(
    ray_session: None, short: dict[str, Any], tmp_path: Path
) -> None:
    """Private are the left halves; public, and the images that are labelled, the right ones."""
    left, right = slice(0, 320), slice(320, 640)
    private = save_images(*_swap(crops(2000, left, 0), tmp_path / "private.parquet"))
    public = save_images(*_swap(crops(600, right, 1), tmp_path / "public.parquet"))
    images, names = crops(200, right, 2)
    others = save_images(images, tmp_path / "others.parquet")
    embedder = {"kind": "natural", "size": 64, "whiten": {"data": str(public)}}
    short |= {
        "private": {"data": str(private), "labels": ["temple", "flower"]},
        "generator": {
            "kind": "nearest_image",
            "data": str(public),
            "image_size": 32,
            "classes": "random",
            "start": "distinct",
        },
        "votes": {"across_labels": True},
        "selection": {"smooth": 16},
        "privacy": short["privacy"] | {"epsilon": 10.0},
        "schedule": {"iterations": 1, "num_samples": [600, 300], "degrees": 0},
        "teacher": {"features": 32, "embedder": embedder, "keep": 100},
        "metrics": {},
    }
    run = evolve(Config.from_dict(short))
    found = pq.read_table(label_images(run, str(others), str(tmp_path / "labels")))["label"]
    guesses = [("temple", "flower")[label] for label in found.to_pylist()]
    assert np.mean([guess == name for guess, name in zip(guesses, names, strict=True)]) > 0.85
    assert np.mean([*_compare_final(run / "synthetic", *crops(600, right, 1))]) > 0.85


def _compare_final(folder: Any, images: list[np.ndarray], names: list[str]) -> Iterator[bool]:
    """Yield whether each image of the final set, a public one, has the label that it shows."""
    shown = {image.tobytes(): name for image, name in zip(images, names, strict=True)}
    final = pq.read_table(folder)
    assert 50 < len(final) <= 100
    for cell, label in zip(final["image"].to_pylist(), final["label"].to_pylist(), strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB")).tobytes()
        yield shown[pixels] == ("temple", "flower")[label]


def _swap(rows: tuple[list[np.ndarray], list[str]], file: Path) -> tuple[Any, ...]:
    return rows[0], file, rows[1]
