"""Who gets which share of the budget: mu^2 adds up over everything that is released."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pe_ray.config import Config
from pe_ray.errors import InputError
from pe_ray.planning import plan_releases
from pe_ray.release.accounting import gaussian_epsilon
from pe_ray.release.adaptive import budget_mu, mu_of, with_mu
from pe_ray.release.ledger_sql import Accounting
from pe_ray.release.releases import LabelCounts, kind_of, shape_releases
from pe_ray.tuning.search import Search
from pe_ray.values import Release

PRIVATE_SUMS = "moments"
"""Key of the objective's release in the ledger."""


def accounting_of(search: Search) -> Accounting:
    """Return `fixed` only where nothing that is released decides what is released next."""
    adaptive = search.strategy.adaptive or search.objective.private_sums(search) is not None
    return "adaptive" if adaptive else "fixed"


def total_mu(search: Search) -> float:
    """Return what the whole budget is worth to an adaptive analyst."""
    return budget_mu(search.config.privacy.epsilon, search.config.privacy.delta)


def shared_releases(search: Search) -> tuple[Release, ...]:
    """Return what is released once for all trials and the final run, before the first trial."""
    if accounting_of(search) == "fixed":
        return ()
    found: list[Release] = []
    whole, config = total_mu(search), search.config
    of_labels, sums = LabelCounts.share(config), search.objective.private_sums(search)
    if of_labels:
        found += with_mu(LabelCounts.plan(config), whole * math.sqrt(of_labels))
    if sums is not None:
        shape = Release(key=PRIVATE_SUMS, kind="sums", iteration=0, votes_per_unit=1, sigma=1.0)
        found += with_mu([shape], whole * math.sqrt(sums.share))
    return tuple(found)


def reserved_releases(search: Search) -> tuple[Release, ...] | None:
    """Return what a search may charge, as an account is asked for it.

    None: what an adaptive ledger allows. Else only the final run is charged; its settings may still
    change, and then it reserves for them.
    """
    return plan_releases(search.config) if accounting_of(search) == "fixed" else None


def mu_left(search: Search, charged: tuple[Release, ...] | None = None) -> float:
    """Return the mu of what is left after `charged` (default: what all trials share)."""
    spent = shared_releases(search) if charged is None else charged
    rest = total_mu(search) ** 2 - mu_of(spent) ** 2
    if rest <= 0:
        raise InputError("tuning: the shares leave nothing of the budget; lower them")
    return math.sqrt(rest) * (1 - 1e-9)


def final_shape(config: Config, prefix: str = "") -> list[Release]:
    """Return the final run's releases with relative sigmas; label counts are shared."""
    return shape_releases(config, prefix, label_counts=False)


def final_votes(search: Search, config: Config, prefix: str) -> tuple[Release, ...]:
    """Return the releases of a trial that costs nothing, with the noise of the final run's votes.

    config: the trial's. A stand-in without users votes as records do.
    """
    privacy = config.privacy.model_copy(update={"unit": search.config.privacy.unit})
    final = config.model_copy(update={"teacher": search.config.teacher, "privacy": privacy})
    if accounting_of(search) == "fixed":
        releases = plan_releases(final)
    else:
        releases = with_mu(final_shape(final, prefix), search.strategy.result_mu(search))
    counts = [release for release in releases if not release.is_sums]
    return tuple(replace(r, votes_per_unit=kind_of(r).limit(config)) for r in counts)


def plan_cost(search: Search) -> dict[str, Any]:
    """Return what a search costs and what it leaves for the final run; touch no private record.

    search_share: of mu^2, the objective's release included. final_epsilon: what the final run costs
    alone. final_sigma: noise of its last votes. noise: that over the noise without a search.
    """
    config = search.config
    alone = plan_releases(config)
    share, epsilon, releases = 0.0, config.privacy.epsilon, alone
    if accounting_of(search) == "adaptive":
        mu = search.strategy.result_mu(search)
        share = max(0.0, 1 - (mu / total_mu(search)) ** 2)
        epsilon = gaussian_epsilon(mu, config.privacy.delta)
        releases = with_mu(final_shape(config), mu)
    return {
        "strategy": search.tuning.strategy.kind,
        "search_share": share,
        "final_epsilon": epsilon,
        "final_sigma": _last_sigma(releases),
        "noise": _last_sigma(releases) / _last_sigma(alone),
    }


def _last_sigma(releases: Sequence[Release]) -> float:
    """Return the noise of the last votes."""
    return [release.sigma for release in releases if release.kind == "votes"][-1]
