"""A network on this process's device, and its inputs. Imports torch: load it where it runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pe_ray.components.weights import Precision

logger = logging.getLogger(__name__)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class OnDevice:
    """A network for inference: on the GPU if torch sees one (channels last), else on the CPU."""

    def __init__(self, network: nn.Module, precision: Precision, *, compiled: bool) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = _DTYPES[precision]
        on_gpu = self.device.type == "cuda"
        self._layout = torch.channels_last if on_gpu else torch.contiguous_format
        # The base class's, since diffusers' own `to` warns of a cast that loses nothing here.
        nn.Module.to(network, device=self.device, dtype=self.dtype)
        nn.Module.to(network, memory_format=self._layout)
        self._network = network.eval().requires_grad_(False)
        if compiled:
            network.compile()
        logger.info("diffusion model: on %s in %s", self.device, precision)

    def __call__(self, images: Tensor, *arguments: Any, **named: Any) -> Any:
        """What the network makes of `images` in its own precision."""
        return self._network(images.to(self.dtype), *arguments, **named)

    @contextmanager
    def running(self) -> Iterator[None]:
        """No gradients; fp32 is fp32 (no TF32), and no algorithm is chosen by timing it."""
        exact = torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        )
        with torch.inference_mode(), exact:
            yield

    def floats(self, values: Any) -> Tensor:
        """Float32 images [n, channels, height, width] on the device, from an array or a tensor."""
        placed = _tensor(values).to(self.device, torch.float32)
        return placed.contiguous(memory_format=self._layout)

    def images(self, images: Any) -> Tensor:
        """The same, in [-1, 1], from those or from uint8 images [n, height, width, channels]."""
        given = _tensor(images)
        if given.dtype == torch.uint8:
            given = given.to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        return self.floats(given)

    def integers(self, values: Any) -> Tensor:
        """Int64 on the device, from an array or a tensor."""
        return _tensor(values).to(self.device, torch.int64)


def _tensor(values: Any) -> Tensor:
    # Arrays are copied: those that come through Ray can't be written to, which torch warns about.
    return values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))


def like(given: Any, images: Tensor) -> Any:
    """`images` as a tensor beside `given` if that is one, else as an array."""
    if isinstance(given, Tensor):
        return images.to(given.device, copy=True)
    return images.cpu().numpy()
