"""ONNX: the chosen output of the given file, for any number of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_networks import images, load_embedder, save_onnx

from pe_ray import InputError
from pe_ray.components.embedders.onnx_network import OnnxOptions
from pe_ray.values import ImageShape

ANY = ImageShape(height=1, width=1, channels=1)


@pytest.mark.parametrize("batch", ["n", 1, 4])
def test_an_output_for_any_number_of_images(tmp_path: Path, batch: int | str) -> None:
    options = {"file": str(save_onnx(tmp_path / "tiny.onnx", batch)), "size": 8}
    mean, std = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
    given = images(37, 8, 8, 3)
    found = load_embedder("onnx", **options, mean=mean, std=std).embed(given)
    expected = (given.mean(axis=(1, 2)) / 255 - mean) / std
    assert found == pytest.approx(expected, abs=1e-5)
    assert found.dtype == np.float32
    mixed = load_embedder("onnx", **options, output="mixed")
    assert mixed.embed(given).shape == (37, OnnxOptions(**options, output="mixed").dim(ANY))
    assert mixed.embed(given[:0]).shape == (0, 5)


def test_images_of_another_size_are_resized(tmp_path: Path) -> None:
    embedder = load_embedder("onnx", file=str(save_onnx(tmp_path / "tiny.onnx")), size=8)
    flat = np.full((2, 20, 13, 1), 128, dtype=np.uint8)
    assert embedder.embed(flat) == pytest.approx(embedder.embed(flat[:, :8, :8]), abs=1e-6)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = save_onnx(tmp_path / "tiny.onnx")
    with pytest.raises(InputError, match=r"embedder\.output: .* means, mixed"):
        load_embedder("onnx", file=str(file), size=8, output="absent")
    with pytest.raises(InputError, match=r"embedder\.file"):
        load_embedder("onnx", file=str(file), size=9)
    (tmp_path / "other.onnx").write_bytes(b"no network")
    for name in ("other.onnx", "absent.onnx"):
        with pytest.raises(InputError, match=r"embedder\.file"):
            load_embedder("onnx", file=str(tmp_path / name), size=8)
