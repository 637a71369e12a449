"""What a plugin may ask of the private records: sums of clipped vectors, released with noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Statistic(Protocol):
    """What to sum over records: a public function of a record, picklable."""

    @property
    def num_values(self) -> int:
        """Length of a record's vector."""

    def map_records(
        self, features: NDArray[np.float64], labels: NDArray[np.int32]
    ) -> NDArray[np.float64]:
        """Return one vector per record, [n, num_values], for features [n, d] and labels [n]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateSums:
    """Sums over the private records that a plugin asks for, released once.

    embedder: a `config.kinds.Plugin`. statistic: maps embeddings by it and labels to vectors; each
    counts with norm 1 at most. share: of the budget's sum(1/sigma^2).
    """

    embedder: Any
    statistic: Statistic
    share: float
