"""Tiny checkpoints of pixel diffusion, and torch on one thread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tiny_unets import save_improved, save_unet


@pytest.fixture(scope="module")
def improved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of a tiny improved-diffusion checkpoint."""
    return save_improved(tmp_path_factory.mktemp("improved"))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny unconditional RGB pipeline."""
    return save_unet(tmp_path_factory.mktemp("unet"))


@pytest.fixture(scope="module")
def classed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny grey pipeline with two classes."""
    folder = tmp_path_factory.mktemp("classed")
    return save_unet(folder, num_class_embeds=2, in_channels=1, out_channels=1)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny networks spend their time in waiting for threads, on a busy machine nearly all of it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
