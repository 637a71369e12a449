"""Who gets which share of the budget: mu^2 adds up over everything that is released."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pe_ray.components.moments import LabelMoments
from pe_ray.config import Config
from pe_ray.errors import InputError
from pe_ray.release.adaptive import budget_mu, mu_of, with_mu
from pe_ray.release.ledger_sql import Accounting
from pe_ray.release.releases import LabelCounts, shape_releases
from pe_ray.tuning.search_config import MomentsObjective, Search
from pe_ray.values import Release

MOMENTS = "moments"
LABEL_COUNTS = "label_counts"


def accounting_of(search: Search) -> Accounting:
    """`fixed` only where nothing that is released decides what is released next."""
    charged = search.tuning.objective.kind == "moments"
    return "fixed" if search.tuning.strategy == "public" and not charged else "adaptive"


def total_mu(search: Search) -> float:
    """What the whole budget is worth to an adaptive analyst."""
    return budget_mu(search.config.privacy.epsilon, search.config.privacy.delta)


def shared_releases(search: Search) -> tuple[Release, ...]:
    """What is released once for all trials and the final run, before the first trial."""
    if accounting_of(search) == "fixed":
        return ()
    found: list[Release] = []
    privacy, objective, whole = search.config.privacy, search.tuning.objective, total_mu(search)
    if privacy.label_fractions == "dp":
        shape = _release(LABEL_COUNTS, "label_counts", LabelCounts.limit(search.config))
        found += with_mu([shape], whole * math.sqrt(privacy.label_count_share))
    if isinstance(objective, MomentsObjective):
        found += with_mu([_release(MOMENTS, "sums", 1)], whole * math.sqrt(objective.share))
    return tuple(found)


def _release(key: str, kind: str, ones: int, iteration: int = 0) -> Release:
    return Release(key=key, kind=kind, iteration=iteration, votes_per_unit=ones, sigma=1.0)


def moments_spec(search: Search, objective: MomentsObjective) -> LabelMoments:
    """What the moments' release sums."""
    return LabelMoments(
        num_labels=len(search.config.private.labels),
        dim=objective.dim,
        radius=objective.radius,
        seed=objective.seed,
    )


def left(search: Search, charged: Sequence[Release]) -> float:
    """mu of what is left after `charged`; InputError where that is nothing."""
    rest = total_mu(search) ** 2 - mu_of(charged) ** 2
    if rest <= 0:
        raise InputError("tuning: the shares leave nothing of the budget; lower them")
    return math.sqrt(rest) * (1 - 1e-9)


def proxy_mu(search: Search) -> float:
    """`proxy`: of the run that trials vote with."""
    return total_mu(search) * math.sqrt(search.tuning.proxy_share)


def final_mu(search: Search) -> float:
    """Of the final run if the search costs what was planned; 0: there is no final run."""
    tuning = search.tuning
    rest = left(search, shared_releases(search))
    if tuning.strategy == "proxy":
        over = rest**2 - proxy_mu(search) ** 2
        if over <= 0:
            raise InputError("tuning.proxy_share: leaves nothing for the final run; lower it")
        return math.sqrt(over) * (1 - 1e-9)
    return rest * math.sqrt(tuning.final_share) if tuning.strategy == "compose" else rest


def trial_mu(search: Search) -> float:
    """`compose`: of one complete trial, its scores included."""
    tuning = search.tuning
    rest = left(search, shared_releases(search))
    trials = tuning.full_trials or float(tuning.num_trials)
    return rest * math.sqrt((1 - tuning.final_share) / trials)


def final_releases(
    search: Search, config: Config, charged: Sequence[Release]
) -> tuple[Release, ...]:
    """The final run's votes and its teacher's moments, with all that `charged` left."""
    return with_mu(shape_releases(config, label_counts=False), left(search, charged))
