"""Kinds of release: what each adds up, what a unit can change, and its part of the budget.

Neighbouring data sets differ by one unit: one record, or one user with all records. The mechanism
of every kind is the discrete Gaussian (release.mechanism), accounted in release.accounting.

To add a kind, write a class as those below and ask for it with `Door.ask`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pe_ray.config import Config
from pe_ray.errors import InputError
from pe_ray.plugins import registry
from pe_ray.values import LATTICE, MAX_SUMS, NoisyHistogram, NoisySums, Release

if TYPE_CHECKING:
    from pe_ray.private.sums import RawSums
    from pe_ray.private.votes import RawVotes

Totals = NDArray[np.int64]

LABEL_COUNTS = "label_counts"
"""Key of the label counts in the ledger."""
GENERATOR = "generator"
"""Key of the sums that a generator draws from."""


class Counts:
    """A histogram of integers: a unit adds at most k ones, each to a different bin.

    Sensitivity sqrt(k) in L2, with k = `Release.votes_per_unit`.
    """

    steps: ClassVar[int] = 1
    """Steps of the noise's lattice in one unit of the answer."""
    max_values: ClassVar[int] = 2**62

    @staticmethod
    def add(release: Release, total: Totals, raw_votes: RawVotes) -> None:
        """Add the un-noised votes of one partition to `total`, int64 [num_bins]."""
        if raw_votes.votes_per_unit != release.votes_per_unit:
            raise InputError(f"release {release.key}: the votes have another sensitivity")
        ids = raw_votes.ids
        if len(ids) and not (ids.min() >= 0 and ids.max() < len(total)):
            raise InputError(f"release {release.key}: a vote lies outside the {len(total)} bins")
        np.add.at(total, ids, raw_votes.counts)

    @staticmethod
    def answer(release: Release, noisy: Totals) -> NoisyHistogram:
        """Return the released histogram."""
        return NoisyHistogram(release=release, noisy_votes=noisy)


class Sums:
    """Sums of vectors: a unit adds one vector of L2 norm at most 1. Sensitivity 1."""

    steps: ClassVar[int] = LATTICE
    max_values: ClassVar[int] = MAX_SUMS

    @staticmethod
    def describe(release: Release) -> str:
        """Say what is released, for people."""
        return f"sums: {release.key}"

    @staticmethod
    def add(release: Release, total: Totals, raw_sums: RawSums) -> None:
        """Add the un-noised sums of one partition to `total`, int64 [num_values]."""
        if raw_sums.steps.shape != total.shape:
            raise InputError(f"release {release.key}: a partition did not sum {len(total)} values")
        total += raw_sums.steps

    @staticmethod
    def answer(release: Release, noisy: Totals) -> NoisySums:
        """Return the released sums, in units of the norm that one unit may add."""
        return NoisySums(release=release, sums=noisy / LATTICE)


class Votes(Counts):
    """Votes for the samples of S_(t-1), in every iteration t."""

    @staticmethod
    def describe(release: Release) -> str:
        """Say what is released, for people."""
        return f"votes, iteration {release.iteration}"

    @staticmethod
    def share(config: Config) -> float | None:
        """Return the share of sum(1/sigma^2) that this kind gets; None: all that others leave."""
        return None

    @staticmethod
    def limit(config: Config) -> int:
        """Return the most bins that one unit's votes reach: the square of the L2 sensitivity."""
        by_user = config.privacy.unit == "user"
        return config.votes.max_votes_per_user if by_user else config.votes.neighbors

    @staticmethod
    def plan(config: Config, prefix: str = "") -> list[Release]:
        """Return the releases of a run in order, with sigmas up to a common factor."""
        limit = Votes.limit(config)
        return [
            Release(
                key=votes_key(iteration, prefix),
                kind="votes",
                iteration=iteration,
                votes_per_unit=limit,
                sigma=weight * math.sqrt(limit),
            )
            for iteration, weight in enumerate(config.schedule.relative_sigmas, start=1)
        ]


class LabelCounts(Counts):
    """The number of records (or users) per label, for `privacy.label_fractions: dp`."""

    @staticmethod
    def describe(release: Release) -> str:
        return "label counts"

    @staticmethod
    def share(config: Config) -> float | None:
        released = config.privacy.label_fractions == "dp"
        return config.privacy.label_count_share if released else 0.0

    @staticmethod
    def limit(config: Config) -> int:
        """Return the most labels that one unit counts for."""
        return 1 if config.privacy.unit == "record" else Votes.limit(config)

    @staticmethod
    def plan(config: Config, prefix: str = "") -> list[Release]:
        ones = LabelCounts.limit(config)
        return [
            Release(
                key=LABEL_COUNTS,
                kind="label_counts",
                iteration=0,
                votes_per_unit=ones,
                sigma=math.sqrt(ones),
            )
        ]


class GeneratorSums(Sums):
    """The sums that a generator draws from, before S_0."""

    @staticmethod
    def share(config: Config) -> float | None:
        sums = config.private_sums
        return sums.share if sums else 0.0

    @staticmethod
    def plan(config: Config, prefix: str = "") -> list[Release]:
        key = f"{prefix}{GENERATOR}"
        return [Release(key=key, kind="sums", iteration=0, votes_per_unit=1, sigma=1.0)]


class TeacherSums(Sums):
    """The moments that a teacher is solved from, after the last vote."""

    @staticmethod
    def share(config: Config) -> float | None:
        return config.teacher.share if config.teacher else 0.0

    @staticmethod
    def plan(config: Config, prefix: str = "") -> list[Release]:
        last = config.schedule.iterations
        key = f"{prefix}teacher"
        return [Release(key=key, kind="sums", iteration=last, votes_per_unit=1, sigma=1.0)]


KINDS = (LabelCounts, GeneratorSums, Votes, TeacherSums)
"""What a run may release, in order."""


def kind_of(release: Release) -> Any:
    """Return the class of the release's kind.

    Raises InputError for sums of another name than `sums`: they would be accounted as counts.
    """
    kind = registry.load("release", release.kind)
    if (kind.steps != Counts.steps) != release.is_sums:
        raise InputError(f"release {release.key}: give sums the kind `sums`, not {release.kind!r}")
    return kind


def votes_key(iteration: int, prefix: str = "") -> str:
    """Return the key of the votes of an iteration in the ledger."""
    return f"{prefix}votes/{iteration:04d}"


def shape_releases(config: Config, prefix: str = "", *, label_counts: bool = True) -> list[Release]:
    """Return every release of the run in order, with sigmas up to a common factor.

    Each kind gets its share of sum(votes_per_unit / sigma^2) = mu^2, and the votes get the rest.
    label_counts: False where the label fractions are released elsewhere.
    """
    shares = {kind: kind.share(config) for kind in KINDS}
    if not label_counts:
        shares[LabelCounts] = 0.0
    rest = 1.0 - sum(share for share in shares.values() if share is not None)
    found = []
    for kind, share in shares.items():
        if share != 0.0:
            found += _with_share(kind.plan(config, prefix), rest if share is None else share)
    return found


def _with_share(releases: list[Release], share: float) -> list[Release]:
    """Scale the sigmas so that sum(votes_per_unit / sigma^2) is `share`."""
    total = sum(release.votes_per_unit / release.sigma**2 for release in releases)
    scale = math.sqrt(total / share)
    return [replace(release, sigma=release.sigma * scale) for release in releases]
