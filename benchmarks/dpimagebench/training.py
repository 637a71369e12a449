"""Train a classifier on synthetic images as DPImageBench does, and test it once.

The epoch is the one with the best accuracy on held-out *synthetic* images. DPImageBench can also
choose it on private images; that choice would have to be paid for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from benchmarks.dpimagebench.networks import make_resnet, make_resnext, make_wide_resnet

AVERAGING = 0.9999
Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
MakeNetwork = Callable[[int, int], nn.Module]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Networks by name, and how each is trained.

    make_optimizer: takes the weights. Every `step` epochs the rate falls to a fifth. precision: of
    activations; weights are float32.
    """

    networks: Mapping[str, MakeNetwork]
    epochs: int
    batch_size: int
    step: int
    make_optimizer: Callable[[Any], torch.optim.Optimizer]
    precision: torch.dtype = torch.float32


_sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4)
_adam = partial(torch.optim.Adam, lr=0.01)
RECIPES = {
    "cifar": Recipe(
        networks={
            "ResNet-164": partial(make_resnet, depth=164),
            "WRN-28-10": partial(make_wide_resnet, depth=28, widen=10, dropout=0.3),
            "ResNeXt-28 8x10": partial(make_resnext, depth=28, cardinality=8, widen=10),
        },
        epochs=200,
        batch_size=126,
        step=60,
        make_optimizer=_sgd,
    ),
    "other": Recipe(
        networks={
            "ResNet-110": partial(make_resnet, depth=110),
            "WRN-40-4": partial(make_wide_resnet, depth=40, widen=4, dropout=0.3),
            "ResNeXt-29 8x4": partial(make_resnext, depth=29, cardinality=8, widen=4),
        },
        epochs=50,
        batch_size=256,
        step=20,
        make_optimizer=_adam,
    ),
    "cpu": Recipe(  # of our own: small networks, a tenth of the epochs, bfloat16
        networks={
            "ResNet-8": partial(make_resnet, depth=8),
            "WRN-10-1": partial(make_wide_resnet, depth=10, widen=1, dropout=0.0),
            "ResNeXt-11 2x2": partial(make_resnext, depth=11, cardinality=2, widen=2, base=8),
        },
        epochs=5,
        batch_size=256,
        step=2,
        make_optimizer=_adam,
        precision=torch.bfloat16,
    ),
}


def move_average(averaged: Any, current: Any, num_averaged: Any) -> None:
    """Move `averaged` towards `current`, faster at first: a short training forgets its start."""
    decay = min(AVERAGING, (1 + int(num_averaged)) / (10 + int(num_averaged)))
    torch._foreach_lerp_(averaged, current, 1 - decay)


def train_and_test(
    recipe: Recipe,
    network: str,
    synthetic: tuple[Images, Labels],
    test: tuple[Images, Labels],
    *,
    num_labels: int,
    num_train: int,
    seed: int,
    state: Path,
) -> dict[str, float]:
    """Train one network of the recipe; return its accuracies in % and the epoch that was chosen.

    synthetic: images uint8 [n, h, w, c] and labels; `num_train` of them, drawn by `seed`, are
    trained on, the others choose the epoch. state: file that is written after each epoch; a call
    that was killed continues from it.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    order = np.random.default_rng(seed).permutation(len(synthetic[0]))
    train, held = ([part[rows] for part in synthetic] for rows in np.split(order, [num_train]))
    torch.manual_seed(seed)
    model = recipe.networks[network](synthetic[0].shape[3], num_labels)
    model = model.to(device, memory_format=torch.channels_last)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=move_average)
    optimizer = recipe.make_optimizer(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, recipe.step, 0.2)
    parts = {"model": model, "average": average, "optimizer": optimizer, "scheduler": scheduler}
    epoch, best = 0, {"validation": -1.0, "epoch": 0, "weights": {}}
    if state.exists():
        saved = torch.load(state, map_location=device, weights_only=True)
        epoch, best = saved["epoch"], saved["best"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    while epoch < recipe.epochs:
        torch.manual_seed(seed * 1000 + epoch)  # order and dropout: the same after a kill
        _train_epoch(model, average, optimizer, train, recipe, device)
        scheduler.step()
        epoch += 1
        accuracy = _measure(average.module, *held, device)
        if accuracy >= best["validation"]:
            weights = copy.deepcopy(average.module.state_dict())
            best = {"validation": accuracy, "epoch": epoch, "weights": weights}
        print(f"{network}: epoch {epoch} of {recipe.epochs}, validation {accuracy:.2f}", flush=True)
        aside = state.with_suffix(".part")
        saved = {name: part.state_dict() for name, part in parts.items()}
        torch.save({"epoch": epoch, "best": best, **saved}, aside)
        aside.replace(state)
    model.load_state_dict(best.pop("weights"))
    return {"test": _measure(model, *test, device), **best}


def _train_epoch(
    model: nn.Module,
    average: torch.optim.swa_utils.AveragedModel,
    optimizer: torch.optim.Optimizer,
    train: list[NDArray[Any]],
    recipe: Recipe,
    device: torch.device,
) -> None:
    model.train()
    images, labels = (torch.from_numpy(part) for part in train)
    for batch in torch.randperm(len(images)).split(recipe.batch_size):
        if len(batch) == 1:
            continue  # normalisation needs two
        with torch.autocast(device.type, recipe.precision, recipe.precision != torch.float32):
            answers = model(_scale(images[batch], device))
        loss = F.cross_entropy(answers.float(), labels[batch].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update_parameters(model)


@torch.inference_mode()
def _measure(model: nn.Module, images: Images, labels: Labels, device: torch.device) -> float:
    """Return the accuracy in %."""
    model.eval()
    right = 0
    for shown, truth in zip(
        *(torch.from_numpy(p).split(500) for p in (images, labels)), strict=True
    ):
        right += int((model(_scale(shown, device)).argmax(dim=1).cpu() == truth).sum())
    return 100 * right / len(labels)


def _scale(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return [n, c, h, w] in [-1, 1]."""
    return images.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
