"""Draw exact discrete Gaussian noise from the operating system's entropy."""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import mpmath
import numpy as np
from numpy.typing import NDArray

from pe_ray.errors import InputError

MIN_SIGMA = 0.01
"""Below this a single count has an epsilon over 5,000, which is no protection."""
MAX_SIGMA = 2.0**40
_TABLE_SIGMA = 2.0**10
"""Above this sigma a table row stands for a block of integers, so that the table fits the cache."""
_TAIL_BITS = 128
_RELATIVE_BITS = 64
_GUARD_BITS = 96
_WORD = 2.0**64
_CHUNK = 2**20


def discrete_gaussian(
    sigma: float, size: int, *, entropy: Callable[[int], bytes] = os.urandom
) -> NDArray[np.int64]:
    """Draw `size` independent values of the discrete Gaussian N_Z(0, sigma^2), int64 [size].

    P(x) is proportional to exp(-x^2 / (2 sigma^2)) on the integers (Canonne, Kamath, Steinke
    2020, Definition 1). A uniform integer of 256 bits or more inverts a table of the distribution
    function. Its first 64 bits decide unless they tie with the table; only then the rest is drawn.
    Above sigma = 1024 a row of the table stands for a block of magnitudes. One of them is drawn
    uniformly and accepted with the exact ratio of the weights. sigma = 0 gives zeros: no noise and
    no privacy.

    `entropy` is for TESTS ONLY: noise from anything but the system's entropy protects nobody.

    Guarantee: the magnitudes that can't be drawn have a mass below 2**-128. Every other value has
    its probability to a relative 2**-60, for tiny sigma too. So each finite privacy loss is within
    2**-59 of the ideal one, and infinite losses have a mass below 2**-127.
    """
    if sigma == 0:
        return np.zeros(size, dtype=np.int64)
    if not MIN_SIGMA <= sigma <= MAX_SIGMA:
        raise InputError(
            f"privacy: noise sigma {sigma:g} is out of range [{MIN_SIGMA:g}, {MAX_SIGMA:g}]; "
            "change privacy.epsilon (inf for no noise)"
        )
    table = _table(sigma)
    result = np.empty(size, dtype=np.int64)
    filled = 0
    while filled < size:
        drawn = _draw(table, min(size - filled, _CHUNK), entropy)
        result[filled : filled + len(drawn)] = drawn
        filled += len(drawn)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """Distribution of the block b = |x| // block, with weight exp(-(b block)^2 / (2 sigma^2)).

    cumulative: P(block <= b) times 2**bits, exact to one unit.
    high: the first 64 bits of each, without the last one (which is 2**64).
    """

    sigma: float
    block: int
    bits: int
    cumulative: list[int]
    high: NDArray[np.uint64]


@lru_cache(maxsize=8)
def _table(sigma: float) -> _Table:
    """Build the table by the recurrence w <- w r, r <- r q, q = exp(-1/s^2), in fixed point.

    The last row is the first whose weight is below 2**-129. That row, whose outer neighbour is
    missing, and all beyond it have less mass than that. There are enough bits for a relative error
    of 2**-64 of its probability. With blocks of one integer, row 0 counts once and the others twice
    (both signs). With longer blocks x = -0 is rejected instead.
    """
    block = 1 << max(0, math.ceil(math.log2(sigma / _TABLE_SIGMA)))
    scale = sigma / block  # exact: block is a power of two
    last = math.ceil(scale * math.sqrt(2 * (_TAIL_BITS + 1) * math.log(2)))
    least = (last / scale) ** 2 / 2 / math.log(2)
    bits = 64 * math.ceil((least + math.log2(scale + 1) + 3 + _RELATIVE_BITS) / 64)
    precision = bits + _GUARD_BITS
    with mpmath.workprec(precision + 64):
        variance = mpmath.mpf(scale) ** 2
        ratio = int(mpmath.ldexp(mpmath.exp(-1 / (2 * variance)), precision))
        shrink = int(mpmath.ldexp(mpmath.exp(-1 / variance), precision))
    weight, total, sums = 1 << precision, 0, []
    for row in range(last + 1):
        total += weight if row == 0 or block > 1 else 2 * weight
        sums.append(total)
        weight = weight * ratio >> precision
        ratio = ratio * shrink >> precision
    cumulative = [(value << bits) // total for value in sums]
    high = np.array([value >> (bits - 64) for value in cumulative[:-1]], dtype=np.uint64)
    return _Table(sigma=sigma, block=block, bits=bits, cumulative=cumulative, high=high)


def _draw(table: _Table, size: int, entropy: Callable[[int], bytes]) -> NDArray[np.int64]:
    """Return at most `size` draws, in order; fewer where some were rejected."""
    words = np.frombuffer(entropy(8 * size), dtype="<u8")
    rows = np.searchsorted(table.high, words, side="right")
    tied = (rows > 0) & (table.high[np.maximum(rows, 1) - 1] == words)
    for i in np.nonzero(tied)[0]:
        rest = int.from_bytes(entropy((table.bits - 64) // 8), "little")
        rows[i] = bisect_right(table.cumulative, (int(words[i]) << (table.bits - 64)) | rest)
    if table.block == 1:
        signs = np.unpackbits(np.frombuffer(entropy(-(-size // 8)), dtype=np.uint8), count=size)
        whole: NDArray[np.int64] = np.where(signs, -rows, rows)
        return whole
    extra = np.frombuffer(entropy(8 * size), dtype="<u8")
    negative = (extra >> np.uint64(63)).astype(bool)
    offsets = (extra & np.uint64(table.block - 1)).astype(np.int64)
    values = rows * table.block + offsets
    accepted = _accept(table, rows, offsets, entropy) & ~(negative & (values == 0))
    signed: NDArray[np.int64] = np.where(negative, -values, values)[accepted]
    return signed


def _accept(
    table: _Table,
    rows: NDArray[np.int64],
    offsets: NDArray[np.int64],
    entropy: Callable[[int], bytes],
) -> NDArray[np.bool_]:
    """Return True with probability exp(-(x^2 - y^2) / (2 sigma^2)), y the block's first integer.

    64 random bits are compared with the probability in float64, which is right to 2**-50. Where
    they are too close to decide, 192 more bits are compared with the exact probability.
    """
    words = np.frombuffer(entropy(8 * len(rows)), dtype="<u8")
    starts, steps = rows.astype(np.float64) * table.block, offsets.astype(np.float64)
    chance = np.exp(-(2.0 * starts + steps) * steps / (2.0 * table.sigma * table.sigma))
    margin = chance - words / _WORD
    accepted = margin > 0
    for i in np.nonzero(np.abs(margin) < 2.0**-45)[0]:
        rest = int.from_bytes(entropy(24), "little")
        uniform = (int(words[i]) << 192) | rest
        offset = int(offsets[i])
        excess = (2 * int(rows[i]) * table.block + offset) * offset
        with mpmath.workprec(320):
            exact = mpmath.exp(-excess / (2 * mpmath.mpf(table.sigma) ** 2))
            accepted[i] = uniform < int(mpmath.ldexp(exact, 256))
    return np.asarray(accepted)
