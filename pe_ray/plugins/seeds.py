"""Public randomness: one 64-bit seed per row, so that a row's image depends on nothing else.

Never used for privacy noise (see release/mechanism.py): anybody who knows the configuration can
recompute these numbers.
"""

from __future__ import annotations

from math import gcd
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Seeds = NDArray[np.uint64]
Purpose = Literal["random", "variation", "lookahead", "selection", "expansion", "features", "order"]

_PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(state: Seeds) -> Seeds:
    """Apply the finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), modulo 2**64."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def row_seeds(
    run_seed: int,
    purpose: Purpose,
    iteration: int,
    ids: NDArray[np.int64],
    copies: NDArray[np.int64] | int = 0,
) -> Seeds:
    """Return the seeds of rows `ids`, both of shape [n]; a function of the arguments alone."""
    words = (run_seed, _PURPOSES.index(purpose), iteration, ids, copies)
    state = np.zeros(ids.shape, dtype=np.uint64)
    for word in words:
        state = _mix((state + _GOLDEN) ^ np.asarray(word, dtype=np.int64).astype(np.uint64))
    return state


def uniforms(seeds: Seeds, num: int) -> NDArray[np.float64]:
    """Draw independent uniforms in (0, 1), shape [n, num]: `num` for each seed."""
    steps = np.arange(1, num + 1, dtype=np.uint64) * _GOLDEN
    bits = _mix(seeds[:, None] + steps) >> np.uint64(11)
    return (bits.astype(np.float64) + 0.5) * 2.0**-53


def normals(seeds: Seeds, num: int) -> NDArray[np.float32]:
    """Draw independent standard normals, shape [n, num], by Box and Muller (1958).

    The halves of each 64-bit word make two, in float32. An image's noise takes 0.04 ms, and the
    network that denoises it milliseconds. Torch's generators are no choice: on CPUs they keep 32
    bits of a seed, so some of a million rows would share their noise; on GPUs they draw other
    numbers.
    """
    half = -(-num // 2)
    steps = np.arange(1, half + 1, dtype=np.uint64) * _GOLDEN
    drawn = np.empty((len(seeds), 2 * half), dtype=np.float32)
    for row, seed in enumerate(seeds):  # one row's words at a time stay in the cache
        bits = _mix(seed + steps)
        upper = (bits >> np.uint64(32)).astype(np.float32)
        lower = (bits & np.uint64(0xFFFFFFFF)).astype(np.float32)
        radius = np.sqrt(-2.0 * np.log((upper + np.float32(0.5)) * np.float32(2.0**-32)))
        angle = lower * np.float32(2.0 * np.pi * 2.0**-32)
        drawn[row, :half] = radius * np.cos(angle)
        drawn[row, half:] = radius * np.sin(angle)
    return drawn[:, :num]


def choose_step(count: int) -> int:
    """Return a step that visits all of `count` places, those of a few turns far apart.

    It is near 0.618 count: multiples of 0.618, modulo 1, lie evenly in [0, 1).
    """
    return next(step for step in range(round(0.618 * count), count + 2) if gcd(step, count) == 1)
