"""The aggregator: the one place where un-noised counts or sums of all partitions meet the noise."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pe_ray.errors import FaultError, InputError
from pe_ray.private.records import PrivateRecords
from pe_ray.private.sums import RawSums, Vectors, sum_vectors
from pe_ray.private.votes import RawVotes
from pe_ray.release.ledger import Ledger
from pe_ray.release.mechanism import discrete_gaussian
from pe_ray.values import LATTICE, MAX_SUMS, NoisyHistogram, NoisySums, Release


class Aggregator:
    """Adds partitions up, charges the ledger, adds noise once, stores, and only then answers.

    `entropy` is for TESTS ONLY (see release.mechanism).
    """

    def __init__(self, ledger_path: Path, *, entropy: Callable[[int], bytes] = os.urandom) -> None:
        self._ledger = Ledger.open(ledger_path)
        self._entropy = entropy

    def release(
        self, release: Release, num_bins: int, partials: Sequence[ray.ObjectRef]
    ) -> NoisyHistogram:
        """The release of the sum of `partials` (references to RawVotes over `num_bins` bins).

        Guarantee: the result is the discrete Gaussian mechanism on a histogram of L2 sensitivity
        `release.sensitivity` under adding or removing one unit, was charged to the ledger before
        noise was drawn, and is the same for every call with this key, whatever died in between.
        """

        def counts() -> NDArray[np.int64]:
            return _sum_votes(release, num_bins, partials)

        noisy = self._release(release, num_bins, release.sigma, counts)
        return NoisyHistogram(release=release, noisy_votes=noisy)

    def release_sums(
        self, release: Release, num_values: int, partials: Sequence[ray.ObjectRef]
    ) -> NoisySums:
        """The release of the sum of `partials` (references to RawSums of `num_values` values).

        Guarantee: the result is the discrete Gaussian mechanism, on the lattice of multiples of
        1 / LATTICE, on sums of L2 sensitivity 1 under adding or removing one unit; charged, and
        the same for every call with this key, as in `release`.
        """
        if release.kind != "sums" or not 1 <= num_values <= MAX_SUMS:
            raise InputError(f"release {release.key}: needs 1 to {MAX_SUMS} sums, not {num_values}")

        def sums() -> NDArray[np.int64]:
            return _sum_sums(release, num_values, partials)

        noisy = self._release(release, num_values, release.sigma * LATTICE, sums)
        return NoisySums(release=release, sums=noisy / LATTICE)

    def _release(
        self, release: Release, size: int, scale: float, raw: Callable[[], NDArray[np.int64]]
    ) -> NDArray[np.int64]:
        """`raw()`, int64 [size], with discrete Gaussian noise of `scale`; or what is stored."""
        self._ledger.reserve(release)  # also refuses a key charged with other parameters
        noisy = self._ledger.stored(release.key)
        try:
            if noisy is None:
                noise = discrete_gaussian(scale, size, entropy=self._entropy)
                noisy = self._ledger.commit(release.key, raw() + noise)
        except InputError:
            raise
        except Exception as error:  # whatever it says, it may quote what was summed
            if _lost(error):
                raise FaultError(
                    f"release {release.key}: what it adds up was lost too often "
                    f"({type(error).__name__})"
                ) from None
            raise RuntimeError(f"release {release.key} failed: {type(error).__name__}") from None
        if len(noisy) != size:
            raise InputError(
                f"ledger: {release.key} was released with {len(noisy)} bins, not {size}; restore "
                "the configuration that it was charged for"
            )
        return noisy


def _lost(error: Exception) -> bool:
    """Whether a partition's task or its records died for good, not raised."""
    died = isinstance(error, ray.exceptions.RayError)
    return died and not isinstance(error, ray.exceptions.RayTaskError)


def _sum_votes(
    release: Release, num_bins: int, partials: Sequence[ray.ObjectRef]
) -> NDArray[np.int64]:
    """Un-noised counts, int64 [num_bins]; holds one partial at a time."""
    counts = np.zeros(num_bins, dtype=np.int64)
    for partial in partials:
        votes: RawVotes = ray.get(partial)
        if votes.votes_per_unit != release.votes_per_unit:
            raise InputError(f"release {release.key}: the votes have another sensitivity")
        if len(votes.ids) and not (votes.ids.min() >= 0 and votes.ids.max() < num_bins):
            raise InputError(f"release {release.key}: a vote lies outside the {num_bins} bins")
        np.add.at(counts, votes.ids, votes.counts)
    return counts


def _sum_sums(
    release: Release, num_values: int, partials: Sequence[ray.ObjectRef]
) -> NDArray[np.int64]:
    """Un-noised sums in steps of the lattice, int64 [num_values]; holds one partial at a time."""
    total = np.zeros(num_values, dtype=np.int64)
    for partial in partials:
        sums: RawSums = ray.get(partial)
        if sums.steps.shape != total.shape:
            raise InputError(f"release {release.key}: a partition summed other than {num_values}")
        total += sums.steps
    return total


def answer(reference: ray.ObjectRef) -> Any:
    """What the aggregator answers; what it says to the user is raised without Ray's trace."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError | FaultError):
            raise error.cause from None
        raise


def create_aggregator(ledger_path: Path) -> Any:
    """Start the aggregator on this node, where the ledger is; Ray restarts it if it dies."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(Aggregator).options(
        num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here
    )
    return actor.remote(ledger_path)


def release_sums(
    ledger_path: Path, release: Release, records: PrivateRecords, vectors: Vectors, num_values: int
) -> NoisySums:
    """Release the sum of the records' `vectors`, once: afterwards the ledger answers.

    Guarantee: sums of L2 sensitivity 1 under adding or removing one unit, with discrete Gaussian
    noise of `release.sigma` on each value, charged before it is drawn.
    """
    partials = sum_vectors(records, vectors, num_values)
    aggregator = create_aggregator(ledger_path)
    noisy: NoisySums = answer(aggregator.release_sums.remote(release, num_values, partials))
    return noisy
