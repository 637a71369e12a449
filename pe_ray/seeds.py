"""Public randomness: one 64-bit seed per row, so that a row's image depends on nothing else.

Never used for privacy noise (see release/gaussian.py): anybody who knows the configuration can
recompute these numbers.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Seeds = NDArray[np.uint64]
Purpose = Literal["random", "variation", "lookahead", "selection", "expansion"]

_PURPOSES: tuple[Purpose, ...] = ("random", "variation", "lookahead", "selection", "expansion")
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(state: Seeds) -> Seeds:
    """Finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), modulo 2**64."""
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
    """Seeds, shape [n], of rows `ids` (shape [n]); a function of the arguments alone."""
    words = (run_seed, _PURPOSES.index(purpose), iteration, ids, copies)
    state = np.zeros(ids.shape, dtype=np.uint64)
    for word in words:
        state = _mix((state + _GOLDEN) ^ np.asarray(word, dtype=np.int64).astype(np.uint64))
    return state


def uniforms(seeds: Seeds, num: int) -> NDArray[np.float64]:
    """Independent uniforms in (0, 1), shape [n, num]: `num` for each seed."""
    steps = np.arange(1, num + 1, dtype=np.uint64) * _GOLDEN
    bits = _mix(seeds[:, None] + steps) >> np.uint64(11)
    return (bits.astype(np.float64) + 0.5) * 2.0**-53


def normals(seeds: Seeds, num: int) -> NDArray[np.float64]:
    """Independent standard normals, shape [n, num], by Box and Muller (1958)."""
    pairs = uniforms(seeds, 2 * num)
    radius = np.sqrt(-2.0 * np.log(pairs[:, :num]))
    return np.asarray(radius * np.cos(2.0 * np.pi * pairs[:, num:]))
