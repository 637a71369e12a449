"""A small convolutional classifier, the same to the last bit for a seed and number of threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pe_ray.plugins import Images

if TYPE_CHECKING:
    import torch

_BATCH = 128
_RATE = 1e-3

Classifier = Callable[[Images], NDArray[np.int64]]
"""Images of the size trained on -> their labels, [n]."""


def train(images: Images, labels: NDArray[np.int32], epochs: int, seed: int) -> Classifier:
    """Train on the CPU: two 3x3 convolutions (32 and 64 channels, each with ReLU and 2x2 max
    pooling), 7x7 average pooling (nothing to do at 28x28), 128 hidden units; Adam at 1e-3,
    batches of 128. Images of at least 4x4, labels from 0.
    """
    import torch
    from torch import nn

    pixels, targets = _tensor(images), torch.from_numpy(labels.astype(np.int64))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(pixels.shape[1], 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.AdaptiveAvgPool2d(7),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 128),
            nn.ReLU(),
            nn.Linear(128, int(labels.max()) + 1),
        )
        optimizer = torch.optim.Adam(network.parameters(), lr=_RATE)
        for _ in range(epochs):
            for batch in torch.randperm(len(pixels)).split(_BATCH):
                loss = nn.functional.cross_entropy(network(_scaled(pixels[batch])), targets[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    network.eval()

    def classify(images: Images) -> NDArray[np.int64]:
        with torch.inference_mode():
            guesses = [network(_scaled(b)).argmax(dim=1) for b in _tensor(images).split(1024)]
        return np.asarray(torch.cat(guesses).numpy())

    return classify


def _tensor(images: Images) -> torch.Tensor:
    """uint8 [n, c, h, w]; stays uint8 until a batch is used."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _scaled(batch: torch.Tensor) -> torch.Tensor:
    return batch.float() / 255 - 0.5
