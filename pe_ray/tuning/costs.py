"""What each strategy would cost and leave for the result, side by side, before any is begun."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pe_ray import plugins
from pe_ray.errors import InputError
from pe_ray.planning import plan_releases
from pe_ray.release.accounting import gaussian_epsilon
from pe_ray.release.adaptive import with_mu
from pe_ray.tuning.budget import accounting_of, final_shape, total_mu
from pe_ray.tuning.search import Search
from pe_ray.values import Release


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One strategy with the configuration's settings.

    search_share: share of mu^2 that the search costs, the objective's release included.
    final_epsilon: what the result's own releases cost alone. final_sigma: noise of its last votes,
    in votes. noise: that over the noise of a run without a search. reason: why to take it.
    impossible: why this configuration can't have it.
    """

    strategy: str
    search_share: float = 1.0
    final_epsilon: float = 0.0
    final_sigma: float = math.inf
    noise: float = math.inf
    reason: str = ""
    impossible: str | None = None


def compare_costs(search: Search) -> list[Cost]:
    """Return every strategy's cost with this configuration; touches no private record."""
    alone = _last_sigma(plan_releases(search.config))
    found = []
    kinds = [*plugins.registered("tuning_strategy"), search.tuning.strategy.kind]
    for kind in dict.fromkeys(kinds):
        try:
            other = search.with_strategy(kind)
            other.check()
            found.append(_cost(other, kind, alone))
        except InputError as error:
            found.append(Cost(strategy=kind, impossible=str(error)))
    return found


def _cost(search: Search, kind: str, alone: float) -> Cost:
    config = search.config
    share, epsilon, last = 0.0, config.privacy.epsilon, alone
    if accounting_of(search) != "fixed":
        mu = search.strategy.result_mu(search)
        share = max(0.0, 1 - (mu / total_mu(search)) ** 2)
        epsilon = gaussian_epsilon(mu, config.privacy.delta)
        last = _last_sigma(with_mu(final_shape(config), mu))
    return Cost(
        strategy=kind,
        search_share=share,
        final_epsilon=epsilon,
        final_sigma=last,
        noise=last / alone,
        reason=search.strategy.reason,
    )


def _last_sigma(releases: Sequence[Release]) -> float:
    """Return the noise of the last votes."""
    return [release.sigma for release in releases if release.kind == "votes"][-1]


def recommend(found: list[Cost]) -> Cost:
    """Return the cost of the strategy to take: its result has the least noise."""
    able = [cost for cost in found if cost.impossible is None]
    if not able:
        raise InputError("tuning: the budget is too small for any strategy; raise privacy.epsilon")
    return min(able, key=lambda cost: cost.noise)
