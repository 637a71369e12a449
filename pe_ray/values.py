"""What crosses the zones: frozen values without behaviour beyond their own arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Unit = Literal["record", "user"]
Resize = Literal["crop", "pad", "stretch"]
LabelValues = Literal["name", "position"]
DistanceMetric = Literal["l2", "cosine", "inner_product"]

LATTICE = 2**26
"""Sums are released on the lattice of multiples of 1 / LATTICE."""
MAX_SUMS = 2**20
"""Values in one release of sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageShape:
    """Height, width (pixels) and channels (1 grey, 3 RGB) of uint8 images."""

    height: int
    width: int
    channels: int

    @property
    def num_bytes(self) -> int:
        return self.height * self.width * self.channels


@dataclass(frozen=True, slots=True, kw_only=True)
class Framing:
    """How stored images, private and public alike, are brought to the shape of the run's.

    resize: what is done to other proportions. background: a colour, as Pillow reads it.
    """

    shape: ImageShape
    resize: Resize = "crop"
    background: str = "black"


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a call for a generator costs, and how many calls and how much cost are allowed.

    random: of a random draw; None: it takes no such call. vary: of a variation.
    """

    random: float | None
    vary: float
    max_calls: int
    max_cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """(epsilon, delta)-DP under adding or removing one `unit`; epsilon may be inf (not private)."""

    epsilon: float
    delta: float
    unit: Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One noisy answer about the private data: what it is and the noise it carries.

    kind: name or module:Class of a kind of release (release.releases).
    votes_per_unit: one record (or user) adds at most this many ones, each to a different bin; 1 for
    sums, to which a unit adds one vector of L2 norm at most 1.
    sigma: scale of the discrete Gaussian noise, in votes or in that norm; 0 means no privacy.
    """

    key: str
    kind: str
    iteration: int
    votes_per_unit: int
    sigma: float

    @property
    def is_sums(self) -> bool:
        """Whether vectors are summed on the lattice; else ones are counted."""
        return self.kind == "sums"

    @property
    def sensitivity(self) -> float:
        """L2 sensitivity: sqrt(votes_per_unit), as a unit adds ones to different bins (sums: 1)."""
        return math.sqrt(self.votes_per_unit)

    def as_tree(self) -> dict[str, Any]:
        """Return it as plain values, for readers."""
        return {
            "key": self.key,
            "kind": self.kind,
            "iteration": self.iteration,
            "mechanism": "discrete Gaussian",
            "sigma": self.sigma,
            "sensitivity": self.sensitivity,
        }

    @property
    def mu_squared(self) -> float | None:
        """Cost in Gaussian DP: (sensitivity / sigma)^2; None without noise."""
        return self.votes_per_unit / self.sigma**2 if self.sigma else None


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisyHistogram:
    """A released histogram; the un-noised one has no field here.

    noisy_votes: int64 [num_bins]; for votes bin i is sample id i, for label counts it is label i.
    """

    release: Release
    noisy_votes: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisySums:
    """A released vector of sums; the un-noised one has no field here.

    sums: float64 [n], multiples of 1 / LATTICE, in units of the norm that one unit may add.
    """

    release: Release
    sums: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelLayout:
    """How a population's ids are laid out: 0..num_samples-1, label by label."""

    counts: tuple[int, ...]

    @property
    def num_samples(self) -> int:
        return sum(self.counts)

    @property
    def starts(self) -> NDArray[np.int64]:
        """First id of each label, and num_samples last; shape [num_labels + 1]."""
        return np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)]).astype(np.int64)

    def labels(self, start: int, stop: int) -> NDArray[np.int32]:
        """Return the labels of ids start..stop-1, shape [stop - start]."""
        ids = np.arange(start, stop, dtype=np.int64)
        return (np.searchsorted(self.starts, ids, side="right") - 1).astype(np.int32)

    def label_range(self, label: int) -> tuple[int, int]:
        """Return the first id of `label` and one past its last."""
        starts = self.starts
        return int(starts[label]), int(starts[label + 1])
