"""The aggregator: the only place where un-noised totals of all partitions meet the noise."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from pe_ray.errors import FaultError, InputError
from pe_ray.release.ledger import Ledger
from pe_ray.release.mechanism import discrete_gaussian
from pe_ray.release.releases import kind_of
from pe_ray.runtime.cluster import on_this_node
from pe_ray.values import Release

_LOOK_SECONDS = 1.0


class Aggregator:
    """Charges the ledger, adds partitions up, adds noise once, stores, and only then answers.

    `entropy` is for TESTS ONLY (see release.mechanism).
    """

    def __init__(self, ledger_path: Path, *, entropy: Callable[[int], bytes] = os.urandom) -> None:
        self._ledger = Ledger.open(ledger_path)
        self._entropy = entropy

    def release(self, release: Release, num_values: int, partials: Sequence[ray.ObjectRef]) -> Any:
        """Release the sum of `partials`, references to what the release's kind adds up.

        Guarantee: the answer is the discrete Gaussian mechanism on integers, in the lattice steps
        of the kind, of L2 sensitivity `release.sensitivity` under adding or removing one unit. It
        was charged to the ledger before noise was drawn, and is the same for every call with this
        key, whatever died in between.
        """
        kind = kind_of(release)
        if not 1 <= num_values <= kind.max_values:
            raise InputError(
                f"release {release.key}: needs 1 to {kind.max_values} values, not {num_values}"
            )
        self._ledger.reserve(release)  # also refuses a key charged with other parameters
        noisy = self._ledger.stored(release.key)
        try:
            if noisy is None:
                scale = release.sigma * kind.steps
                noise = discrete_gaussian(scale, num_values, entropy=self._entropy)
                total = np.zeros(num_values, dtype=np.int64)
                for partial in partials:  # holds one at a time
                    kind.add(release, total, ray.get(partial))
                noisy = self._ledger.commit(release.key, total + noise)
        except (InputError, FaultError):
            raise
        except Exception as error:  # whatever it says, it may quote what was summed
            if _lost(error):
                raise FaultError(
                    f"release {release.key}: what it adds up was lost too often "
                    f"({type(error).__name__})"
                ) from None
            raise RuntimeError(f"release {release.key} failed: {type(error).__name__}") from None
        if len(noisy) != num_values:
            raise InputError(
                f"ledger: {release.key} was released with {len(noisy)} values, not {num_values}; "
                "restore the configuration that it was charged for"
            )
        return kind.answer(release, noisy)


def _lost(error: Exception) -> bool:
    """Tell whether a partition's task or its records died for good, not raised."""
    died = isinstance(error, ray.exceptions.RayError)
    return died and not isinstance(error, ray.exceptions.RayTaskError)


def answer(
    reference: ray.ObjectRef, partials: Sequence[ray.ObjectRef], stall_seconds: float
) -> Any:
    """Fetch what the aggregator answers; raise what it says to the user without Ray's trace.

    Waits for the tasks that make `partials`, which end by themselves where they hang, and at most
    `stall_seconds` more. `partials` are never fetched.
    """
    unfinished = list(partials)
    while unfinished and not ray.wait([reference], timeout=0)[0]:
        _, unfinished = ray.wait(
            unfinished, num_returns=len(unfinished), timeout=_LOOK_SECONDS, fetch_local=False
        )
    try:
        return ray.get(reference, timeout=stall_seconds)
    except ray.exceptions.GetTimeoutError:
        raise FaultError(
            f"the aggregator gave no answer for {stall_seconds:g} s; its process or the ledger's "
            "disk hangs"
        ) from None
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError | FaultError):
            raise error.cause from None
        raise


def create_aggregator(ledger_path: Path) -> Any:
    """Start the aggregator on this node, where the ledger is; Ray restarts it if it dies."""
    actor = ray.remote(Aggregator).options(
        num_cpus=0, max_restarts=-1, max_task_retries=-1, **on_this_node()
    )
    return actor.remote(ledger_path)
