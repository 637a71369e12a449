"""Networks in inference: device, precision, exact arithmetic.

Imports torch: import this module where the network runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pe_ray.components.weights import Precision
from pe_ray.plugins import Images

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CHUNK = 32  # images of one forward pass: a GB or so of activations at 299x299


def pick_device() -> torch.device:
    """Return this process's GPU, or the CPU where torch sees none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Compute without gradients and TF32, and without algorithms that are chosen by timing them.

    Whatever other code set in this process is restored after it.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    cudnn = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    try:
        with torch.inference_mode(), cudnn:
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def embed_in_chunks(
    features: Callable[[Images], Tensor], images: Images, dim: int
) -> NDArray[np.float32]:
    """Return the features, float32 [n, dim], of grey or RGB images; 32 of them at a time."""
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise TypeError(f"images must be [n, height, width, 1 or 3], not {images.shape}")
    embedded = np.empty((len(images), dim), dtype=np.float32)
    with exact_arithmetic():
        for start in range(0, len(images), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            embedded[chunk] = features(images[chunk]).float().cpu().numpy()
    return embedded


class OnDevice:
    """A network for inference on images, on `pick_device()`; channels last on a GPU."""

    def __init__(self, network: nn.Module, precision: Precision, *, compiled: bool) -> None:
        self.device = pick_device()
        self.dtype = DTYPES[precision]
        on_gpu = self.device.type == "cuda"
        self._layout = torch.channels_last if on_gpu else torch.contiguous_format
        # The base class's `to`: diffusers' own warns of casts.
        nn.Module.to(network, device=self.device, dtype=self.dtype)
        nn.Module.to(network, memory_format=self._layout)
        self._network = network.eval().requires_grad_(False)
        if compiled:
            network.compile()
        logger.info("diffusion model: on %s in %s", self.device, precision)

    def __call__(self, images: Tensor, *arguments: Any, **named: Any) -> Any:
        """Return the network's output for `images`, in its own precision."""
        return self._network(images.to(self.dtype), *arguments, **named)

    def floats(self, values: Any) -> Tensor:
        """Place images [n, channels, height, width], array or tensor, on the device as float32."""
        placed = _tensor(values).to(self.device, torch.float32)
        return placed.contiguous(memory_format=self._layout)

    def images(self, images: Any) -> Tensor:
        """Do the same with values in [-1, 1]; uint8 images [n, height, width, c] are scaled."""
        given = _tensor(images)
        if given.dtype == torch.uint8:
            given = given.to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        return self.floats(given)

    def integers(self, values: Any) -> Tensor:
        """Place integers, array or tensor, on the device as int64."""
        return _tensor(values).to(self.device, torch.int64)


def _tensor(values: Any) -> Tensor:
    # Arrays are copied: torch warns about arrays that can't be written to, as Ray's can't.
    return values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))


def like(given: Any, images: Tensor) -> Any:
    """Return `images` as an array, or if `given` is a tensor, as one on its device."""
    if isinstance(given, Tensor):
        return images.to(given.device, copy=True)
    return images.cpu().numpy()
