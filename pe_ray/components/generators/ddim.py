"""Which steps a diffusion model samples at and how much noise they have: plain numbers."""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
from numpy.typing import NDArray


def respaced(num_steps: int, respacing: str) -> list[int]:
    """The steps, of 0 .. num_steps - 1, that sampling uses, ascending.

    respacing, as improved diffusion's flag of that name: ddimN takes every i-th, for the least i
    that leaves N (the spacing of the DDIM paper); N,M,... cuts the steps into as many stretches of
    equal length and spaces N evenly over the first, M over the second; empty takes them all.
    Raises ValueError where that can't be done.
    """
    if respacing.startswith("ddim"):
        wanted = _number(respacing.removeprefix("ddim"))
        for stride in range(1, num_steps + 1):
            if len(range(0, num_steps, stride)) == wanted:
                return list(range(0, num_steps, stride))
        raise ValueError(f"no whole stride takes {wanted} of {num_steps} steps; try {wanted}")
    counts = [_number(part) for part in respacing.split(",")] if respacing else [num_steps]
    steps, start = [], 0
    for section, count in enumerate(counts):
        size = num_steps // len(counts) + (section < num_steps % len(counts))
        if not 1 <= count <= size:
            raise ValueError(f"can't take {count} of the {size} steps of section {section + 1}")
        apart = (size - 1) / max(1, count - 1)
        # Summed rather than multiplied, halves to even: the original's steps, to the last one.
        places = itertools.accumulate([0.0] + [apart] * (count - 1))
        steps += [start + round(place) for place in places]
        start += size
    return steps


def _number(text: str) -> int:
    if not text.strip().isdecimal():
        raise ValueError(f"{text!r} is not a number of steps; write 100, ddim25 or 10,20")
    return int(text)


def signal_shares(schedule: Literal["cosine", "linear"], num_steps: int) -> NDArray[np.float64]:
    """Share of the image's variance left at each step (alpha-bar), falling; [num_steps].

    cosine: Nichol and Dhariwal 2021, section 3.2; linear: Ho et al. 2020, section 4, stretched
    from their 1,000 steps to num_steps.
    """
    if schedule == "linear":
        betas = np.linspace(0.1 / num_steps, 20 / num_steps, num_steps, dtype=np.float64)
    else:
        progress = np.arange(num_steps + 1) / num_steps
        signal = np.cos((progress + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - signal[1:] / signal[:-1], 0.999)
    return np.asarray(np.cumprod(1 - betas))
