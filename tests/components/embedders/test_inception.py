"""Inception: clean-fid's features, its download, and files that are something else."""

from __future__ import annotations

import urllib.error
import urllib.request
import urllib.response
from email.message import Message
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_networks import images, load_embedder, save_inception

from pe_ray import InputError


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of a tiny network."""
    return save_inception(tmp_path_factory.mktemp("inception"))


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (64, 48), (320, 301)])
def test_inception_is_clean_fids(weights: Path, size: tuple[int, int]) -> None:
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    batch = images(5, *size, 3)
    resize = build_resizer("clean")
    pixels = np.stack([resize(image) for image in batch]).transpose(0, 3, 1, 2)
    file = weights
    network = InceptionV3W(str(file.parent), download=False)
    with torch.inference_mode():
        expected = network(torch.from_numpy(pixels)).numpy()
    found = load_embedder("inception", weights=str(file)).embed(batch)
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()


def test_inception_is_downloaded_once(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fetched(request: urllib.request.Request) -> Any:
        calls.append(request.full_url)
        return urllib.response.addinfourl(open(weights, "rb"), Message(), request.full_url)

    monkeypatch.setattr("torch.hub.urlopen", fetched)
    batch = images(2, 9, 9, 1)
    first, second = load_embedder("inception").embed(batch), load_embedder("inception").embed(batch)
    assert np.array_equal(first, second)
    assert len(calls) == 1


def test_without_a_network_inception_says_what_to_get(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unreachable(request: urllib.request.Request) -> Any:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    with pytest.raises(InputError, match=r"embedder\.weights: https://.*inception-2015-12-05.pt"):
        load_embedder("inception")
    assert not list((tmp_path / "xdg" / "pe_ray" / "weights").iterdir())
    with pytest.raises(InputError, match=r"embedder\.weights: absent .*https://"):
        load_embedder("inception", weights="absent")


def test_inception_refuses_other_files(tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    other.write_bytes(b"not an archive")
    with pytest.raises(InputError, match=r"embedder\.weights: .*other\.pt"):
        load_embedder("inception", weights=str(other))
    with pytest.raises(InputError, match=r"embedder\.weights"):
        load_embedder("inception", weights=str(save_inception(tmp_path, dim=2047)))
