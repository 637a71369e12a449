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
from pe_ray.tuning.search import Search, search_of
from pe_ray.values import Release


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One strategy with the configuration's settings.

    search_share: share of mu^2 that the search costs, the objective's release included.
    final_epsilon: what the final run costs alone. final_sigma: noise of its last votes, in votes.
    noise: that over the noise of a run without a search. impossible: why this configuration can't
    have it.
    """

    strategy: str
    search_share: float = 1.0
    final_epsilon: float = 0.0
    final_sigma: float = math.inf
    noise: float = math.inf
    impossible: str | None = None


def compare_costs(search: Search) -> list[Cost]:
    """Return every strategy's cost with this configuration; touches no private record.

    Other strategies than the configured one have the defaults of their options.
    """
    own = search.tuning.strategy.kind
    tuning = search.tuning.model_dump(mode="json")
    found = []
    for kind in dict.fromkeys([*plugins.registered("tuning_strategy"), own]):
        strategy = tuning["strategy"] if kind == own else kind
        try:
            other = search_of({**search.tree, "tuning": {**tuning, "strategy": strategy}})
            found.append(_cost(other, kind))
        except InputError as error:
            found.append(Cost(strategy=kind, impossible=str(error)))
    return found


def _cost(search: Search, kind: str) -> Cost:
    config = search.config
    alone = plan_releases(config)
    share, epsilon, releases = 0.0, config.privacy.epsilon, alone
    if accounting_of(search) != "fixed":
        mu = search.strategy.result_mu(search)
        share = max(0.0, 1 - (mu / total_mu(search)) ** 2)
        epsilon = gaussian_epsilon(mu, config.privacy.delta)
        releases = with_mu(final_shape(config), mu)
    return Cost(
        strategy=kind,
        search_share=share,
        final_epsilon=epsilon,
        final_sigma=_last_sigma(releases),
        noise=_last_sigma(releases) / _last_sigma(alone),
    )


def _last_sigma(releases: Sequence[Release]) -> float:
    """Return the noise of the last votes."""
    return [release.sigma for release in releases if release.kind == "votes"][-1]
