"""The steps that a diffusion model samples at, and the noise of each."""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
from numpy.typing import NDArray


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
