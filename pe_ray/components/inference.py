"""Networks in inference: device, precision, exact arithmetic.

Imports torch: import this module where the network runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pe_ray.plugins import Images

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CHUNK = 32  # images of one forward pass: a GB or so of activations at 299x299


def pick_device() -> torch.device:
    """Return this process's GPU, or the CPU where torch sees none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_rgb(images: Images, device: torch.device) -> Tensor:
    """Return grey (repeated) or RGB images as a uint8 tensor [n, 3, height, width] on `device`."""
    pixels = torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2)
    return pixels.expand(-1, 3, -1, -1).contiguous()


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
    """Return the features, float32 [n, dim], of grey or RGB images; 32 of them at a time.

    The last ones are filled up with black images, since another number would be rounded otherwise.
    So an image has the same features in any batch, as far as tried. Another number of threads or
    device changes them by about 3e-6 of the largest.
    """
    embedded = np.empty((len(images), dim), dtype=np.float32)
    with exact_arithmetic():
        for start in range(0, len(images), _CHUNK):
            chunk = images[start : start + _CHUNK]
            filled = np.zeros((_CHUNK, *images.shape[1:]), dtype=np.uint8)
            filled[: len(chunk)] = chunk
            made = features(filled).float().cpu().numpy()
            embedded[start : start + _CHUNK] = made[: len(chunk)]
    return embedded
