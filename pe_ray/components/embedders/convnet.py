"""A small convolutional classifier, the same to the last bit for a seed and number of threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pe_ray.plugins import Images

if TYPE_CHECKING:
    import torch
    from torch import nn

_BATCH = 128
_EMBEDDED = 64  # images at once for activations; larger batches don't fit the CPU's cache
_RATE = 3e-3  # the first step's; it falls to 0 at the last
_WIDTHS = (16, 32, 64)


def train(images: Images, labels: NDArray[np.int32], epochs: int, seed: int) -> nn.Sequential:
    """Train on the CPU with Adam, a rate falling linearly from 3e-3 to 0, batches of up to 128.

    Needs at least two images, of at least 4x4 pixels; labels count from 0.
    """
    import torch
    from torch import nn

    pixels, targets = _tensor(images), torch.from_numpy(labels.astype(np.int64))
    batches = -(-len(pixels) // _BATCH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_network(images.shape[3], int(labels.max()) + 1)
        optimizer = torch.optim.Adam(network.parameters(), lr=_RATE)
        falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, epochs * batches)
        for _ in range(epochs):
            # Batches of nearly equal size: batch normalisation fails on one image.
            for batch in torch.randperm(len(pixels)).tensor_split(batches):
                loss = nn.functional.cross_entropy(network(_scaled(pixels[batch])), targets[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                falling.step()
    return network.eval()


def make_network(channels: int, num_labels: int) -> nn.Sequential:
    """Return the untrained network: three pairs of convolutions, a mean, a linear layer."""
    from torch import nn

    layers: list[nn.Module] = []
    for stage, width in enumerate(_WIDTHS):
        layers += [nn.MaxPool2d(2)] if stage else []
        for _ in range(2):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
    return nn.Sequential(
        nn.Sequential(*layers),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, num_labels),
    )


def activations(network: nn.Sequential, images: Images) -> NDArray[np.float32]:
    """Return features of images, float32 [n, 64 + 64 * 4 * 4].

    The means of the network's last maps, then these maps averaged to 4x4. All batches have one
    size, filled up with black images: in another size a row may be rounded differently.
    """
    import torch
    from torch import nn

    convolutions = network[0]
    made = []
    with torch.inference_mode():
        for batch in _tensor(images).split(_EMBEDDED):
            filled = nn.functional.pad(batch, (0, 0, 0, 0, 0, 0, 0, _EMBEDDED - len(batch)))
            maps = convolutions(_scaled(filled))
            coarse = nn.functional.adaptive_avg_pool2d(maps, 4).flatten(1)
            rows = torch.cat([maps.mean(dim=(2, 3)), coarse], dim=1)
            made.append(rows[: len(batch)].numpy())
    return np.concatenate(made)


def classify(network: nn.Sequential, images: Images) -> NDArray[np.int64]:
    """Return the labels of images of the size trained on, [n]."""
    import torch

    with torch.inference_mode():
        guesses = [network(_scaled(b)).argmax(dim=1) for b in _tensor(images).split(1024)]
    return np.asarray(torch.cat(guesses).numpy())


def _tensor(images: Images) -> torch.Tensor:
    """Return uint8 [n, c, h, w]; it stays uint8 until a batch is used."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _scaled(batch: torch.Tensor) -> torch.Tensor:
    return batch.float() / 255 - 0.5
