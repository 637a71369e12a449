"""DDIM sampling: the steps that are taken, the noise of each, and the loop over them."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pe_ray.components.weights import Precision

logger = logging.getLogger(__name__)


def space_steps(num_steps: int, respacing: str) -> list[int]:
    """Return the steps, of 0 .. num_steps - 1, that sampling uses, ascending.

    respacing is improved diffusion's flag `timestep_respacing`. ddimN takes every i-th step, for
    the smallest i that leaves N (as Song et al. 2021). N,M,... cuts the steps into sections of
    equal length and spaces N evenly over the first, M over the second. Empty takes all steps.
    Raises ValueError if that is not possible.
    """
    if respacing.startswith("ddim"):
        wanted = _parse(respacing.removeprefix("ddim"))
        for stride in range(1, num_steps + 1):
            if len(range(0, num_steps, stride)) == wanted:
                return list(range(0, num_steps, stride))
        raise ValueError(f"no whole stride takes {wanted} of {num_steps} steps; try {wanted}")
    counts = [_parse(part) for part in respacing.split(",")] if respacing else [num_steps]
    steps, start = [], 0
    for section, count in enumerate(counts):
        size = num_steps // len(counts) + (section < num_steps % len(counts))
        if not 1 <= count <= size:
            raise ValueError(f"can't take {count} of the {size} steps of section {section + 1}")
        apart = (size - 1) / max(1, count - 1)
        # Summed, not multiplied, and halves to even: exactly the original's steps.
        places = itertools.accumulate([0.0] + [apart] * (count - 1))
        steps += [start + round(place) for place in places]
        start += size
    return steps


def _parse(text: str) -> int:
    if not text.strip().isdecimal():
        raise ValueError(f"{text!r} is not a number of steps; write 100, ddim25 or 10,20")
    return int(text)


def compute_signal(schedule: Literal["cosine", "linear"], num_steps: int) -> NDArray[np.float64]:
    """Return alpha-bar, the share of the image's variance left at each step; falling, [num_steps].

    cosine: Nichol and Dhariwal 2021, section 3.2. linear: Ho et al. 2020, section 4, scaled from
    their 1,000 steps to num_steps.
    """
    if schedule == "linear":
        betas = np.linspace(0.1 / num_steps, 20 / num_steps, num_steps, dtype=np.float64)
    else:
        progress = np.arange(num_steps + 1) / num_steps
        signal = np.cos((progress + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - signal[1:] / signal[:-1], 0.999)
    return np.asarray(np.cumprod(1 - betas))


class DdimSampler:
    """A network that predicts noise, sampled with DDIM at eta 0, on `inference.pick_device()`.

    timesteps: those of the network, from pure noise to the image.
    """

    def __init__(
        self,
        network: Any,
        timesteps: Sequence[int],
        *,
        has_classes: bool,
        precision: Precision,
        compiled: bool,
    ) -> None:
        import torch

        from pe_ray.components.inference import DTYPES, pick_device

        self._device, self._dtype = pick_device(), DTYPES[precision]
        self._precision = precision
        on_gpu = self._device.type == "cuda"
        self._layout = torch.channels_last if on_gpu else torch.contiguous_format
        # The base class's `to`: diffusers' own warns of casts.
        torch.nn.Module.to(network, device=self._device, dtype=self._dtype)
        torch.nn.Module.to(network, memory_format=self._layout)
        self._network = network.eval().requires_grad_(False)
        if compiled:
            network.compile()
        self._timesteps, self._has_classes = timesteps, has_classes
        logger.info("diffusion model: on %s in %s", self._device, precision)

    def denoise(
        self, noise: Any, labels: Any = None, start_step: int = 0, start_images: Any = None
    ) -> Any:
        """Return images, float32 [n, channels, height, width] in [-1, 1].

        noise: standard normal, [n, channels, height, width]; for a tensor the result is one, else
        an array. labels: class numbers [n], for a model with classes. start_images: uint8
        [n, height, width, channels], or float in [-1, 1] shaped as the noise. With them, sampling
        skips `start_step` steps and starts from these images, with as much noise as the first step
        expects; with None it starts from pure noise.
        """
        import torch

        from pe_ray.components.inference import infer_in

        with infer_in(self._precision):
            x = self._place(noise)
            num, channels = x.shape[:2]
            classes = _tensor(labels).to(self._device, torch.int64) if self._has_classes else None
            if start_images is not None:
                x = self._add_noise(self._place(start_images), x, start_step)
            for step in range(start_step, len(self._timesteps)):
                at = torch.full((num,), self._timesteps[step], device=x.device)
                predicted = self._network(x.to(self._dtype), at, classes)
                # A learned variance comes after the noise; DDIM at eta 0 adds none.
                noise_part = getattr(predicted, "sample", predicted)[:, :channels].float()
                x = self._step(x, noise_part, step)
            x = x.clamp(-1, 1)
        # Outside: a tensor made inside could not be changed.
        return x.to(noise.device, copy=True) if torch.is_tensor(noise) else x.cpu().numpy()

    def _place(self, images: Any) -> Any:
        """Return images, array or tensor, on the device; levels of uint8 ones in [-1, 1]."""
        import torch

        placed = _tensor(images).to(self._device)
        if placed.dtype == torch.uint8:
            placed = placed.permute(0, 3, 1, 2).float() / 127.5 - 1
        return placed.float().contiguous(memory_format=self._layout)

    def _add_noise(self, images: Any, noise: Any, step: int) -> Any:
        """Return images with as much noise as `step` expects."""
        raise NotImplementedError

    def _step(self, x: Any, predicted: Any, step: int) -> Any:
        """Return x after `step`, which removes some of the predicted noise."""
        raise NotImplementedError


def _tensor(values: Any) -> Any:
    import torch

    # Arrays are copied: torch warns about arrays that can't be written to, as Ray's can't.
    return values if torch.is_tensor(values) else torch.from_numpy(np.array(values))
