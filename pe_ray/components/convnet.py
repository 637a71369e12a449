"""A small convolutional classifier, the same to the last bit for a seed and number of threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pe_ray.plugins import Images

if TYPE_CHECKING:
    import torch
    from torch import nn

_BATCH = 128
_RATE = 1e-3

Classifier = Callable[[Images], NDArray[np.int64]]
"""Images of the size trained on -> their labels, [n]."""


def train(images: Images, labels: NDArray[np.int32], epochs: int, seed: int) -> Classifier:
    """`train_network`, as a function that classifies."""
    import torch

    network = train_network(images, labels, epochs, seed)

    def classify(images: Images) -> NDArray[np.int64]:
        with torch.inference_mode():
            guesses = [network(_scaled(b)).argmax(dim=1) for b in _tensor(images).split(1024)]
        return np.asarray(torch.cat(guesses).numpy())

    return classify


def train_network(
    images: Images, labels: NDArray[np.int32], epochs: int, seed: int
) -> nn.Sequential:
    """Train on the CPU: Adam at 1e-3, batches of 128. Images of at least 4x4, labels from 0."""
    import torch
    from torch import nn

    pixels, targets = _tensor(images), torch.from_numpy(labels.astype(np.int64))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_network(images.shape[3], int(labels.max()) + 1)
        optimizer = torch.optim.Adam(network.parameters(), lr=_RATE)
        for _ in range(epochs):
            for batch in torch.randperm(len(pixels)).split(_BATCH):
                loss = nn.functional.cross_entropy(network(_scaled(pixels[batch])), targets[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return network.eval()


def make_network(channels: int, num_labels: int) -> nn.Sequential:
    """Two 3x3 convolutions (32 and 64 channels, each with ReLU and 2x2 max pooling), 7x7 average
    pooling (nothing to do at 28x28), 128 hidden units; untrained.
    """
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(7),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 128),
        nn.ReLU(),
        nn.Linear(128, num_labels),
    )


def activations(network: nn.Sequential, images: Images) -> NDArray[np.float32]:
    """What the network makes of images, float32 [n, 128 + 64 * 4 * 4]: its hidden units, and its
    last maps averaged to 4x4, which keep what its own labels did not need.
    """
    import torch
    from torch import nn

    last_maps, head = network[:7], network[7:10]
    made = []
    with torch.inference_mode():
        for batch in _tensor(images).split(1024):
            maps = last_maps(_scaled(batch))
            coarse = nn.functional.adaptive_avg_pool2d(maps, 4).flatten(1)
            made.append(torch.cat([head(maps), coarse], dim=1).numpy())
    return np.concatenate(made)


def _tensor(images: Images) -> torch.Tensor:
    """uint8 [n, c, h, w]; stays uint8 until a batch is used."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _scaled(batch: torch.Tensor) -> torch.Tensor:
    return batch.float() / 255 - 0.5
